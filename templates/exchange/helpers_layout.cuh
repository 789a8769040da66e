// SPDX-License-Identifier: Apache-2.0
// Arguments of the small kernels between a rank's own work and its peers': weights to the ranks that will apply them,
// rows back to their tokens' owners.
#pragma once

#include "base/types.cuh"
#include "exchange/channel_layout.cuh"
#include "rows/rows_layout.cuh"

namespace epjit::templates {

struct send_weights_head {
    const plan_entry* entries;  ///< [T,K]
    const i32* positions;       ///< [T,K]
    const float* weights;       ///< [T, weight_columns]; null: 1 for every entry
    rank_link link;
    i32 num_tokens;
    i32 weight_columns;
};
static_assert(sizeof(send_weights_head) == 24 + 56 + 8);

template <i32 NumRanks>
struct send_weights_args : send_weights_head {
    float* to[NumRanks];  ///< [lines, K]: weight of entry j of the line
};

/// Of the lines whose tokens lie in a window, every row, to the owner's K rows of the token.
struct return_rows_head {
    row_list list;  ///< lines; first_token and window choose
    const u8* rows;
    i64 row_stride;
    i64 to_stride;
    i32 row_bytes;
    i32 vector_bytes;
};
static_assert(sizeof(return_rows_head) == 80 + 32);

/// Arguments of window_lines_kernel: the list's window tells which lines.
struct window_lines_args {
    row_list list;
    i32* numbers;  ///< [window_numbers(R)]
};
static_assert(sizeof(window_lines_args) == 80 + 8);

template <i32 NumRanks>
struct return_rows_args : return_rows_head {
    u8* to[NumRanks];  ///< [window * K] rows
};

}  // namespace epjit::templates
