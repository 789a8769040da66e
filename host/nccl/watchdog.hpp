// SPDX-License-Identifier: Apache-2.0
// Sees to it that work which never ends does not hold its stream for ever.
#pragma once

#include "host/driver/device.hpp"
#include "host/nccl/communicator.hpp"

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace epjit::host {

/// What the replays of captured groups of one owner say, in pinned memory: the stream writes `inside` before a group,
/// `ended` and then a zero `inside` after it. The watchdog takes `ended` back, so that it sees the next end however
/// quickly replays follow each other.
struct replay_words {
    std::uint32_t inside = 0;  ///< which group, from 1 up
    std::uint32_t ended = 0;
};

/// Groups of NCCL calls of one owner, one after another: watched when they are issued, and in every replay of a graph
/// that they were captured into. The owner lives until its graphs have been replayed for the last time.
class watched_groups {
   public:
    /// @throws cuda_error.
    explicit watched_groups(std::shared_ptr<nccl_communicator> comm);
    ~watched_groups();
    watched_groups(const watched_groups&) = delete;
    watched_groups& operator=(const watched_groups&) = delete;

    /// Around the calls of one group; `phase` is text of the program's. Allocation-free. A driver that cannot record
    /// what a replay is to say leaves the replays unwatched, which is logged once.
    void begin(const char* phase, stream_t stream);
    void end(stream_t stream);

   private:
    friend class nccl_watchdog;
    static constexpr std::size_t most_phases = 16;

    void write(stream_t stream, std::size_t offset, std::uint32_t value);
    [[nodiscard]] const char* phase_of(std::uint32_t inside) const noexcept;

    std::shared_ptr<nccl_communicator> comm_;
    pinned_buffer memory_;
    std::array<const char*, most_phases> phases_{};
    const char* phase_ = "";
    bool captured_ = false;  ///< the group between begin() and end()
    bool warned_ = false;
    // The watchdog's, under its mutex.
    bool waiting_ = false;
    std::chrono::steady_clock::time_point since_;
};

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
    void add(watched_groups* groups);
    void remove(const watched_groups* groups) noexcept;

   private:
    friend class watched_groups;
    static constexpr std::size_t capacity = 64;
    struct piece {
        gpu_event event;
        const char* phase = "";
        std::chrono::steady_clock::time_point since;
    };

    /// Work that has been under way for too long, if any.
    struct late_work {
        const char* phase = nullptr;
        std::chrono::milliseconds waited{0};
        bool replayed = false;
    };

    void run() noexcept;
    late_work late_event() noexcept;
    late_work late_replay() noexcept;
    /// Looks at everything once; false when the communicator has failed and there is nothing left to watch.
    bool look() noexcept;
    void abort(nccl_communicator::failure kind, const std::string& text, int code) noexcept;
    [[nodiscard]] std::chrono::milliseconds limit() const noexcept;

    nccl_communicator& comm_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::array<piece, capacity> ring_;
    std::size_t first_ = 0, count_ = 0;
    std::vector<watched_groups*> groups_;
    bool stop_ = false;
    bool succeeded_ = false;  ///< something watched has ended: the ordinary limit holds from then on
    std::thread thread_;
};

}  // namespace epjit::host
