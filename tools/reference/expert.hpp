// SPDX-License-Identifier: Apache-2.0
// The stand-in expert: multiplies by a per-expert signed power of two and adds a per-expert vector, in fp32, and rounds
// to the combine dtype, so that a row given to the wrong expert shows.
#pragma once

#include "tools/reference/problem.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace epjit::tools::reference {

/// Draws every expert's scale and bias.
void make_experts(problem& p, std::uint64_t seed);

/// out[h] = round(scale[expert] * row[h] + bias[expert][h]) as bits of the combine dtype.
void apply_expert(const problem& p, std::int32_t expert, std::span<const float> row, std::span<std::uint32_t> out);

/// Parameters of one rank's experts, by local slot.
struct local_experts {
    std::vector<float> scale;  ///< [L]
    std::vector<float> bias;   ///< [L,H]
};
local_experts experts_of(const problem& p, std::int32_t rank);

/// Runs the experts of `rank` on what it received: fills `out.expert_rows` from rows, counts and offsets (flat: local
/// ids and weights, summed in fp32 by ascending slot and rounded once, weighted when `weigh_combine` says so, since on
/// flat the caller weighs). Rows that hold no data are left poisoned with 0xff.
void apply_experts(const problem& p, std::int32_t rank, const local_experts& experts, rank_output& out);
void apply_experts(const problem& p, std::int32_t rank, rank_output& out);  ///< with experts_of(p, rank)

/// Values of a dispatched row: fp8 times its scales.
void decode_row(const problem& p, const rank_output& out, std::int64_t row, std::span<float> values);

}  // namespace epjit::tools::reference
