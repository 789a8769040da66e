// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/communicator.hpp"

#include "epjit/error.hpp"
#include "host/nccl/bounded.hpp"
#include "host/nccl/watchdog.hpp"
#include "host/runtime/runtime_state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <thread>

namespace epjit::host {
namespace {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// How long closing waits for NCCL; then what is left is given up.
constexpr milliseconds close_limit{10'000};

cu_pointer address(const void* pointer) noexcept {
    return reinterpret_cast<cu_pointer>(pointer);
}

}  // namespace

/// Memory for creation-time exchanges of host data, grown when needed, and a stream of its own for them.
struct nccl_communicator::staging {
    gpu_stream stream;
    gpu_event event;
    pinned_buffer host;
    device_buffer device;

    void grow(runtime_state& runtime, const shared_context& context, std::size_t bytes) {
        if (host.bytes() >= bytes) {
            return;
        }
        const std::size_t size = std::max<std::size_t>(bytes, 4096);
        host = pinned_buffer(context, size);
        device = device_buffer(context, size);
        runtime.allocations.fetch_add(2, std::memory_order_relaxed);
    }
};

nccl_communicator::nccl_communicator() = default;

void nccl_communicator::open(const std::shared_ptr<runtime_state>& runtime, const shared_context& context) {
    runtime_ = runtime;
    context_ = context;
    staging_ = std::make_unique<staging>();
    staging_->stream = gpu_stream(context);
    staging_->event = gpu_event(context, false);
    watchdog_ = std::make_unique<nccl_watchdog>(*this);
}

nccl_communicator::~nccl_communicator() {
    close();
}

void nccl_communicator::close() noexcept {
    if (control_ == nullptr) {
        return;
    }
    try {
        // Work that is still under way ends by itself or by the watchdog's abort.
        const clock::time_point until = clock::now() + std::max(runtime_->options.wait_timeout, close_limit);
        while (watchdog_ != nullptr && failure_.load() == failure::none && !watchdog_->idle() && clock::now() < until) {
            std::this_thread::sleep_for(milliseconds{1});
        }
        watchdog_.reset();
        if (failure_.load() != failure::none) {
            return;  // aborted
        }
        const auto end = [api = api_, data = handle_ == control_ ? nullptr : handle_, control = control_] {
            nccl_result worst = nccl_success;
            for (ncclComm* comm : {data, control}) {
                if (comm == nullptr) {
                    continue;
                }
                nccl_result result = host::settle(*api, comm, api->comm_finalize(comm), clock::now() + close_limit / 2);
                // A communicator that cannot be finished in time is taken down; peers may be gone.
                result = result == nccl_success ? api->comm_destroy(comm) : api->comm_abort(comm);
                worst = result != nccl_success && result != nccl_in_progress ? result : worst;
            }
            return worst;
        };
        const std::optional<nccl_result> result = call_bounded(context_, end, clock::now() + close_limit);
        if (!result) {
            runtime_->log().write(
                log_level::warn,
                fmt::format("{}: NCCL did not release its communicator within {} ms; it is left to the end of the "
                            "process. Graphs that hold NCCL calls must be destroyed before the communicator",
                            rank_text(rank_, size_), close_limit.count()));
        }
    } catch (...) {
        // No thread or no memory: the communicator is left to the end of the process.
    }
    control_ = handle_ = nullptr;
}

void nccl_communicator::check() const {
    const failure kind = failure_.load(std::memory_order_acquire);
    if (kind == failure::none) {
        return;
    }
    const std::lock_guard lock(failure_mutex_);
    if (kind == failure::timeout) {
        throw timeout_error(failure_text_,
                            "look at the other ranks, or raise EPJIT_WAIT_TIMEOUT_MS; the communicator is gone: make a "
                            "new one");
    }
    throw nccl_error(failure_text_, failure_code_, "look at the other ranks; the communicator is gone: make a new one");
}

void nccl_communicator::tell_on_failure(std::uint32_t* word) {
    const std::lock_guard lock(words_mutex_);
    if (words_stream_.get() == nullptr) {
        words_stream_ = gpu_stream(context_);
    }
    words_.push_back(word);
}

void nccl_communicator::forget(const std::uint32_t* word) noexcept {
    const std::lock_guard lock(words_mutex_);
    std::erase(words_, word);
}

void nccl_communicator::tell_words() noexcept {
    const std::lock_guard lock(words_mutex_);
    const driver_api& driver = context_->api();
    for (std::uint32_t* word : words_) {
        // A stream of its own: the work that hangs does not hold it up. An error means a lost context.
        driver.fill_bytes(reinterpret_cast<cu_pointer>(word), 1, sizeof *word, words_stream_.get());
    }
    const clock::time_point until = clock::now() + milliseconds{200};
    while (!words_.empty() && driver.stream_query(words_stream_.get()) == cu_not_ready && clock::now() < until) {
        std::this_thread::sleep_for(milliseconds{1});
    }
}

void nccl_communicator::abort_now(failure kind, const std::string& text, int code) noexcept {
    {
        const std::lock_guard lock(failure_mutex_);
        if (failure_.load() != failure::none) {
            return;
        }
        failure_text_ = text;
        failure_code_ = code;
        failure_.store(kind, std::memory_order_release);
    }
    runtime_->log().write(log_level::error, text);
    cu_context previous = nullptr;
    const bool current = context_->api().context_push(context_->handle()) == cu_success;
    tell_words();
    if (current) {
        context_->api().context_pop(&previous);
    }
    ncclComm* const both[] = {control_, handle_};
    if (!abort_together(context_, api_, std::span(both).first(handle_ != control_ ? 2 : 1),
                        clock::now() + close_limit)) {
        runtime_->log().write(log_level::warn,
                              fmt::format("{}: NCCL did not end the abort of its communicator within {} ms; it is left "
                                          "to the end of the process",
                                          rank_text(rank_, size_), close_limit.count()));
    }
}

void nccl_communicator::fail(failure kind, const std::string& text, int code) {
    abort_now(kind, text, code);
    check();
    throw error(error_kind::internal, text);  // check() has thrown
}

void nccl_communicator::settle(ncclComm* comm, nccl_result result, const char* call) {
    const milliseconds limit = std::max(runtime_->options.first_wait_timeout, runtime_->options.wait_timeout);
    const nccl_result end = host::settle(*api_, comm, result, clock::now() + limit);
    if (end == nccl_in_progress) {
        fail(failure::timeout,
             fmt::format("{}: {} was not done after {} ms: not every rank has made this call; its communicator was "
                         "aborted",
                         rank_text(rank_, size_), call, limit.count()),
             0);
    }
    if (end != nccl_success) {
        const char* last = api_->last_error != nullptr ? api_->last_error(comm) : nullptr;
        fail(failure::nccl,
             fmt::format("{}: {} failed with {}{}{} (NCCL {})", rank_text(rank_, size_), call, api_->text(end),
                         last != nullptr && *last != '\0' ? "; last error: " : "", last != nullptr ? last : "",
                         api_->version_text()),
             end);
    }
}

void nccl_communicator::wait_private(const char* phase) {
    const milliseconds limit = std::max(runtime_->options.first_wait_timeout, runtime_->options.wait_timeout);
    const clock::time_point until = clock::now() + limit;
    staging_->event.record(staging_->stream.get());
    for (milliseconds pause{0}; !staging_->event.done(); pause = milliseconds{1}) {
        if (clock::now() >= until) {
            fail(failure::timeout,
                 fmt::format("{}: {} was not done on the GPU after {} ms; its communicator was aborted",
                             rank_text(rank_, size_), phase, limit.count()),
                 0);
        }
        std::this_thread::sleep_for(pause);
    }
}

void nccl_communicator::all_gather_host(const void* mine, void* all, std::size_t bytes) {
    const std::lock_guard lock(calls_);
    check();
    if (size_ == 1 || bytes == 0) {
        std::memcpy(all, mine, bytes);
        return;
    }
    const scoped_context current(*context_);
    staging& s = *staging_;
    const auto num_ranks = static_cast<std::size_t>(size_);
    s.grow(*runtime_, context_, bytes * (num_ranks + 1));
    std::memcpy(s.host.data(), mine, bytes);
    std::byte* const gathered = s.device.as<std::byte>() + bytes;
    copy_to_device(context_, s.device.data(), s.host.data(), bytes, s.stream.get());
    settle(control_, api_->all_gather(s.device.data(), gathered, bytes, nccl_type::uint8, control_, s.stream.get()),
           "exchanging host data (ncclAllGather)");
    copy_to_host(context_, s.host.as<std::byte>() + bytes, gathered, bytes * num_ranks, s.stream.get());
    wait_private("exchanging host data (ncclAllGather)");
    std::memcpy(all, s.host.as<std::byte>() + bytes, bytes * num_ranks);
}

void nccl_communicator::barrier_host() {
    const std::int32_t mine = rank_;
    std::vector<std::int32_t> all(static_cast<std::size_t>(size_));
    all_gather_host(&mine, all.data(), sizeof mine);
}

std::uint32_t nccl_communicator::number_exchange() {
    // The highest of all, and not merely the next: one that failed on some ranks is counted by the others only.
    std::vector<std::uint32_t> all(static_cast<std::size_t>(size_));
    all_gather_host(&exchanges_, all.data(), sizeof exchanges_);
    return exchanges_ = *std::max_element(all.begin(), all.end()) + 1;
}

void nccl_communicator::warm(std::span<const gather_in_place> gathers) {
    barrier_host();  // from here on no rank waits for one that has not come
    if (size_ == 1) {
        return;
    }
    const stream_t stream = staging_->stream.get();
    if (!connected_) {
        connect_pairs(stream);
        connected_ = true;
    }
    for (const gather_in_place& g : gathers) {
        all_gather(static_cast<std::byte*>(g.all) + static_cast<std::size_t>(rank_) * g.bytes, g.all, g.bytes, stream);
    }
    const std::lock_guard lock(calls_);
    wait_private("connecting every pair of ranks");
}

void nccl_communicator::connect_pairs(stream_t stream) {
    constexpr std::size_t bytes = 16;
    const auto num_ranks = static_cast<std::size_t>(size_);
    {
        const std::lock_guard lock(calls_);
        staging_->grow(*runtime_, context_, 2 * bytes * num_ranks);
    }
    std::byte* const send = staging_->device.as<std::byte>();
    std::byte* const receive = send + bytes * num_ranks;
    std::vector<peer_transfer> transfers;
    for (std::int32_t peer = 0; peer < size_; ++peer) {
        const std::size_t at = bytes * static_cast<std::size_t>(peer);
        transfers.push_back({peer, send + at, bytes, receive + at, bytes});
    }
    exchange(transfers, stream);
    all_gather(send, receive, bytes, stream);
}

void nccl_communicator::begin_group() {
    check();
    if (const nccl_result result = api_->group_start(); result != nccl_success) {
        api_->fail(result, "ncclGroupStart", rank_text(rank_, size_));
    }
}

void nccl_communicator::end_group(const char* call, nccl_result enqueued) {
    nccl_result result = api_->group_end();
    if (enqueued != nccl_success && enqueued != nccl_in_progress) {
        api_->fail(enqueued, call, rank_text(rank_, size_));
    }
    if (result == nccl_in_progress) {
        settle(handle_, result, call);  // where data moves on a non-blocking communicator
        return;
    }
    if (result != nccl_success) {
        api_->fail(result, call, rank_text(rank_, size_));
    }
}

void nccl_communicator::exchange(std::span<const peer_transfer> transfers, stream_t stream) {
    const std::lock_guard lock(calls_);
    const scoped_context current(*context_);
    const driver_api& driver = context_->api();
    bool far = false;
    for (const peer_transfer& t : transfers) {
        if (t.peer != rank_) {
            far = far || t.send_bytes > 0 || t.receive_bytes > 0;
            continue;
        }
        if (t.send_bytes != t.receive_bytes) {
            throw error(error_kind::internal, fmt::format("rank {} sends itself {} bytes and receives {}", rank_,
                                                          t.send_bytes, t.receive_bytes));
        }
        if (t.send_bytes > 0 && t.send != t.receive) {
            driver.check(driver.copy_on_device(address(t.receive), address(t.send), t.send_bytes, stream),
                         "cuMemcpyDtoDAsync");
        }
    }
    if (!far) {
        check();
        return;
    }
    begin_group();
    nccl_result result = nccl_success;
    const auto keep = [&result](nccl_result r) {
        if (result == nccl_success && r != nccl_in_progress) {
            result = r;
        }
    };
    for (const peer_transfer& t : transfers) {
        if (t.peer == rank_) {
            continue;
        }
        if (t.send_bytes > 0) {
            keep(api_->send(t.send, t.send_bytes, nccl_type::uint8, t.peer, handle_, stream));
        }
        if (t.receive_bytes > 0) {
            keep(api_->receive(t.receive, t.receive_bytes, nccl_type::uint8, t.peer, handle_, stream));
        }
    }
    end_group("a group of ncclSend and ncclRecv", result);
}

void nccl_communicator::all_gather(const void* mine, void* all, std::size_t bytes, stream_t stream) {
    group("ncclAllGather", [&] { return api_->all_gather(mine, all, bytes, nccl_type::uint8, handle_, stream); });
}

void nccl_communicator::watch(const char* phase, stream_t stream) {
    watchdog_->watch(phase, stream);
}

}  // namespace epjit::host
