// SPDX-License-Identifier: Apache-2.0
// Writes each token's row to the places its experts want, through registers: any row length and alignment, weights on
// the way, and the fused fp8 quantiser. Runs on every target.
//
// Cost model: reads T*row bytes once (again for each weighted row), writes T*D*row bytes (D rows a token). Launches: 1.
// SMs: a block a token, as many as there are; rows are accessed with the widest access that divides them when every
// address allows it, else element by element.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "rows/rows_layout.cuh"
#include "rows/scatter_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// One place a token's row goes, resolved by the block's first warp.
struct row_target {
    u8* row;
    u8* scales;
    float weight;
};

/// Where the current token's rows go.
template <scatter_config Config>
struct row_targets {
    row_target target[Config.topk];
    i32 count;
    const u8* input;
};

/// First warp: the token's targets; its metadata on the way.
template <scatter_config Config, class Args>
__device__ inline void resolve_targets(const Args& args, i32 token, i32 rank, row_targets<Config>& out) {
    const token_entries t = read_entries<Config>(args, token, rank);
    const u32 leaders = __ballot_sync(full_warp, t.leads);
    const u32 lane = lane_idx();
    if (t.leads) {
        const scatter_rank& to = args.ranks[t.entry.rank];
        const i64 row = t.entry.row;
        row_target& target = out.target[__popc(leaders & ((1u << lane) - 1))];
        target.row = static_cast<u8*>(to.output) + row * to.output_stride;
        target.scales = static_cast<u8*>(to.output_scales) + row * to.output_scale_stride;
        target.weight = t.weight;
    }
    if (lane == 0) {
        const scatter_rank& from = args.ranks[rank];
        out.count = __popc(leaders);
        out.input = static_cast<const u8*>(from.input) + static_cast<i64>(t.source_row) * from.input_stride;
    }
    write_metadata<Config>(args, t);
    if constexpr (Config.input == element::fp8_e4m3 && Config.scales != group_scale::none) {
        copy_scales<Config>(args, t);
    }
}

/// Writes the row to its targets, `Bytes` at a time; weighted: fp32 product with each target's weight, one rounding.
template <scatter_config Config, i32 Bytes>
__device__ __forceinline__ void copy_row(const row_targets<Config>& to, bool weigh) {
    constexpr i32 packets = Config.hidden * element_bytes(Config.output) / Bytes;
#pragma unroll 1
    for (i32 i = static_cast<i32>(threadIdx.x); i < packets; i += Config.threads) {
        const packet<Bytes> read = load_packet<Bytes>(to.input + static_cast<i64>(i) * Bytes);
#pragma unroll 1
        for (i32 n = 0; n < to.count; ++n) {
            packet<Bytes> p = read;
            if constexpr (Config.output != element::fp8_e4m3) {
                if (weigh) {
                    unpacked<Config.output, Bytes> values;
                    values.unpack(read);
#pragma unroll
                    for (i32 j = 0; j < values.count; ++j) {
                        values.values[j] *= to.target[n].weight;
                    }
                    p = values.pack();
                }
            }
            store_packet<Bytes>(to.target[n].row + static_cast<i64>(i) * Bytes, p);
        }
    }
}

/// amax / 448, for ue8m0 the next power of two up; 1 for a group of zeros or so small that the quotient is 0.
template <group_scale Scales>
__device__ __forceinline__ float scale_of_amax(float amax) {
    if (amax == 0.0f) {
        return 1.0f;
    }
    const float scale = amax / 448.0f;
    if constexpr (Scales == group_scale::ue8m0) {
        const u32 bits = __float_as_uint(scale);
        // Exponents 0 and 255 of ue8m0 are 2^-127 and NaN; anything at or below 2^-127 takes the smallest.
        const u32 exponent = bits <= 0x00400000u ? 0 : (bits + 0x007fffffu) >> 23;
        return exponent == 0 ? bits_to_float(0x00400000u) : bits_to_float(min_of(exponent, 254u) << 23);
    } else {
        return scale == 0.0f ? 1.0f : scale;  // an amax near the smallest denormal
    }
}

template <group_scale Scales>
__device__ __forceinline__ void store_scale(u8* scales, i32 group, float scale) {
    if constexpr (Scales == group_scale::ue8m0) {
        scales[group] = static_cast<u8>(__float_as_uint(scale) >> 23);
    } else {
        reinterpret_cast<float*>(scales)[group] = scale;
    }
}

/// Quantises one group of 128 in a warp, four neighbours a lane, and writes it to the targets [first, last).
template <scatter_config Config>
__device__ __forceinline__ void quantise_group(const row_targets<Config>& to, const float (&values)[4], i32 group,
                                               i32 first, i32 last, bool wide) {
    float amax = 0.0f;
#pragma unroll
    for (i32 j = 0; j < 4; ++j) {
        amax = fmaxf(amax, fabsf(values[j]));
    }
#pragma unroll
    for (i32 d = 16; d > 0; d /= 2) {
        amax = fmaxf(amax, __shfl_xor_sync(full_warp, amax, d));
    }
    const float scale = scale_of_amax<Config.scales>(amax);
    const u32 low = floats_to_fp8x2(values[0] / scale, values[1] / scale);
    const u32 codes = low | static_cast<u32>(floats_to_fp8x2(values[2] / scale, values[3] / scale)) << 16;
    const i32 lane = static_cast<i32>(lane_idx());
    const i32 element = group * scale_group + lane * 4;
#pragma unroll 1
    for (i32 n = first; n < last; ++n) {
        u8* row = to.target[n].row + element;
        if (wide && element + 4 <= Config.hidden) {
            *reinterpret_cast<u32*>(row) = codes;
        } else {
#pragma unroll 1
            for (i32 j = 0; j < 4 && element + j < Config.hidden; ++j) {
                row[j] = static_cast<u8>(codes >> 8 * j);
            }
        }
        if (lane == 0) {
            store_scale<Config.scales>(to.target[n].scales, group, scale);
        }
    }
}

/// The fused quantiser: a warp a group. Weighting, where asked for, comes first and makes each row's codes its own.
template <scatter_config Config>
__device__ __forceinline__ void quantise_row(const row_targets<Config>& to, bool weigh, bool wide) {
    using input = element_of<Config.input>;
    using storage = typename input::storage;
    constexpr i32 groups = ceil_div(Config.hidden, scale_group);
    const i32 lane = static_cast<i32>(lane_idx());
#pragma unroll 1
    for (i32 group = static_cast<i32>(threadIdx.x) / 32; group < groups; group += Config.threads / 32) {
        const i32 element = group * scale_group + lane * 4;
        const storage* in = reinterpret_cast<const storage*>(to.input) + element;
        float values[4];
#pragma unroll
        for (i32 j = 0; j < 4; ++j) {
            values[j] = element + j < Config.hidden ? input::load(in[j]) : 0.0f;
        }
        if (!weigh) {
            quantise_group<Config>(to, values, group, 0, to.count, wide);
            continue;
        }
#pragma unroll 1
        for (i32 n = 0; n < to.count; ++n) {
            float weighted[4];
#pragma unroll
            for (i32 j = 0; j < 4; ++j) {
                weighted[j] = values[j] * to.target[n].weight;
            }
            quantise_group<Config>(to, weighted, group, n, n + 1, wide);
        }
    }
}

/// One token by the whole block.
template <scatter_config Config, class Args>
__device__ __forceinline__ void write_row(const Args& args, const row_targets<Config>& to) {
    constexpr i32 widest = row_packet_bytes(static_cast<i64>(Config.hidden) * element_bytes(Config.output));
    const bool weigh = args.weigh_input != 0;
    if constexpr (Config.input != Config.output) {
        quantise_row<Config>(to, weigh, args.vector_bytes >= 4);
    } else if (args.vector_bytes >= widest) {
        copy_row<Config, widest>(to, weigh);
    } else {
        copy_row<Config, element_bytes(Config.output)>(to, weigh);
    }
}

template <scatter_config Config>
__global__ void __launch_bounds__(Config.threads, 6)
    scatter_kernel(const __grid_constant__ scatter_args<Config.num_ranks> args) {
    static_assert(Config.threads % 32 == 0 && Config.topk >= 1 && Config.topk <= max_topk);
    static_assert(Config.input == Config.output || Config.output == element::fp8_e4m3, "the only conversion is to fp8");
    static_assert(Config.input == Config.output || Config.scales != group_scale::none, "fp8 needs scales");
    __shared__ row_targets<Config> targets[2];
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    if (list_failed(args)) {
        return;
    }
    fill_unused_rows<Config>(args, static_cast<i32>(blockIdx.x) * (Config.threads / 32) + warp,
                             static_cast<i32>(gridDim.x) * (Config.threads / 32));
    const i32 tokens = list_size(args);
    i32 rank = 0;
    i32 side = 0;
#pragma unroll 1
    for (i32 token = static_cast<i32>(blockIdx.x); token < tokens; token += static_cast<i32>(gridDim.x)) {
        rank = list_rank_of(args, token, rank);
        if (warp == 0) {
            resolve_targets<Config>(args, token, rank, targets[side]);
        }
        __syncthreads();
        write_row<Config>(args, targets[side]);
        side ^= 1;  // the first warp may resolve the next token while others still write this one
    }
}

#endif

}  // namespace epjit::templates
