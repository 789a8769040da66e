// SPDX-License-Identifier: Apache-2.0
// Routing made into a plan by the CPU: the same arrays with the same meaning as the device's
// (plan_layout.cuh).
#pragma once

#include "host/cpu/buffer.hpp"
#include "host/exchange/backend.hpp"

// The enumerators of id_width are named like the integer types beside them.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include "templates/plan/plan_layout.cuh"
#pragma GCC diagnostic pop

#include <cstdint>
#include <span>
#include <vector>

namespace epjit::host::cpu {

using templates::no_rank;
using templates::plan_entry;

inline constexpr std::uint16_t no_slot = 0xffff;

struct cpu_plan final : plan_state {
    memory_block memory;
    std::span<plan_entry> entries;         ///< [tokens of all ranks, K]
    std::span<std::uint16_t> entry_slots;  ///< [tokens of all ranks, K]
    std::span<std::int32_t> slot_counts;   ///< [S]
    std::span<std::int32_t> slot_offsets;  ///< [S+R]
    std::span<std::int32_t> rank_rows;     ///< [R]
    std::span<std::int64_t> first_token;   ///< [R+1] global index of each rank's token 0
    plan_status counted;
    std::span<std::int32_t> rank_first;  ///< [R+1] first slot of each rank

    [[nodiscard]] plan_view view(int driven) const override;
    [[nodiscard]] plan_status status() const override { return counted; }

    /// Rows for which metadata is written: all rows of the output in exact mode, the capacity otherwise.
    [[nodiscard]] std::int64_t extent(int rank) const noexcept;
};

/// Fills `p` (its options and ranks are set) for the exchange `config`. @throws capacity_error: exact mode,
/// masked, overflow::fail, and a slot gets more rows than the capacity.
void build_plan(cpu_plan& p, const resolved_config& config);

}  // namespace epjit::host::cpu
