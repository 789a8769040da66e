// SPDX-License-Identifier: Apache-2.0
// Arguments of the kernels that do a whole dispatch or combine between ranks that store into each other's windows.
#pragma once

#include "base/types.cuh"
#include "exchange/channel_layout.cuh"
#include "rows/rows_layout.cuh"

namespace epjit::templates {

/// The table serves both halves. Of this rank: the caller's input, read by token, and the output. Of a peer: as input
/// where its rows arrive, as output where it wants this rank's; its `local_weights` where it wants their weights.
struct dispatch_head : scatter_head {
    rank_link link;
    chunk_flags flags;
    i32 senders;  ///< blocks that send
    i32 chunk;    ///< tokens a flag, the same on every rank
    i32 own_weight_columns;
    i32 send_bytes;  ///< 16 where bulk copies may read the input
};
static_assert(sizeof(dispatch_head) == 168 + 56 + 24 + 16);

/// Shared memory for what says where a row goes: a line, or a token's entries and positions.
EPJIT_SHARED constexpr i32 dispatch_note_bytes(i32 topk) {
    return max_of(line_bytes(topk), ceil_div(12 * topk, 16) * 16);
}

/// Warps of a sending block that move rows; one more tells the peers. Each stays far ahead of what it waits for, so
/// that few are enough: long rows need two to fill their share of the link.
EPJIT_SHARED constexpr i32 dispatch_send_movers(const scatter_config& c) {
    const i32 wanted = c.hidden * element_bytes(c.output) >= 8192 ? 2 : 4;
    return max_of(1, min_of(wanted, c.stages / 4));
}

/// Threads of dispatch_kernel: the movers of an expanding block and a warp that fills rows, or those of a sending one.
EPJIT_SHARED constexpr i32 dispatch_threads(const scatter_config& c) {
    return (max_of(scatter_movers(c), dispatch_send_movers(c)) + 1) * 32;
}

/// Shared memory that dispatch_kernel has for its table of ranks.
EPJIT_SHARED constexpr i32 dispatch_static_bytes(i32 num_ranks) {
    return static_cast<i32>(sizeof(scatter_head)) + num_ranks * (static_cast<i32>(sizeof(scatter_rank)) + 4) + 1024;
}

/// Dynamic shared memory of dispatch_kernel: the stages' rows with what travels beside them, a barrier and a line's
/// place for each.
EPJIT_SHARED constexpr i32 dispatch_stage_bytes(i32 row_bytes, i32 scale_bytes, i32 topk) {
    return row_bytes + scale_bytes + dispatch_note_bytes(topk) + 8 + 8;
}
EPJIT_SHARED constexpr i32 dispatch_shared_bytes(const scatter_config& c) {
    return c.stages *
           dispatch_stage_bytes(c.hidden * element_bytes(c.output), bulk_scale_bytes(c), c.topk);
}

template <i32 NumRanks>
struct dispatch_args : dispatch_head {
    scatter_rank ranks[NumRanks];
};

/// The table serves both halves. Of this rank: the experts' rows, the caller's weights, the output. Of a peer: where
/// its partial sums arrive, and where it wants this rank's sums.
struct combine_head : gather_head {
    rank_link link;
    chunk_flags flags;
    weight_area line_weights;
    i32 senders;
    i32 weight_senders;  ///< of them, the first, which send weights before their sums; 0: no weights travel
    i32 own_weight_columns;
    i32 weighted;  ///< weights of lines are awaited
};
static_assert(sizeof(combine_head) == 104 + 56 + 24 + 24 + 16);

/// Threads of combine_kernel: those that sum and a warp that finds the next rows, waits and sends meanwhile.
EPJIT_SHARED constexpr i32 combine_threads(const gather_config& c) {
    return c.threads + 32;
}

/// Blocks of combine_kernel that an SM is to hold: with these the registers do for four rows in flight without a spill.
EPJIT_SHARED constexpr i32 combine_blocks(const gather_config& c) {
    return max_of(1, 1024 / combine_threads(c));
}

/// Dynamic shared memory of combine_kernel: two rows that bulk copies take to the peers; 0 where they cannot, or where
/// rows are so long that few blocks would fit.
EPJIT_SHARED constexpr i32 combine_shared_bytes(const gather_config& c) {
    const i32 row_bytes = c.hidden * element_bytes(c.type);
    return row_bytes % 16 == 0 && row_bytes <= 32 * 1024 ? 2 * row_bytes : 0;
}

template <i32 NumRanks>
struct combine_args : combine_head {
    gather_rank ranks[NumRanks];
};

}  // namespace epjit::templates
