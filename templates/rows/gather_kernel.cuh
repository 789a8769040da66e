// SPDX-License-Identifier: Apache-2.0
// Sums each token's rows back into one, in the declared order.
//
// Cost model: reads T*D*row bytes (D rows a token), writes T*row bytes. Launches: 1. SMs: a block a token, as many as
// there are; up to four rows are loaded before the first is added.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "rows/gather_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// fp32 sums at the three levels of an order: a rank's rows, a host's ranks, the token. The orders differ only in
/// where a level closes: per_row never before the end, per_rank takes every rank for a host of its own (its partial is
/// rounded once, rounding it again changes nothing).
template <element Type, i32 Count>
struct ordered_sum {
    float rank[Count] = {};
    float host[Count] = {};
    float total[Count] = {};

    __device__ __forceinline__ void close(bool host_ends) {
#pragma unroll
        for (i32 i = 0; i < Count; ++i) {
            host[i] += round_through<Type>(rank[i]);
            rank[i] = 0.0f;
        }
        if (host_ends) {
#pragma unroll
            for (i32 i = 0; i < Count; ++i) {
                total[i] += round_through<Type>(host[i]);
                host[i] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void add(const float (&values)[Count], float weight) {
#pragma unroll
        for (i32 i = 0; i < Count; ++i) {
            rank[i] = fmaf(weight, values[i], rank[i]);
        }
    }
};

/// Sums packet `index` of the token's rows, `Batch` of them in flight.
template <gather_config Config, i32 Bytes, i32 Batch>
__device__ __forceinline__ packet<Bytes> sum_packet(const row_terms<Config>& terms, sum_order order, i32 index) {
    using values_type = unpacked<Config.type, Bytes>;
    ordered_sum<Config.type, values_type::count> sum;
    const i64 offset = static_cast<i64>(index) * Bytes;
#pragma unroll 1
    for (i32 first = 0; first < terms.count; first += Batch) {
        packet<Bytes> rows[Batch];
#pragma unroll
        for (i32 n = 0; n < Batch; ++n) {
            if (first + n < terms.count) {
                rows[n] = load_packet<Bytes>(terms.term[first + n].row + offset);
            }
        }
        // One copy of the sum's code, the rows moving through the front: unrolled it costs twice the compile time.
        const i32 end = min_of(first + Batch, terms.count);
#pragma unroll 1
        for (i32 n = first; n < end; ++n) {
            if (terms.term[n].boundary != 0) {
                sum.close(terms.term[n].boundary == 2);  // of the rows before; sums of nothing are 0
            }
            values_type values;
            values.unpack(rows[0]);
            sum.add(values.values, terms.term[n].weight);
#pragma unroll
            for (i32 m = 0; m + 1 < Batch; ++m) {
                rows[m] = rows[m + 1];
            }
        }
    }
    values_type result;
    if (order == sum_order::per_row) {
#pragma unroll
        for (i32 i = 0; i < values_type::count; ++i) {
            result.values[i] = sum.rank[i];
        }
        return result.pack();
    }
    sum.close(true);
#pragma unroll
    for (i32 i = 0; i < values_type::count; ++i) {
        result.values[i] = sum.total[i];
    }
    return result.pack();
}

template <gather_config Config, i32 Bytes, i32 Batch>
__device__ __forceinline__ void sum_row(const row_terms<Config>& terms, sum_order order) {
    constexpr i32 packets = Config.hidden * element_bytes(Config.type) / Bytes;
#pragma unroll 1
    for (i32 i = static_cast<i32>(threadIdx.x); i < packets; i += Config.threads) {
        store_packet<Bytes>(terms.output + static_cast<i64>(i) * Bytes,
                            sum_packet<Config, Bytes, Batch>(terms, order, i));
    }
}

template <gather_config Config>
__global__ void __launch_bounds__(Config.threads)
    gather_kernel(const __grid_constant__ gather_args<Config.num_ranks> args) {
    static_assert(Config.threads % 32 == 0 && Config.topk >= 1 && Config.topk <= max_topk);
    static_assert(Config.type != element::fp8_e4m3, "fp8 rows are not summed");
    constexpr i32 widest = row_packet_bytes(static_cast<i64>(Config.hidden) * element_bytes(Config.type));
    __shared__ row_terms<Config> terms[2];
    const bool resolves = threadIdx.x < 32;
    if (list_failed(args)) {
        return;
    }
    const i32 step = static_cast<i32>(gridDim.x);
    const i32 first = args.list.first_token + static_cast<i32>(blockIdx.x);
    const i32 size = list_size(args);
    const i32 tokens = args.list.window == 0 ? size : min_of(size, args.list.first_token + args.list.window);
    i32 rank = 0;
    i32 side = 0;
    // One warp resolves the next token's rows while all sum the current one's; the first round only resolves.
#pragma unroll 1
    for (i32 token = first - step; token < tokens; token += step, side ^= 1) {
        if (resolves && token + step < tokens) {
            rank = list_rank_of(args, token + step, rank);
            resolve_terms<Config>(args, token + step, rank, terms[side ^ 1]);
        }
        if (token >= first) {
            if (args.vector_bytes >= widest) {
                sum_row<Config, widest, min_of(Config.topk, 4)>(terms[side], args.order);
            } else {
                sum_row<Config, element_bytes(Config.type), 1>(terms[side], args.order);
            }
        }
        __syncthreads();
    }
}

#endif

}  // namespace epjit::templates
