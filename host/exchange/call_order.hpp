// SPDX-License-Identifier: Apache-2.0
// The order of calls that come on several streams.
#pragma once

#include "host/driver/device.hpp"

#include <cstdint>
#include <mutex>
#include <vector>

namespace epjit::host {

/// Orders one lane's calls across streams.
class lane_order {
   public:
    lane_order() noexcept = default;
    explicit lane_order(const shared_context& context) : event_(context, false) {}
    /// Makes `stream` wait for the lane's earlier work when that went to another stream; the context is current. Not
    /// across the border of a capture: there the caller orders the replays.
    void on(const device_context& context, stream_t stream);

   private:
    gpu_event event_;
    stream_t last_ = nullptr;
    bool used_ = false;
};

/// Orders the calls of a communicator's exchanges across streams. A kernel that waits for its peers may fill a GPU: if
/// it ran beside another exchange's, a rank could be in the one and its peer in the other, and neither find room.
/// Exchanges are told apart by their address; lanes of one are meant to overlap and are not ordered here.
class exchange_order {
   public:
    /// Where a call begins: `stream` waits for what other exchanges have enqueued on other streams. Not across the
    /// border of a capture. The context is current. @throws cuda_error.
    void begin(const void* exchange, std::int32_t lane, const shared_context& context, stream_t stream);
    /// Where it ends: others wait until here.
    void end(const void* exchange, std::int32_t lane, const device_context& context, stream_t stream) noexcept;
    /// The exchange is gone.
    void forget(const void* exchange) noexcept;

   private:
    struct lane_of {
        const void* exchange;
        std::int32_t lane;
        bool operator==(const lane_of&) const = default;
    };
    struct last_call {
        lane_of by;
        stream_t stream;
        gpu_event end;
        bool recorded = false;           ///< since that call
        std::vector<lane_of> followers;  ///< lanes that wait for it, with all that they do from then on
    };

    [[nodiscard]] last_call* find(const lane_of& lane) noexcept;

    std::mutex mutex_;
    std::vector<last_call> calls_;
    bool several_streams_ = false;  ///< have been seen: ends of calls are recorded
};

/// A call of a lane, from its first launch to its last; the context is current.
class ordered_call {
   public:
    ordered_call(lane_order& lane_calls, exchange_order& order, const void* exchange, std::int32_t lane,
                 const shared_context& context, stream_t stream);
    ~ordered_call();
    ordered_call(const ordered_call&) = delete;
    ordered_call& operator=(const ordered_call&) = delete;

   private:
    exchange_order& order_;
    const void* const exchange_;
    const std::int32_t lane_;
    const shared_context& context_;
    const stream_t stream_;
};

}  // namespace epjit::host
