// SPDX-License-Identifier: Apache-2.0
// What each rank says of the plan that it makes, beside its counts: NCCL moves whatever calls meet, so that plans of
// two exchanges, or with two bounds, would pass for one.
#pragma once

#include "epjit/types.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/nccl/communicator.hpp"
#include "templates/plan/plan_layout.cuh"

#include <array>
#include <cstdint>

namespace epjit::host {

/// 16 bytes a rank, so that a gather of them keeps its alignment.
struct plan_stamp {
    std::uint32_t exchange = 0;  ///< its number on the communicator, from 1 up; 0: none yet
    std::uint32_t lane = 0;
    std::uint32_t bound = 0;   ///< tokens
    std::uint32_t choice = 0;  ///< mode, layout << 8, and source << 16
    bool operator==(const plan_stamp&) const = default;
};
static_assert(sizeof(plan_stamp) == 16);

class plan_stamps {
   public:
    /// Collective: the ranks agree on the exchange's number. @throws what all_gather_host() throws, cuda_error.
    plan_stamps(communicator_state& comm, std::int32_t lanes);

    /// The gather that belongs into the group of a plan's counts.
    [[nodiscard]] gather_in_place gather(std::int32_t lane) const noexcept;
    /// Before the gather: this rank's stamp, written where it differs from the lane's last.
    void put(std::int32_t lane, std::int32_t bound, mode m, layout l, plan_source source, stream_t stream);
    /// After it: what all ranks said goes to the host, in stream order.
    void fetch(std::int32_t lane, stream_t stream);
    /// @throws config_error that names both once ranks have said different things.
    void check(std::string_view exchange) const;

   private:
    [[nodiscard]] plan_stamp* seen(std::int32_t lane) const noexcept {
        return host_.as<plan_stamp>() + lane * comm_.num_ranks;
    }
    [[nodiscard]] std::int32_t differing(std::int32_t lane, plan_stamp& mine, plan_stamp& other) const noexcept;

    communicator_state& comm_;
    std::uint32_t number_ = 0;
    std::int32_t lanes_ = 0;
    device_buffer device_;  ///< [lanes, R]
    pinned_buffer host_;    ///< [lanes, R]
    std::array<plan_stamp, templates::max_lanes> written_{};
    std::array<bool, templates::max_lanes> captured_{};  ///< a replay may have written another since
};

}  // namespace epjit::host
