// SPDX-License-Identifier: Apache-2.0
// Arguments of the kernels that move rows: dispatch/permute (token -> rows) and combine/unpermute (rows -> token).
#pragma once

#include "base/types.cuh"
#include "plan/plan_layout.cuh"

namespace epjit::templates {

/// How rows of the plan become rows of memory.
enum class row_numbering : i32 {
    plan = 0,       ///< as the plan's entries say
    position = 1,   ///< the position of the token's line in its rank's list
    token = 2,      ///< the token's own number
    entry = 3,      ///< K rows a token, one an entry, counted from `first_token`
    line_entry = 4  ///< K rows a line, one an entry
};

/// Which tokens a kernel works on. Without `lines` they are those of the per-rank table. With them they are the lines
/// that have reached rank `me`, by source: the place of a line in its source's memory is its position.
struct row_list {
    const u8* lines;        ///< [R, list_stride, line_bytes], or null
    const i32* line_first;  ///< [R+1] lines before those of each source
    const i32* line_skip;   ///< [R] lines of each source that come before those that are listed; null: none
    const i32* positions;   ///< [T,K], for row_numbering::position and line_entry
    const u32* failed;      ///< non-zero: the exchange has failed, nothing is touched; null: never
    i32 list_stride;
    i32 me;
    row_numbering numbering;
    i32 skip_rank;     ///< scatter: rank whose rows are not written, or -1
    i32 first_token;   ///< first token of the window that is worked on
    i32 window;        ///< tokens of it; 0: all
    i32 num_ranks;     ///< R
    i32 merge;         ///< above 1: ranks r / merge are one, in every numbering but the plan's
    i32 first_holder;  ///< rows of ranks other than these are left out, in every numbering but the plan's
    i32 num_holders;   ///< 0: of none
};
static_assert(sizeof(row_list) == 80);

/// What a list's lines are narrowed by: line_first of R ranks, closed, then line_skip.
EPJIT_SHARED constexpr i32 window_numbers(i32 num_ranks) {
    return 2 * num_ranks + 1;
}

/// Compile-time shape of a row-scattering kernel (permute, dispatch).
struct scatter_config {
    i32 hidden;          ///< H, elements of a row
    i32 num_ranks;       ///< ranks that the arguments hold: R or more (arguments_for_ranks)
    i32 topk;            ///< K
    element input;       ///< element type of the caller's rows
    element output;      ///< equal to input, or fp8_e4m3 for the fused quantiser
    group_scale scales;  ///< fp8 output: scales written (quantiser) or passed through
    i32 threads;         ///< per block of the general kernel
    i32 stages;          ///< rows in flight of the bulk-copy kernel; 0 where it does not exist
    i32 movers;          ///< warps that share them; 0: by the number of stages
};

/// Warps of a bulk-copy block that move rows, each with stages / movers rows in flight; one more warp fills the rows
/// that no token has.
EPJIT_SHARED constexpr i32 scatter_movers(const scatter_config& c) {
    return c.movers != 0 ? c.movers : c.stages >= 36 ? 3 : c.stages >= 20 ? 2 : 1;
}

EPJIT_SHARED constexpr i32 scatter_bulk_threads(const scatter_config& c) {
    return (scatter_movers(c) + 1) * 32;
}

/// A stage of bulk copies in shared memory: they are a fifth slower from and to addresses that are no multiples of 32.
EPJIT_SHARED constexpr i32 bulk_stage_bytes(i32 bytes) {
    return ceil_div(bytes, 32) * 32;
}

/// Dynamic shared memory of scatter_bulk_kernel: the stages' rows and a barrier for each.
EPJIT_SHARED constexpr i32 scatter_bulk_shared_bytes(const scatter_config& c) {
    const i32 stages = c.stages / scatter_movers(c) * scatter_movers(c);
    return stages * (bulk_stage_bytes(c.hidden * element_bytes(c.output)) + 8);
}

/// Bytes of a row's scales where bulk copies can take them beside the row, else 0.
EPJIT_SHARED constexpr i32 bulk_scale_bytes(i32 hidden, group_scale scales) {
    const i32 bytes = ceil_div(hidden, scale_group) * scale_bytes(scales);
    return bytes % 16 == 0 ? bytes : 0;
}
EPJIT_SHARED constexpr i32 bulk_scale_bytes(const scatter_config& c) {
    return bulk_scale_bytes(c.hidden, c.scales);
}

/// Compile-time shape of a row-gathering kernel (unpermute, combine, weight gradients).
struct gather_config {
    i32 hidden;
    i32 num_ranks;  ///< as in scatter_config
    i32 topk;
    element type;  ///< of rows, wire and output: bf16, fp16 or f32
    i32 threads;   ///< of a block, or of a team where there are teams
    i32 stages;    ///< combine between ranks: rows of a block in shared memory; 0: none
    i32 teams;     ///< that share them
};

/// What each driven rank brings to a scatter, as source (input) and as destination (output). Strides are in bytes.
struct scatter_rank {
    const void* input;         ///< [T,H]
    const void* input_scales;  ///< fp8 pass-through: [T, ceil(H/128)], else null
    const float* weights;      ///< [T,K] or [T,E], or null
    void* output;              ///< [rows,H]
    void* output_scales;       ///< [rows, ceil(H/128)], or null
    i32* row_source;           ///< [rows,2] (rank, token), -1 filled, or null
    float* row_weights;        ///< [rows] weight of the row, 0 filled (expert_major, masked), or null
    i32* local_ids;            ///< flat: [rows,K] local slots that want the row, ascending, -1 filled, or null
    float* local_weights;      ///< flat: [rows,K] their weights, 0 filled, or null
    i64 input_stride;
    i64 output_stride;
    i32 input_scale_stride;
    i32 output_scale_stride;
    i32 first_token;  ///< global index of token 0
    i32 num_tokens;
    i32 capacity;            ///< rows (masked: rows per slot)
    i32 by_token;            ///< with lines: rows of `input` are numbered by token, not by position
    i32 own_weight_columns;  ///< with lines: non-zero where `weights` are the caller's own, by token: their row length
    i32 reserved;
};
static_assert(sizeof(scatter_rank) == 120);

struct scatter_head {
    row_list list;
    const plan_entry* entries;  ///< [num_tokens, K]
    const u16* entry_slots;     ///< [num_tokens, K]
    const i32* rank_first;      ///< [R+1] first slot of each rank
    const i32* slot_counts;     ///< [S]
    const i32* slot_offsets;    ///< [S+R]
    const i32* rank_rows;       ///< [R]
    i32 num_tokens;
    i32 weight_columns;  ///< row length of weights: K (dense and lines) or E (sparse)
    row_layout layout;
    i32 weigh_input;      ///< multiply each row by its weight before it is written
    i32 zero_padding;     ///< clear rows between a segment's count and its aligned end
    i32 zero_tail;        ///< clear everything beyond the data up to the capacity
    i32 vector_bytes;     ///< widest access that every pointer and stride allows: 16, 8, 4, 2 or 1
    i32 fill_first_slot;  ///< slots whose padding or tail this launch fills: [first, last)
    i32 fill_last_slot;
    i32 fill_first_rank;  ///< ranks whose rows beyond the data it fills
    i32 fill_last_rank;
    i32 reserved;
};
static_assert(sizeof(scatter_head) == 80 + 96);

template <i32 NumRanks>
struct scatter_args : scatter_head {
    scatter_rank ranks[NumRanks];
};

/// What each driven rank brings to a gather, as holder of rows and as owner of tokens.
struct gather_rank {
    const void* rows;            ///< [rows,H] what the experts produced
    const float* weights;        ///< [T,K] or [T,E]; null means 1
    void* output;                ///< [T,H]; of weight gradients: f32 [T,K] or [T,E]
    const void* gradient;        ///< weight gradients: [T,H] gradient of the combined output, or null
    const float* row_gradients;  ///< weight gradients: f32 [rows], copied as they are, or null
    i64 row_stride;
    i64 output_stride;
    i64 gradient_stride;
    i32 first_token;
    i32 num_tokens;
    i32 host;      ///< host of the rank for sum_order::per_host
    i32 by_token;  ///< with lines: rows of `output` and `gradient` are numbered by token, not by position
};
static_assert(sizeof(gather_rank) == 80);

struct gather_head {
    row_list list;
    const plan_entry* entries;  ///< [num_tokens, K]
    i32 num_tokens;
    i32 weight_columns;
    row_layout layout;
    sum_order order;
    i32 vector_bytes;
    i32 reserved;
};
static_assert(sizeof(gather_head) == 80 + 32);

template <i32 NumRanks>
struct gather_args : gather_head {
    gather_rank ranks[NumRanks];
};

}  // namespace epjit::templates
