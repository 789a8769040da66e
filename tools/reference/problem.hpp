// SPDX-License-Identifier: Apache-2.0
// One layer's job as plain host data: what every rank brings, and what an exchange made of it. `run`, the property
// tests and the GPU suites all describe a case this way and have it checked by the oracle.
#pragma once

#include "epjit/types.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace epjit::tools::reference {

using bytes = std::vector<std::byte>;

struct rank_input {
    std::int32_t tokens = 0;           ///< T
    std::int32_t capacity = 0;         ///< rows; masked: rows per slot
    bytes routing;                     ///< ids [T,K] of `ids`, or u8 [T,E]
    std::vector<float> weights;        ///< [T,K] or [T,E]
    bytes input;                       ///< [T, input_stride] of `input`
    bytes input_scales;                ///< fp8 pass-through: [T, ceil(H/128)]
    bytes gradient;                    ///< [T,H] of `combine`, or empty
    std::vector<float> row_gradients;  ///< for every row that the output can hold, or empty
};

struct problem {
    std::int32_t ranks = 1, experts = 1, topk = 1, hidden = 1;
    dtype input = dtype::bf16, dispatch = dtype::bf16, combine = dtype::bf16;
    scale_type scales = scale_type::none;
    routing_form form = routing_form::dense;
    id_type ids = id_type::i64;
    epjit::layout layout = layout::expert_major;
    epjit::mode mode = mode::exact;
    epjit::overflow overflow = overflow::fail;
    epjit::reduction reduction = reduction::per_rank;
    std::int32_t alignment = 1;
    std::vector<std::int32_t> slot_expert;  ///< [S]
    std::vector<std::int32_t> rank_slots;   ///< [R]
    bool default_placement = true;          ///< the two above are what the library makes when it is given none
    std::vector<std::int32_t> rank_hosts;   ///< [R]
    std::int64_t input_stride = 0, dispatch_stride = 0, combine_stride = 0;  ///< elements, at least H
    bool weigh_input = false, weigh_combine = false;
    bool zero_padding = true, zero_tail = false;
    bool count_tokens = false;        ///< every rank counts the tokens that want each slot
    bool weight_gradients = false;    ///< ask for them: from row_gradients when those are there, else as dot products
    std::vector<float> expert_scale;  ///< [E] signed powers of two
    std::vector<float> expert_bias;   ///< [E,H]
    std::vector<rank_input> inputs;   ///< [R]
    std::string text;                 ///< the case in a line, for messages

    [[nodiscard]] std::int64_t groups() const noexcept { return (hidden + 127) / 128; }
    [[nodiscard]] std::int64_t weight_columns() const noexcept { return form == routing_form::sparse ? experts : topk; }
    [[nodiscard]] std::int32_t first_slot(std::int32_t rank) const noexcept;
    [[nodiscard]] std::int32_t max_tokens() const noexcept;
};

/// The library's default: expert e is slot e, the first E mod R ranks hold one more.
void place_by_default(problem& p);

/// What one rank got. Arrays cover the rows that were allocated for it.
struct rank_output {
    std::vector<std::int32_t> counts, offsets;  ///< [L], [L+1]
    std::int32_t num_rows = 0;
    std::int64_t allocated_rows = 0;
    bytes rows;                              ///< [allocated, dispatch_stride]
    bytes scales;                            ///< [allocated, ceil(H/128)]
    std::vector<std::int32_t> row_source;    ///< [allocated,2]
    std::vector<float> row_weights;          ///< [allocated]; not on flat
    std::vector<std::int32_t> local_ids;     ///< flat: [allocated,K]
    std::vector<float> local_weights;        ///< flat: [allocated,K]
    bytes expert_rows;                       ///< [allocated, combine_stride] what was given to combine
    bytes result;                            ///< [T, combine_stride]
    std::vector<float> weight_gradients;     ///< [T,K] or [T,E], or empty
    std::vector<std::uint64_t> slot_tokens;  ///< [S] sums over `plans` plans, or empty
    std::uint64_t plans = 0;
};

struct observation {
    std::int32_t first_rank = 0;     ///< rank of the first of `ranks`: a real rank sees only what it got itself
    std::vector<rank_output> ranks;  ///< consecutive
    std::uint64_t bad_ids = 0, duplicate_ids = 0, excess_ids = 0, dropped_rows = 0;
};

}  // namespace epjit::tools::reference
