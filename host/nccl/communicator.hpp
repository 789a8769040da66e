// SPDX-License-Identifier: Apache-2.0
// One real rank's NCCL communicator: its own or a child of the caller's, never the caller's itself.
#pragma once

#include "host/driver/device.hpp"
#include "host/nccl/api.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
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

/// Thread-compatible: calls come from the rank's own thread; the watchdog has its own.
class nccl_communicator {
   public:
    ~nccl_communicator();
    nccl_communicator(const nccl_communicator&) = delete;
    nccl_communicator& operator=(const nccl_communicator&) = delete;

    [[nodiscard]] std::int32_t rank() const noexcept { return rank_; }
    [[nodiscard]] std::int32_t size() const noexcept { return size_; }
    [[nodiscard]] ncclComm* handle() const noexcept { return handle_; }
    [[nodiscard]] const nccl_api& api() const noexcept { return *api_; }
    [[nodiscard]] const shared_context& context() const noexcept { return context_; }

    // Host memory, for creation time: every rank calls, each waits at most the runtime's limit.
    // @throws timeout_error, nccl_error.
    void all_gather_host(const void* mine, void* all, std::size_t bytes);
    void barrier_host();

    // Device memory, ordered on `stream`, capturable; no allocation and no wait. @throws nccl_error.
    /// One group of uneven sends and receives, the rank's own part copied on the device.
    void exchange(std::span<const peer_transfer> transfers, stream_t stream);
    /// [size, bytes] from every rank's `bytes`; in place when `mine` lies at its place in `all`.
    void all_gather(const void* mine, void* all, std::size_t bytes, stream_t stream);

    /// Names the work enqueued on `stream` so far (outside a capture): the watchdog aborts the communicator when it is
    /// not done within the limit, and check() then throws. Allocation-free.
    void watch(const char* phase, stream_t stream);
    /// @throws timeout_error or nccl_error once the watchdog or NCCL has met a failure.
    void check() const;

   private:
    friend struct nccl_builder;
    nccl_communicator() = default;
    struct watchdog;
    std::shared_ptr<const nccl_api> api_;
    shared_context context_;
    std::shared_ptr<runtime_state> runtime_;
    ncclComm* handle_ = nullptr;
    std::int32_t rank_ = 0;
    std::int32_t size_ = 1;
    std::unique_ptr<watchdog> watchdog_;
};

/// Why symmetric windows cannot be used with this library on this communicator; empty: they can, as far as is known
/// before one is made.
std::string no_windows_reason(const nccl_api& api);

/// Memory of the same size on every rank of a communicator, mapped into each peer that can be reached by loads and
/// stores. Collective to make; freed locally once every rank is done with it (the owner sees to that).
class symmetric_window {
   public:
    symmetric_window() noexcept = default;
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
