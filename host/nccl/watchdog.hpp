// SPDX-License-Identifier: Apache-2.0
// Sees to it that work which never ends does not hold its stream for ever.
#pragma once

#include "host/nccl/communicator.hpp"

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>

namespace epjit::host {

/// A thread that polls the events of watched work and NCCL's asynchronous errors, off the hot path, and aborts the
/// communicator at the limit.
class nccl_watchdog {
   public:
    explicit nccl_watchdog(nccl_communicator& comm);
    ~nccl_watchdog();
    nccl_watchdog(const nccl_watchdog&) = delete;
    nccl_watchdog& operator=(const nccl_watchdog&) = delete;

    /// See nccl_communicator::watch. Work is not watched while `capacity` older pieces are pending: their limits end
    /// before its own would.
    void watch(const char* phase, stream_t stream);
    /// No watched work is pending.
    [[nodiscard]] bool idle();

   private:
    static constexpr std::size_t capacity = 64;
    struct piece {
        gpu_event event;
        const char* phase = "";
        std::chrono::steady_clock::time_point since;
    };

    void run() noexcept;
    /// Looks at everything once; false when the communicator has failed and there is nothing left to watch.
    bool look() noexcept;
    void abort(nccl_communicator::failure kind, const std::string& text, int code) noexcept;
    [[nodiscard]] std::chrono::milliseconds limit() const noexcept;

    nccl_communicator& comm_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::array<piece, capacity> ring_;
    std::size_t first_ = 0, count_ = 0;
    bool stop_ = false;
    bool succeeded_ = false;  ///< something watched has ended: the ordinary limit holds from then on
    std::thread thread_;
};

}  // namespace epjit::host
