// SPDX-License-Identifier: Apache-2.0
// Weights to the ranks that will apply them, rows back to their tokens' owners, the lines of a window of tokens.
//
// Cost model: send_weights_kernel moves 4*K bytes a token and rank, return_rows_kernel a row an entry, once each way;
// window_lines_kernel reads 4 bytes of a few hundred lines. Launches: 1 each. SMs: as many as there are tokens or
// lines, of the last one.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "exchange/flags.cuh"
#include "exchange/helpers_layout.cuh"
#include "exchange/window_lines.cuh"
#include "rows/row_list.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

inline constexpr i32 helper_threads = 256;

template <exchange_kernels_config Config>
__global__ void __launch_bounds__(helper_threads)
    send_weights_kernel(const __grid_constant__ send_weights_args<Config.num_ranks> args) {
    if (__syncthreads_or(exchange_failed(args.link, lane_op::combine_weights) ? 1 : 0) != 0) {
        return;
    }
    const i64 size = static_cast<i64>(args.num_tokens) * Config.topk;
    const i64 stride = static_cast<i64>(gridDim.x) * helper_threads;
#pragma unroll 1
    for (i64 i = static_cast<i64>(blockIdx.x) * helper_threads + threadIdx.x; i < size; i += stride) {
        const plan_entry entry = args.entries[i];
        if (entry.rank != no_rank) {
            const i64 token = i / Config.topk;
            args.to[entry.rank][static_cast<i64>(args.positions[i]) * Config.topk + i % Config.topk] =
                args.weights != nullptr ? args.weights[token * args.weight_columns + entry.column] : 1.0f;
        }
    }
}

template <i32 Bytes>
__device__ __forceinline__ void copy_bytes(u8* to, const u8* from, i32 bytes) {
#pragma unroll 2
    for (i32 i = static_cast<i32>(threadIdx.x) * Bytes; i < bytes; i += helper_threads * Bytes) {
        store_packet<Bytes>(to + i, load_packet<Bytes>(from + i));
    }
}

template <exchange_kernels_config Config>
__global__ void __launch_bounds__(helper_threads)
    return_rows_kernel(const __grid_constant__ return_rows_args<Config.num_ranks> args) {
    if (list_failed(args)) {
        return;
    }
    const i32 lines = args.list.line_first[args.list.num_ranks];
    i32 rank = 0;
#pragma unroll 1
    for (i32 n = static_cast<i32>(blockIdx.x); n < lines; n += static_cast<i32>(gridDim.x)) {
        while (n >= args.list.line_first[rank + 1]) {
            ++rank;
        }
        const u8* line = line_of<Config.topk>(args, rank, n - args.list.line_first[rank]);
        const i32 token = *reinterpret_cast<const i32*>(line) - args.list.first_token;
        if (token < 0 || token >= args.list.window) {
            continue;
        }
#pragma unroll 1
        for (i32 j = 0; j < Config.topk; ++j) {
            const i32 row = reinterpret_cast<const i32*>(line)[1 + j];
            if (row < 0) {
                continue;
            }
            u8* to = args.to[rank] + (static_cast<i64>(token) * Config.topk + j) * args.to_stride;
            const u8* from = args.rows + row * args.row_stride;
            if (args.vector_bytes == 16) {
                copy_bytes<16>(to, from, args.row_bytes);
            } else {
                copy_bytes<1>(to, from, args.row_bytes);
            }
        }
    }
}

/// For kernels that take a list as it is given.
template <exchange_kernels_config Config>
__global__ void __launch_bounds__(helper_threads) window_lines_kernel(const __grid_constant__ window_lines_args args) {
    if (list_failed(args)) {
        return;
    }
    find_window_lines<Config.topk>(args, args.numbers);
}

#endif

}  // namespace epjit::templates
