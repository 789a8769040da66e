// SPDX-License-Identifier: Apache-2.0
// The lines of a window of tokens. Where a call's rows do not all fit the memory they travel through, they travel by
// windows: the tokens [first_token, first_token + window) of every source at a time, each row at the place of its
// token. What a list's lines are narrowed to is found here: a source's lines are in the order of its tokens.
#pragma once

#include "base/device.cuh"
#include "rows/row_list.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// The first line of `source` in [low, high) whose token is not below `token`, else `high`. Called by whole warps,
/// which narrow the range to a 33rd with each load.
template <i32 TopK, class Args>
__device__ inline i32 first_line_from(const Args& args, i32 source, i32 low, i32 high, i32 token) {
#pragma unroll 1
    while (low < high) {
        const i32 stride = ceil_div(high - low, 33);
        const i32 probe = low + (static_cast<i32>(lane_idx()) + 1) * stride - 1;
        const bool below = probe < high && list_token_of<TopK>(args, source, probe) < token;
        const i32 lower = __popc(__ballot_sync(full_warp, below));
        low += lower * stride;
        high = lower == 32 ? high : min_of(high, low + stride - 1);
    }
    return low;
}

/// Finds which lines of each source the list's window has: window_numbers() `numbers`, in shared memory or the block's
/// own. Called by all threads of the block, which may read them afterwards.
template <i32 TopK, class Args>
__device__ inline void find_window_lines(const Args& args, i32* numbers) {
    const row_list& list = args.list;
    i32* first = numbers;
    i32* skip = numbers + list.num_ranks + 1;
    const i32 end = list.first_token + list.window;
#pragma unroll 1
    for (i32 s = static_cast<i32>(threadIdx.x) / 32; s < list.num_ranks; s += static_cast<i32>(blockDim.x) / 32) {
        const i32 lines = list.line_first[s + 1] - list.line_first[s];
        const i32 low = list.first_token == 0 ? 0 : first_line_from<TopK>(args, s, 0, lines, list.first_token);
        // Most often the last window: one load tells.
        const bool all = low == lines || list_token_of<TopK>(args, s, lines - 1) < end;
        const i32 high = all ? lines : first_line_from<TopK>(args, s, low, lines, end);
        if (lane_idx() == 0) {
            skip[s] = low;
            first[s + 1] = high - low;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        first[0] = 0;
#pragma unroll 1
        for (i32 s = 0; s < list.num_ranks; ++s) {
            first[s + 1] += first[s];
        }
    }
    __syncthreads();
}

/// Narrows the list to the lines that were found.
__device__ __forceinline__ void use_window_lines(row_list& list, const i32* numbers) {
    list.line_first = numbers;
    list.line_skip = numbers + list.num_ranks + 1;
}

/// Lines of a source that are listed, and the position of the n-th of them.
template <class Args>
__device__ __forceinline__ i32 lines_of(const Args& args, i32 source) {
    return args.list.line_first[source + 1] - args.list.line_first[source];
}
template <class Args>
__device__ __forceinline__ i32 line_position(const Args& args, i32 source, i32 n) {
    return n + (args.list.line_skip != nullptr ? args.list.line_skip[source] : 0);
}

/// Where the row of a line lies among those of its source: by its token where there is a window, else its position.
template <i32 TopK, class Args>
__device__ __forceinline__ i32 place_of_line(const Args& args, i32 source, i32 position) {
    return args.list.window != 0 ? list_token_of<TopK>(args, source, position) : position;
}

#endif

}  // namespace epjit::templates
