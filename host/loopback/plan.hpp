// SPDX-License-Identifier: Apache-2.0
// A plan of the loopback exchange: device memory that kernels fill, pinned memory that the host reads.
#pragma once

#include "host/driver/device.hpp"
#include "host/exchange/backend.hpp"
#include "host/exchange/device_memory.hpp"
#include "host/loopback/arguments.hpp"

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace epjit::host {

/// What the plan kernel has told the host about launch `sequence`.
struct plan_report {
    bool complete = false;
    bool timed_out = false;
    plan_status status;
};

class loopback_plan final : public plan_state {
   public:
    [[nodiscard]] plan_view view(int driven) const override;
    [[nodiscard]] plan_status status() const override;
    [[nodiscard]] plan_report report() const noexcept;

    // Kept when the plan is made anew in the same memory.
    workspace device;
    pinned_buffer pinned;  ///< plan_status, then [S] slot counts and [R] rows
    plan_memory memory;
    std::int64_t token_capacity = 0;
    std::vector<std::int32_t> rank_first;  ///< [R+1]
    std::int32_t first_driven = 0;
    // Of the current routing.
    std::uint32_t sequence = 0;
    bool exact = false;
    std::array<std::int32_t, templates::max_driven_ranks> rows{};        ///< what fill_scatter_args takes
    std::array<std::int64_t, templates::max_driven_ranks> known_rows{};  ///< exact: rows of each rank, else -1

    [[nodiscard]] const templates::plan_status* host_status() const noexcept {
        return pinned.as<const templates::plan_status>();
    }
    [[nodiscard]] const std::int32_t* host_counts() const noexcept {
        return reinterpret_cast<const std::int32_t*>(pinned.as<const std::byte>() + counts_offset);
    }
    static constexpr std::size_t counts_offset = 256;
};

}  // namespace epjit::host
