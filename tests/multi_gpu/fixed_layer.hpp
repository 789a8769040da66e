// SPDX-License-Identifier: Apache-2.0
// Layers that are run again and again: experts return what they get, so that no visit to the host lies between dispatch
// and combine, and shapes are given instead of drawn.
#pragma once

#include "tests/multi_gpu/world.hpp"
#include "tools/reference/problem.hpp"

#include <cstdint>
#include <string>

namespace epjit::tests {

struct fixed_shape {
    std::int32_t hidden = 256, experts = 16, topk = 4, tokens = 64;
    dtype type = dtype::bf16;
    epjit::layout layout = layout::expert_major;
    epjit::mode mode = mode::fixed;
    epjit::reduction reduction = reduction::per_rank;
    bool weigh_combine = true;
    bool low_latency = false;  ///< `tokens` is the exchange's ll_max_tokens_per_rank
};

/// Every rank brings `tokens` tokens (rank r r fewer, at least one); capacities that are always enough. The seed gives
/// ids, weights and rows. Not flat.
tools::reference::problem make_fixed(const fixed_shape& s, std::int32_t ranks, std::uint64_t seed);

/// Empty when a rank's result is right, else words.
std::string compare_with_oracle(const tools::reference::problem& p, const tools::reference::observation& seen);

}  // namespace epjit::tests
