// SPDX-License-Identifier: Apache-2.0
// Random cases for the exchanges on GPUs. Shapes, which need compiling, come from a small pool; everything that is a
// run-time argument is drawn anew for each case.
#pragma once

#include "tools/reference/problem.hpp"

#include <cstdint>
#include <random>
#include <vector>

namespace epjit::tests {

/// What is compiled for: all that reaches a key.
struct shape {
    std::int32_t ranks = 1, experts = 1, slots = 1, topk = 1, hidden = 1;
    dtype input = dtype::bf16, dispatch = dtype::bf16, combine = dtype::bf16;
    scale_type scales = scale_type::none;
    routing_form form = routing_form::dense;
};

/// `count` shapes that between them hold every dtype, both scale types, all routing forms, R 1 to 64, K 1 to 32,
/// E 1 to 2048, replicas, E not divisible by R, and row lengths of every access width.
std::vector<shape> draw_shapes(std::mt19937_64& random, int count);

/// How a case is run, beside what the problem says.
struct run_style {
    int iterations = 1;
    bool halves = false;
};

/// What an exchange is made with: shape, placement, hosts, experts.
tools::reference::problem draw_job(const shape& s, std::mt19937_64& random);

struct call_limits {
    std::int64_t elements = 0;    ///< moved, about, so that the reference stays quick
    std::int32_t max_tokens = 0;  ///< of a rank
};
/// Everything else of `p`, drawn anew: what one call on that exchange brings.
void draw_call(tools::reference::problem& p, std::mt19937_64& random, const call_limits& limits, run_style& style);

/// One case of a shape: different data on every rank, skewed and empty ranks, -1, bad and duplicate ids, padding,
/// strides, capacities that drop rows. About `budget` elements are moved, so that the reference stays quick.
tools::reference::problem draw_case(const shape& s, std::mt19937_64& random, std::int64_t budget, run_style& style);

}  // namespace epjit::tests
