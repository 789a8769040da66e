// SPDX-License-Identifier: Apache-2.0
// Arguments of the kernels that do a whole dispatch or combine between ranks that store into each other's windows.
#pragma once

#include "base/types.cuh"
#include "exchange/channel_layout.cuh"
#include "rows/rows_layout.cuh"

namespace epjit::templates {

/// The table serves both halves. Of this rank: the caller's input, read by token, and the output. Of a peer: as input
/// where its rows arrive, as output where it wants this rank's; its `local_weights` where it wants their weights. Where
/// the list has a window, the launch is for its tokens, which begin a chunk: up to `num_tokens` of this rank's own, and
/// rows of peers are found by token.
struct dispatch_head : scatter_head {
    rank_link link;
    chunk_flags flags;
    i32 senders;  ///< blocks that send
    i32 chunk;    ///< tokens a flag, the same on every rank
    i32 own_weight_columns;
    i32 send_bytes;  ///< 16 where bulk copies may read the input
    i32 follows;     ///< nothing after the plan in front uses the tensors: senders wait for what it tells
    i32 reserved;
};
static_assert(sizeof(dispatch_head) == 176 + 56 + 24 + 24);

/// Shared memory for what says where a row goes: a line, or a token's entries and positions.
EPJIT_SHARED constexpr i32 dispatch_note_bytes(i32 topk) {
    return max_of(line_bytes(topk), ceil_div(12 * topk, 16) * 16);
}

/// Warps of a sending block that move rows; one more tells the peers. Each stays far ahead of what it waits for, so
/// that few are enough: long rows need two to fill their share of the link.
EPJIT_SHARED constexpr i32 dispatch_send_movers(const scatter_config& c) {
    const i32 wanted = c.hidden * element_bytes(c.output) > 8192 ? 2 : 4;
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
    return bulk_stage_bytes(row_bytes + scale_bytes + dispatch_note_bytes(topk)) + 8 + 8;
}
EPJIT_SHARED constexpr i32 dispatch_shared_bytes(const scatter_config& c) {
    return c.stages * dispatch_stage_bytes(c.hidden * element_bytes(c.output), bulk_scale_bytes(c), c.topk);
}

template <i32 NumRanks>
struct dispatch_args : dispatch_head {
    scatter_rank ranks[NumRanks];
};

/// The table serves both halves. Of this rank: the experts' rows, the caller's weights, the output. Of a peer: where
/// its partial sums arrive, and where it wants this rank's sums. A window is as in dispatch_head.
struct combine_head : gather_head {
    rank_link link;
    chunk_flags flags;
    weight_area line_weights;
    i32 weight_blocks;  ///< the first blocks, which send the weights and nothing else; 0: no weights travel
    i32 senders;        ///< blocks after them, which sum the peers' lines
    i32 own_weight_columns;
    i32 weighted;  ///< weights of lines are awaited
};
static_assert(sizeof(combine_head) == 112 + 56 + 24 + 24 + 16);

/// A team of combine_kernel's block sums rows that bulk copies bring to its ring of stages: threads that sum, a warp
/// that finds rows, one that waits for what is missing and loads them, one that stores the sums; the block has a warp
/// more that tells the peers. Without stages a block is one team and loads rows itself.
struct combine_team_shape {
    i32 stages;    ///< rows of the ring
    i32 sum_rows;  ///< sums on their way out
    i32 row_bytes;
    i32 summers;  ///< threads
    i32 threads;  ///< of the team
};

/// A thread keeps at most 16 elements of a sum, or its registers would not do: the fewest threads for a row, and the
/// most of a block.
inline constexpr i32 most_ring_hidden = 8192;
inline constexpr i32 most_ring_block_threads = 704;  ///< and the warp that tells the peers
inline constexpr i32 most_ring_teams = 4;
inline constexpr i32 ring_helpers = 96;  ///< threads of a team that do not sum
EPJIT_SHARED constexpr i32 ring_threads(i32 hidden) {
    return ceil_div(hidden, 16 * 32) * 32;
}

/// As many teams of a block, of those wanted, as there may be.
EPJIT_SHARED constexpr i32 ring_teams(i32 wanted, i32 hidden, i32 stages) {
    return max_of(1, min_of(min_of(wanted, most_ring_teams),
                            min_of(stages / 4, most_ring_block_threads / (ring_threads(hidden) + ring_helpers))));
}

EPJIT_SHARED constexpr combine_team_shape combine_team_of(const gather_config& c) {
    const bool ring = c.stages != 0;
    return {ring ? c.stages / c.teams - 2 : 0, ring ? 2 : 0, c.hidden * element_bytes(c.type), c.threads,
            c.threads + (ring ? ring_helpers : 32)};
}

EPJIT_SHARED constexpr i32 combine_teams(const gather_config& c) {
    return c.stages != 0 ? c.teams : 1;
}

EPJIT_SHARED constexpr i32 combine_threads(const gather_config& c) {
    return combine_teams(c) * combine_team_of(c).threads + (c.stages != 0 ? 32 : 0);
}

/// Blocks of combine_kernel that an SM is to hold. Those that load rows themselves are many, for more rows in flight:
/// with these the registers do for four rows without a spill.
EPJIT_SHARED constexpr i32 combine_blocks(const gather_config& c) {
    return c.stages != 0 ? 1 : max_of(1, 1024 / combine_threads(c));
}

/// Of the ring: a term and two barriers a stage, two barriers and a place a sum.
inline constexpr i32 combine_stage_extra = 32 + 16;
inline constexpr i32 combine_sum_extra = 16 + 16;

EPJIT_SHARED constexpr i32 combine_team_bytes(const gather_config& c) {
    const combine_team_shape team = combine_team_of(c);
    return team.stages * (team.row_bytes + combine_stage_extra) + team.sum_rows * (team.row_bytes + combine_sum_extra);
}

/// Shared memory that combine_kernel has beside that: tables of ranks, and for each team what is found and what is
/// sent.
EPJIT_SHARED constexpr i32 combine_static_bytes(i32 num_ranks, i32 topk) {
    return 1024 + 8 * num_ranks + most_ring_teams * (4 * (64 * topk + 32) + 512);
}

/// Dynamic shared memory of combine_kernel.
EPJIT_SHARED constexpr i32 combine_shared_bytes(const gather_config& c) {
    return combine_teams(c) * combine_team_bytes(c);
}

template <i32 NumRanks>
struct combine_args : combine_head {
    gather_rank ranks[NumRanks];
};

}  // namespace epjit::templates
