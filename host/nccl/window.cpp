// SPDX-License-Identifier: Apache-2.0
// Symmetric windows: NCCL maps every rank's memory into its peers, we learn where and prove it.
#include "epjit/error.hpp"
#include "host/nccl/bounded.hpp"
#include "host/nccl/communicator.hpp"
#include "host/runtime/runtime_state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

namespace epjit::host {
namespace {

using clock = std::chrono::steady_clock;

constexpr std::size_t window_alignment = 4096;  ///< NCCL_WIN_REQUIRED_ALIGNMENT

/// What an ncclWindow_t points to on the device in NCCL 2.28, as far as it is used: the mapping of rank i of the team
/// of ranks that reach each other begins at lsa_flat_base + i * (stride_4g << 32). Not a public layout: read only from
/// versions for which it is known, and proved below.
struct window_prefix {
    std::uint64_t win_host;
    std::uint64_t lsa_flat_base;
    std::int32_t lsa_rank;
    std::int32_t world_rank;
    std::uint32_t stride_4g;
    std::uint32_t mc_offset_4k;
};
static_assert(sizeof(window_prefix) == 32 && offsetof(window_prefix, lsa_flat_base) == 8 &&
              offsetof(window_prefix, lsa_rank) == 16 && offsetof(window_prefix, world_rank) == 20 &&
              offsetof(window_prefix, stride_4g) == 24 && offsetof(window_prefix, mc_offset_4k) == 28);

/// How a step went on one rank; gathered from all before any of them throws.
struct step_outcome {
    std::int32_t failed = 0;
    std::int32_t team_base = 0;  ///< lowest rank of the team
    std::uint64_t bytes = 0;
    char why[240] = {};

    void fail(const std::string& reason) {
        failed = 1;
        const std::size_t size = std::min(reason.size(), sizeof why - 1);
        std::memcpy(why, reason.data(), size);
        why[size] = '\0';
    }
};
static_assert(std::is_trivially_copyable_v<step_outcome> && sizeof(step_outcome) == 256);

std::uint64_t token_of(std::int32_t writer, std::int32_t owner) noexcept {
    const auto pair = (static_cast<std::uint64_t>(writer) << 32) | static_cast<std::uint32_t>(owner);
    return (pair + 1) * 0x9e3779b97f4a7c15U;
}

/// @throws on every rank when a step failed on one.
std::vector<step_outcome> agree(nccl_communicator& comm, const step_outcome& mine) {
    std::vector<step_outcome> all(static_cast<std::size_t>(comm.size()));
    comm.all_gather_host(&mine, all.data(), sizeof mine);
    for (std::int32_t r = 0; r < comm.size(); ++r) {
        if (all[r].failed != 0) {
            throw unsupported_error(fmt::format("symmetric windows cannot be used: {}: {} (NCCL {})",
                                                rank_text(r, comm.size()), all[r].why, comm.api().version_text()),
                                    "use the sendrecv or dense exchange, which need none");
        }
        if (all[r].bytes != all[0].bytes) {
            throw error(error_kind::internal,
                        fmt::format("a window of {} bytes on rank 0 and {} on rank {}", all[0].bytes, all[r].bytes, r));
        }
    }
    return all;
}

}  // namespace

struct symmetric_window::state {
    explicit state(std::shared_ptr<nccl_communicator> c) : comm(std::move(c)), stream(comm->context()) {
        event = gpu_event(comm->context(), false);
        peers.assign(static_cast<std::size_t>(comm->size()), nullptr);
    }
    ~state() { release(); }
    state(const state&) = delete;
    state& operator=(const state&) = delete;

    void allocate(step_outcome& outcome);
    void register_memory(step_outcome& outcome);
    void read_prefix(step_outcome& outcome);
    void ask_getters(step_outcome& outcome);
    void map_team(const std::vector<step_outcome>& all);
    void prove();
    void wait(const char* phase);
    void release() noexcept;

    std::shared_ptr<nccl_communicator> comm;
    std::size_t bytes = 0;   ///< asked for
    std::size_t padded = 0;  ///< room for the words of the proof, whole pages
    void* local = nullptr;
    /// NCCL may write it until the call is done or aborted.
    std::shared_ptr<nccl_window> window = std::make_shared<nccl_window>(nullptr);
    window_prefix prefix{};
    std::vector<void*> peers;
    std::vector<std::int32_t> reachable;
    gpu_stream stream;
    gpu_event event;
};

void symmetric_window::state::allocate(step_outcome& outcome) {
    const nccl_api& api = comm->api();
    if (const std::string reason = no_windows_reason(api); !reason.empty()) {
        outcome.fail(reason);
        return;
    }
    const scoped_context current(*comm->context());
    const nccl_result result = api.memory_allocate(&local, padded);
    if (result != nccl_success) {
        local = nullptr;
        outcome.fail(fmt::format("ncclMemAlloc of {} bytes gave {}", padded, api.text(result)));
        return;
    }
    comm->runtime().allocations.fetch_add(1, std::memory_order_relaxed);
}

void symmetric_window::state::register_memory(step_outcome& outcome) {
    const nccl_api& api = comm->api();
    {
        const std::lock_guard lock(comm->calls_);
        const scoped_context current(*comm->context());
        comm->check();
        comm->settle(comm->control_,
                     api.window_register(comm->control_, local, padded, window.get(), nccl_window_symmetric),
                     "registering a symmetric window (ncclCommWindowRegister)");
    }
    if (*window == nullptr) {
        outcome.fail(
            "ncclCommWindowRegister succeeded without a window: there is no symmetric memory here (it needs "
            "peer access between the GPUs, cuMem and NCCL_WIN_ENABLE not 0)");
        return;
    }
    try {
        if (api.peer_pointer != nullptr) {
            ask_getters(outcome);
        } else {
            read_prefix(outcome);
        }
    } catch (const cuda_error& e) {
        outcome.fail(e.message());
    }
}

void symmetric_window::state::ask_getters(step_outcome& outcome) {
    const nccl_api& api = comm->api();
    const scoped_context current(*comm->context());
    for (std::int32_t r = 0; r < comm->size(); ++r) {
        const nccl_result result = api.peer_pointer(*window, 0, r, &peers[r]);
        if (result != nccl_success) {
            outcome.fail(fmt::format("ncclGetPeerDevicePointer of rank {} gave {}", r, api.text(result)));
            return;
        }
    }
}

void symmetric_window::state::read_prefix(step_outcome& outcome) {
    const pinned_buffer copy(comm->context(), sizeof prefix);
    copy_to_host(comm->context(), copy.data(), static_cast<const void*>(*window), sizeof prefix, stream.get());
    wait("reading a window");
    std::memcpy(&prefix, copy.data(), sizeof prefix);
    if (prefix.world_rank != comm->rank() || prefix.lsa_rank < 0 || prefix.lsa_rank > comm->rank() ||
        prefix.lsa_flat_base == 0 || prefix.stride_4g == 0) {
        outcome.fail(fmt::format("its window is not laid out as known (rank {}, team rank {}, base {:#x}, stride {})",
                                 prefix.world_rank, prefix.lsa_rank, prefix.lsa_flat_base, prefix.stride_4g));
        return;
    }
    outcome.team_base = comm->rank() - prefix.lsa_rank;
}

void symmetric_window::state::map_team(const std::vector<step_outcome>& all) {
    const std::int32_t base = all[comm->rank()].team_base;
    for (std::int32_t r = 0; r < comm->size(); ++r) {
        if (comm->api().peer_pointer == nullptr && all[r].team_base == base && r >= base) {
            const std::uint64_t distance = static_cast<std::uint64_t>(prefix.stride_4g) << 32;
            peers[r] = reinterpret_cast<void*>(prefix.lsa_flat_base + static_cast<std::uint64_t>(r - base) * distance);
        }
        if (r == comm->rank()) {
            peers[r] = local;
        }
        if (peers[r] != nullptr) {
            reachable.push_back(r);
        }
    }
}

void symmetric_window::state::prove() {
    const shared_context& context = comm->context();
    const auto num_ranks = static_cast<std::size_t>(comm->size());
    const std::size_t words = num_ranks * sizeof(std::uint64_t);
    const pinned_buffer written(context, words);
    const pinned_buffer read(context, words);
    fill_bytes(context, local, 0, padded, stream.get());
    wait("clearing a window");
    comm->barrier_host();

    // Every rank writes its own word into every window it reaches...
    step_outcome outcome;
    outcome.bytes = bytes;
    try {
        for (const std::int32_t r : reachable) {
            written.as<std::uint64_t>()[r] = token_of(comm->rank(), r);
            copy_to_device(context, static_cast<std::uint64_t*>(peers[r]) + comm->rank(),
                           written.as<std::uint64_t>() + r, sizeof(std::uint64_t), stream.get());
        }
        wait("writing through peer pointers");
    } catch (const cuda_error& e) {
        outcome.fail(fmt::format("writing through peer pointers: {}", e.message()));
    }
    agree(*comm, outcome);

    // ... and every owner looks for the words of those who say that they reach it.
    std::vector<std::uint8_t> mine(num_ranks), reaches(num_ranks * num_ranks);
    for (const std::int32_t r : reachable) {
        mine[r] = 1;
    }
    comm->all_gather_host(mine.data(), reaches.data(), num_ranks);
    copy_to_host(context, read.data(), local, words, stream.get());
    wait("reading the words of peers");
    for (std::int32_t r = 0; r < comm->size(); ++r) {
        const std::uint64_t expected =
            reaches[static_cast<std::size_t>(r) * num_ranks + comm->rank()] != 0 ? token_of(r, comm->rank()) : 0;
        if (read.as<std::uint64_t>()[r] != expected && outcome.failed == 0) {
            outcome.fail(
                fmt::format("a word that rank {} wrote through its peer pointer did not arrive (expected "
                            "{:#x}, found {:#x})",
                            r, expected, read.as<std::uint64_t>()[r]));
        }
    }
    agree(*comm, outcome);
    fill_bytes(context, local, 0, words, stream.get());
    wait("clearing a window");
    comm->barrier_host();
}

void symmetric_window::state::wait(const char* phase) {
    const settings& options = comm->runtime().options;
    const std::chrono::milliseconds limit = std::max(options.first_wait_timeout, options.wait_timeout);
    const clock::time_point until = clock::now() + limit;
    event.record(stream.get());
    for (std::chrono::milliseconds pause{0}; !event.done(); pause = std::chrono::milliseconds{1}) {
        if (clock::now() >= until) {
            const std::lock_guard lock(comm->calls_);
            comm->fail(nccl_communicator::failure::timeout,
                       fmt::format("{}: {} was not done on the GPU after {} ms; its communicator was aborted",
                                   rank_text(comm->rank(), comm->size()), phase, limit.count()),
                       0);
        }
        std::this_thread::sleep_for(pause);
    }
}

void symmetric_window::state::release() noexcept {
    if (local == nullptr) {
        return;
    }
    const nccl_api& api = comm->api();
    const driver_api& driver = comm->context()->api();
    const std::lock_guard lock(comm->calls_);
    if (driver.context_push(comm->context()->handle()) != cu_success) {
        return;  // the driver is unloading
    }
    // An abort has taken the windows of the communicator with it.
    if (*window != nullptr && comm->failure_.load() == nccl_communicator::failure::none) {
        const nccl_result result = settle(api, comm->control_, api.window_deregister(comm->control_, *window),
                                          clock::now() + std::chrono::seconds{5});
        if (result != nccl_success) {
            comm->runtime().log().write(log_level::warn,
                                        fmt::format("{}: ncclCommWindowDeregister gave {}; {} bytes stay mapped",
                                                    rank_text(comm->rank(), comm->size()), api.text(result), padded));
            local = nullptr;
        }
    }
    if (local != nullptr) {
        api.memory_free(local);
    }
    cu_context previous = nullptr;
    driver.context_pop(&previous);
    local = nullptr;
}

symmetric_window::symmetric_window() noexcept = default;
symmetric_window::~symmetric_window() = default;
symmetric_window::symmetric_window(symmetric_window&&) noexcept = default;
symmetric_window& symmetric_window::operator=(symmetric_window&&) noexcept = default;

symmetric_window::symmetric_window(std::shared_ptr<nccl_communicator> comm, std::size_t bytes)
    : state_(std::make_unique<state>(std::move(comm))) {
    state& s = *state_;
    const std::size_t words = static_cast<std::size_t>(s.comm->size()) * sizeof(std::uint64_t);
    s.bytes = bytes;
    s.padded = (std::max(bytes, words) + window_alignment - 1) / window_alignment * window_alignment;
    step_outcome outcome;
    outcome.bytes = bytes;
    s.allocate(outcome);
    agree(*s.comm, outcome);
    s.register_memory(outcome);
    s.map_team(agree(*s.comm, outcome));
    s.prove();
}

std::size_t symmetric_window::bytes() const noexcept {
    return state_ != nullptr ? state_->bytes : 0;
}

void* symmetric_window::local() const noexcept {
    return state_ != nullptr ? state_->local : nullptr;
}

void* symmetric_window::peer(std::int32_t rank) const noexcept {
    return state_ != nullptr && rank >= 0 && rank < state_->comm->size() ? state_->peers[rank] : nullptr;
}

const std::vector<std::int32_t>& symmetric_window::reachable() const noexcept {
    static const std::vector<std::int32_t> none;
    return state_ != nullptr ? state_->reachable : none;
}

}  // namespace epjit::host
