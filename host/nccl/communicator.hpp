// SPDX-License-Identifier: Apache-2.0
// One real rank's NCCL communicator: its own or a child of the caller's, never the caller's itself.
//
// There are two of them inside. The control communicator is non-blocking: no call on it can hold the thread, each is
// polled against a deadline. Creation, host memory and windows go over it. In that mode NCCL starts a thread for every
// group, so data moves on a blocking child of it, made the same bounded way.
#pragma once

#include "host/driver/device.hpp"
#include "host/nccl/api.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace epjit::host {

struct runtime_state;

/// What one rank sends to and receives from `peer` in a grouped exchange, in bytes; 0 is skipped on both sides.
struct peer_transfer {
    std::int32_t peer = 0;
    const void* send = nullptr;
    std::size_t send_bytes = 0;
    void* receive = nullptr;
    std::size_t receive_bytes = 0;
};

/// An all-gather of `bytes` from every rank, each of which lies at its place in `all`, in device memory.
struct gather_in_place {
    void* all = nullptr;
    std::size_t bytes = 0;
};

/// Thread-compatible: calls come from the rank's own thread; the watchdog has its own.
class nccl_communicator {
   public:
    ~nccl_communicator();
    nccl_communicator(const nccl_communicator&) = delete;
    nccl_communicator& operator=(const nccl_communicator&) = delete;

    [[nodiscard]] std::int32_t rank() const noexcept { return rank_; }
    [[nodiscard]] std::int32_t size() const noexcept { return size_; }
    /// The communicator that moves data. Calls of the caller's own on it belong between lock_calls() and its release.
    [[nodiscard]] ncclComm* handle() const noexcept { return handle_; }
    [[nodiscard]] const nccl_api& api() const noexcept { return *api_; }
    [[nodiscard]] const shared_context& context() const noexcept { return context_; }
    [[nodiscard]] runtime_state& runtime() const noexcept { return *runtime_; }

    // Host memory, for creation time: every rank calls, each waits at most the runtime's first_wait_timeout.
    // @throws timeout_error, nccl_error.
    void all_gather_host(const void* mine, void* all, std::size_t bytes);
    void barrier_host();
    /// Makes NCCL connect every pair, once, and carry out `gathers`, since it may take another way for another size: so
    /// that no later call connects or loads anything. Collective, waits.
    void warm(std::span<const gather_in_place> gathers = {});

    /// A number from 1 up that no exchange on this communicator has had, the same on every rank. Collective.
    std::uint32_t number_exchange();

    // Device memory, ordered on `stream`, capturable; no allocation and no wait. @throws nccl_error.
    /// One group of uneven sends and receives, the rank's own part copied on the device.
    void exchange(std::span<const peer_transfer> transfers, stream_t stream);
    /// [size, bytes] from every rank's `bytes`; in place when `mine` lies at its place in `all`.
    void all_gather(const void* mine, void* all, std::size_t bytes, stream_t stream);
    /// One group of calls on handle(): `enqueue` returns the first result that is not success. @throws nccl_error
    /// naming `call`.
    template <class Enqueue>
    void group(const char* call, Enqueue enqueue) {
        const std::lock_guard lock(calls_);
        const scoped_context current(*context_);
        begin_group();
        end_group(call, enqueue());
    }

    /// Names the work enqueued on `stream` so far (outside a capture; see watched_groups for replays): the watchdog
    /// aborts the communicator when it is not done within the limit, and check() then throws. Allocation-free. `phase`
    /// is text of the program's.
    void watch(const char* phase, stream_t stream);
    /// @throws timeout_error or nccl_error once the watchdog or NCCL has met a failure.
    void check() const;
    /// `word`, in device memory, is made non-zero before this communicator is aborted, so that kernels which follow the
    /// aborted work find out and leave what did not arrive alone. Until forget().
    void tell_on_failure(std::uint32_t* word);
    void forget(const std::uint32_t* word) noexcept;

   private:
    friend struct nccl_builder;
    friend class symmetric_window;
    friend class nccl_watchdog;
    friend class watched_groups;
    enum class failure : int { none, timeout, nccl };
    struct staging;

    nccl_communicator();
    void open(const std::shared_ptr<runtime_state>& runtime, const shared_context& context);
    void close() noexcept;

    void connect_pairs(stream_t stream);
    void begin_group();
    void end_group(const char* call, nccl_result enqueued);
    /// Waits until a call on a non-blocking communicator is done. @throws after aborting when it fails or takes too
    /// long.
    void settle(ncclComm* comm, nccl_result result, const char* call);
    /// Waits for the work on the private stream, bounded alike.
    void wait_private(const char* phase);
    /// Of a host-side wait that did not end; the caller holds `calls_`.
    [[noreturn]] void fail(failure kind, const std::string& text, int code);
    /// Aborts what is ours, once; the caller holds `calls_` or has waited for it in vain.
    void abort_now(failure kind, const std::string& text, int code) noexcept;

    std::shared_ptr<const nccl_api> api_;
    shared_context context_;
    std::shared_ptr<runtime_state> runtime_;
    ncclComm* handle_ = nullptr;
    ncclComm* control_ = nullptr;  ///< handle_ itself where there is no second one
    std::int32_t rank_ = 0;
    std::int32_t size_ = 1;

    std::mutex words_mutex_;
    std::vector<std::uint32_t*> words_;  ///< of tell_on_failure
    gpu_stream words_stream_;            ///< made with the first of them
    void tell_words() noexcept;
    std::mutex calls_;  ///< calls on the communicators and their abort exclude each other
    std::atomic<failure> failure_{failure::none};
    mutable std::mutex failure_mutex_;
    std::string failure_text_;
    int failure_code_ = 0;
    std::unique_ptr<staging> staging_;
    std::uint32_t exchanges_ = 0;
    bool connected_ = false;  ///< every pair, by warm()
    std::unique_ptr<class nccl_watchdog> watchdog_;
};

/// Why symmetric windows cannot be used with this library on this communicator; empty: they can, as far as is known
/// before one is made.
std::string no_windows_reason(const nccl_api& api);

/// Memory of the same size on every rank of a communicator, mapped into each peer that can be reached by loads and
/// stores. Collective to make; freed locally once every rank is done with it (the owner sees to that).
class symmetric_window {
   public:
    symmetric_window() noexcept;
    /// Zero filled. A word has been written through every reachable peer pointer and seen by its owner.
    /// @throws unsupported_error with the reason (no window support, a NULL window), nccl_error, timeout_error; on
    /// every rank when on one.
    symmetric_window(std::shared_ptr<nccl_communicator> comm, std::size_t bytes);
    ~symmetric_window();
    symmetric_window(symmetric_window&&) noexcept;
    symmetric_window& operator=(symmetric_window&&) noexcept;

    [[nodiscard]] std::size_t bytes() const noexcept;
    [[nodiscard]] void* local() const noexcept;
    /// Where rank `rank`'s memory is mapped here; null where it cannot be reached. peer(own rank) is local().
    [[nodiscard]] void* peer(std::int32_t rank) const noexcept;
    /// Ranks that can be reached, ascending, this one among them.
    [[nodiscard]] const std::vector<std::int32_t>& reachable() const noexcept;

   private:
    struct state;
    std::unique_ptr<state> state_;
};

}  // namespace epjit::host
