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

template <i32 NumRanks>
struct dispatch_args : dispatch_head {
    scatter_rank ranks[NumRanks];
};

/// The table serves both halves. Of this rank: the experts' rows, the caller's weights, the output. Of a peer: where
/// its partial sums arrive, the weights of its lines, and where it wants this rank's sums.
struct combine_head : gather_head {
    rank_link link;
    chunk_flags flags;
    i32 senders;
    i32 chunk;  ///< lines a flag
    i32 own_weight_columns;
    i32 wait_weights;  ///< the lines' weights come with the lane's last step
};
static_assert(sizeof(combine_head) == 104 + 56 + 24 + 16);

template <i32 NumRanks>
struct combine_args : combine_head {
    gather_rank ranks[NumRanks];
};

}  // namespace epjit::templates
