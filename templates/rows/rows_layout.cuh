// SPDX-License-Identifier: Apache-2.0
// Arguments of the kernels that move rows: dispatch/permute (token -> rows) and combine/unpermute (rows -> token).
#pragma once

#include "base/types.cuh"
#include "plan/plan_layout.cuh"

namespace epjit::templates {

/// Rows move the same way for one rank (permute, unpermute) and for R (dispatch, combine); only the table in the
/// arguments grows. Three lengths of it serve every R, so that one program serves many; 64 ranks take more than the 4
/// KiB of arguments that drivers before CUDA 12.1 allow.
EPJIT_SHARED constexpr i32 arguments_for_ranks(i32 num_ranks) {
    return num_ranks <= 8 ? 8 : num_ranks <= 32 ? 32 : max_driven_ranks;
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
};

/// Warps of a bulk-copy block that move rows, each with stages / movers rows in flight; one more warp fills the rows
/// that no token has.
EPJIT_SHARED constexpr i32 scatter_movers(const scatter_config& c) {
    return c.stages >= 36 ? 4 : c.stages >= 20 ? 2 : 1;
}

EPJIT_SHARED constexpr i32 scatter_bulk_threads(const scatter_config& c) {
    return (scatter_movers(c) + 1) * 32;
}

/// Dynamic shared memory of scatter_bulk_kernel: the stages' rows and a barrier for each.
EPJIT_SHARED constexpr i32 scatter_bulk_shared_bytes(const scatter_config& c) {
    const i32 stages = c.stages / scatter_movers(c) * scatter_movers(c);
    return stages * (c.hidden * element_bytes(c.output) + 8);
}

/// Compile-time shape of a row-gathering kernel (unpermute, combine, weight gradients).
struct gather_config {
    i32 hidden;
    i32 num_ranks;  ///< as in scatter_config
    i32 topk;
    element type;  ///< of rows, wire and output: bf16, fp16 or f32
    i32 threads;
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
    i32 capacity;  ///< rows (masked: rows per slot)
    i32 reserved;
};
static_assert(sizeof(scatter_rank) == 112);

struct scatter_head {
    const plan_entry* entries;  ///< [num_tokens, K]
    const u16* entry_slots;     ///< [num_tokens, K]
    const i32* rank_first;      ///< [R+1] first slot of each rank
    const i32* slot_counts;     ///< [S]
    const i32* slot_offsets;    ///< [S+R]
    const i32* rank_rows;       ///< [R]
    i32 num_tokens;
    i32 num_slots;
    i32 weight_columns;  ///< row length of weights: K (dense) or E (sparse)
    row_layout layout;
    i32 weigh_input;   ///< multiply each row by its weight before it is written
    i32 zero_padding;  ///< clear rows between a segment's count and its aligned end
    i32 zero_tail;     ///< clear everything beyond the data up to the capacity
    i32 vector_bytes;  ///< widest access that every pointer and stride allows: 16, 8, 4, 2 or 1
    i32 num_ranks;     ///< R, at most what the arguments hold
    i32 reserved;
};
static_assert(sizeof(scatter_head) == 88);

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
    i32 host;  ///< host of the rank for sum_order::per_host
    i32 reserved;
};
static_assert(sizeof(gather_rank) == 80);

struct gather_head {
    const plan_entry* entries;  ///< [num_tokens, K]
    i32 num_tokens;
    i32 weight_columns;
    row_layout layout;
    sum_order order;
    i32 vector_bytes;
    i32 reserved;
};
static_assert(sizeof(gather_head) == 32);

template <i32 NumRanks>
struct gather_args : gather_head {
    gather_rank ranks[NumRanks];
};

}  // namespace epjit::templates
