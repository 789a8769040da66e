// SPDX-License-Identifier: Apache-2.0
#include "host/exchange/device_memory.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace epjit::host {
namespace {

std::uint32_t load_acquire(const std::uint32_t* value) noexcept {
    return __atomic_load_n(value, __ATOMIC_ACQUIRE);
}

void pause_briefly() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

/// True when expert e has exactly the slot e.
bool slots_are_experts(const placement_tables& t, std::int32_t num_experts) {
    if (t.num_slots != num_experts) {
        return false;
    }
    for (std::int32_t e = 0; e < num_experts; ++e) {
        if (t.slot_expert[e] != e) {
            return false;
        }
    }
    return true;
}

}  // namespace

workspace::workspace(communicator_state& comm, const memory_hooks& hooks, std::size_t bytes) : hooks_(hooks) {
    if (hooks.allocate == nullptr) {
        own_ = device_buffer(comm.context, bytes);
        comm.runtime->allocations.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    hooked_ = hooks.allocate(hooks.user, bytes);
    if (hooked_ == nullptr) {
        throw config_error(fmt::format("memory_hooks.allocate returned null for {} bytes", bytes),
                           "give the library more memory, or lower max_tokens_per_rank");
    }
    if (reinterpret_cast<std::uintptr_t>(hooked_) % 256 != 0) {
        void* const misaligned = std::exchange(hooked_, nullptr);
        hooks.release(hooks.user, misaligned);
        throw config_error(fmt::format("memory_hooks.allocate returned {}, which is not 256-byte aligned", misaligned),
                           "align device memory to 256 bytes");
    }
}

workspace::workspace(workspace&& other) noexcept
    : own_(std::move(other.own_)), hooks_(other.hooks_), hooked_(std::exchange(other.hooked_, nullptr)) {}

workspace& workspace::operator=(workspace&& other) noexcept {
    std::swap(own_, other.own_);
    std::swap(hooks_, other.hooks_);
    std::swap(hooked_, other.hooked_);
    return *this;
}

workspace::~workspace() {
    if (hooked_ != nullptr) {
        hooks_.release(hooks_.user, hooked_);
    }
}

device_tables::device_tables(communicator_state& comm, const resolved_config& config) {
    const placement_tables& t = config.placement;
    std::vector<std::byte> image;
    const auto add = [&image](const auto& table) {
        const std::size_t at = image.size();
        const std::size_t table_bytes = table.size() * sizeof(table[0]);
        image.resize((at + table_bytes + 255) / 256 * 256);
        std::memcpy(image.data() + at, table.data(), table_bytes);
        return at;
    };
    const std::size_t expert_first_at = add(t.expert_first);
    const std::size_t expert_slots_at = add(t.expert_slots);
    const std::size_t slot_rank_at = add(t.slot_rank);
    const std::size_t rank_first_at = add(t.rank_first);
    memory_ = workspace(comm, config.config.memory, image.size());
    bytes = image.size();
    copy_to_device(comm.context, memory_.data(), image.data(), image.size(), nullptr);
    synchronize(comm.context, nullptr);
    comm.runtime->uploads.fetch_add(1, std::memory_order_relaxed);
    const std::byte* base = static_cast<const std::byte*>(memory_.data());
    expert_first = reinterpret_cast<const std::int32_t*>(base + expert_first_at);
    expert_slots = slots_are_experts(t, config.config.num_experts)
                       ? nullptr
                       : reinterpret_cast<const std::uint16_t*>(base + expert_slots_at);
    slot_rank = reinterpret_cast<const std::uint16_t*>(base + slot_rank_at);
    rank_first = reinterpret_cast<const std::int32_t*>(base + rank_first_at);
}

poll_outcome poll_ready(const std::uint32_t* ready, std::uint32_t sequence, std::chrono::milliseconds limit,
                        const std::function<bool()>& running) {
    using clock = std::chrono::steady_clock;
    constexpr auto ask_every = std::chrono::milliseconds(1);
    const clock::time_point start = clock::now();
    clock::time_point next_ask = start + ask_every;
    for (;;) {
        for (int spin = 0; spin < 64; ++spin) {
            if (load_acquire(ready) == sequence) {
                return poll_outcome::ready;
            }
            pause_briefly();
        }
        const clock::time_point now = clock::now();
        if (now < next_ask) {
            continue;
        }
        if (!running()) {
            // Everything the stream wrote is visible now.
            return load_acquire(ready) == sequence ? poll_outcome::ready : poll_outcome::work_ended;
        }
        if (now - start >= limit) {
            return poll_outcome::timed_out;
        }
        next_ask = now + ask_every;
        std::this_thread::yield();
    }
}

bool plan_kernel_runs(const driver_api& api, stream_t stream) {
    const cu_result state = api.stream_query(stream);
    if (state != cu_success && state != cu_not_ready) {
        api.fail(state, "the plan kernel", "");
    }
    return state == cu_not_ready;
}

void report_status(const runtime_state& runtime, const plan_options& options, const plan_status& s, bool& warned) {
    if (s.dropped_rows != 0 && options.overflow == overflow::fail) {
        throw capacity_error(fmt::format("{} rows did not fit the capacity of their rank ({} {})", s.dropped_rows,
                                         name(options.mode), name(options.layout)),
                             "raise plan_args::capacity (exchange::worst_case_rows is always enough), or use "
                             "overflow::drop");
    }
    if (!warned && (s.bad_ids | s.duplicate_ids | s.excess_ids) != 0) {
        warned = true;
        runtime.log().write(log_level::warn,
                            fmt::format("routing: {} ids out of range and {} duplicates were taken as -1, {} experts "
                                        "beyond topk were ignored (said once per exchange; see plan::status)",
                                        s.bad_ids, s.duplicate_ids, s.excess_ids));
    }
}

}  // namespace epjit::host
