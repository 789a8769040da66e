// SPDX-License-Identifier: Apache-2.0
// Gradient of the routing weights: a dot product per (token, row), or the experts' per-row gradients brought home.
//
// Cost model: reads T*D*row + T*row bytes, or T*D*4. Launches: 1. SMs: a warp a token. The fp32 order is part of the
// interface: element h belongs to lane (h / 8) mod 32, ascending in each lane, lanes added over distances 16 to 1.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "rows/row_list.cuh"
#include "rows/rows_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Dot product of two rows by one warp; every lane has the result.
template <gather_config Config>
__device__ __forceinline__ float dot_rows(const u8* a, const u8* b) {
    using type = element_of<Config.type>;
    using storage = typename type::storage;
    const storage* left = reinterpret_cast<const storage*>(a);
    const storage* right = reinterpret_cast<const storage*>(b);
    float sum = 0.0f;
#pragma unroll 1
    for (i32 first = static_cast<i32>(lane_idx()) * 8; first < Config.hidden; first += 32 * 8) {
#pragma unroll
        for (i32 j = 0; j < 8; ++j) {
            if (first + j < Config.hidden) {
                sum = fmaf(type::load(left[first + j]), type::load(right[first + j]), sum);
            }
        }
    }
#pragma unroll
    for (i32 d = 16; d > 0; d /= 2) {
        sum += __shfl_xor_sync(full_warp, sum, d);
    }
    return sum;
}

template <gather_config Config>
__global__ void __launch_bounds__(Config.threads)
    weight_gradient_kernel(const __grid_constant__ gather_args<Config.num_ranks> args) {
    const i32 lane = static_cast<i32>(lane_idx());
    const i32 warps = Config.threads / 32;
    if (list_failed(args)) {
        return;
    }
    const i32 tokens = list_size(args);
    i32 rank = 0;
#pragma unroll 1
    for (i32 token = static_cast<i32>(blockIdx.x) * warps + static_cast<i32>(threadIdx.x) / 32; token < tokens;
         token += static_cast<i32>(gridDim.x) * warps) {
        rank = list_rank_of(args, token, rank);
        const gather_rank& owner = args.ranks[rank];
        const i32 in_source = list_local_of(args, token, rank);
        const i64 local = in_source;
        float* out = static_cast<float*>(owner.output) + local * args.weight_columns;
#pragma unroll 1
        for (i32 column = lane; column < args.weight_columns; column += 32) {
            out[column] = 0.0f;
        }
        __syncwarp();
        const plan_entry entry = read_listed_entry<Config.topk>(args, token, rank, in_source).entry;
        const i64 gradient_row = list_row_of<Config.topk>(args, rank, in_source);
#pragma unroll 1
        for (i32 k = 0; k < Config.topk; ++k) {
            const i32 row = __shfl_sync(full_warp, entry.row, k);
            const u32 holder_rank = __shfl_sync(full_warp, static_cast<u32>(entry.rank), k);
            const u32 column = __shfl_sync(full_warp, static_cast<u32>(entry.column), k);
            if (row < 0) {
                continue;
            }
            const gather_rank& holder = args.ranks[holder_rank];
            float gradient = 0.0f;
            if (holder.row_gradients != nullptr) {
                gradient = holder.row_gradients[row];
            } else {
                gradient =
                    dot_rows<Config>(static_cast<const u8*>(owner.gradient) + gradient_row * owner.gradient_stride,
                                     static_cast<const u8*>(holder.rows) + row * holder.row_stride);
            }
            if (lane == 0) {
                out[column] = gradient;
            }
        }
    }
}

#endif

}  // namespace epjit::templates
