// SPDX-License-Identifier: Apache-2.0
// What both halves of a dispatch of packets share: units of rows, and what travels beside a row, to their places.
#pragma once

#include "base/device.cuh"
#include "low_latency/packets.cuh"
#include "rows/scatter_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// One rank's part as the row functions take it: a table with one line.
struct own_rank_phase : scatter_head {
    struct one_rank {
        const scatter_rank* own;
        __device__ __forceinline__ const scatter_rank& operator[](i32) const { return *own; }
    } ranks;

    __device__ __forceinline__ explicit own_rank_phase(const ll_dispatch_args& args)
        : scatter_head(args), ranks{&args.own} {}
};

template <scatter_config Config>
struct row_packets {
    static constexpr row_record record = row_record_of(Config.hidden, Config.output, Config.scales, Config.topk);
    static constexpr i32 units = record.units();
    static constexpr i32 words = row_record::unit_words;
    static constexpr i64 plane = static_cast<i64>(units) * packet_size;
    static constexpr i64 tail = plane * row_record::unit_packets;
    static constexpr i32 unit_threads = row_unit_threads(Config.threads);
    static constexpr i32 parts = record.parts(unit_threads);  ///< of a row, each a block's
    static constexpr i32 scale_bytes_of_row = ceil_div(Config.hidden, scale_group) * scale_bytes(Config.scales);
    static constexpr i32 scale_words_of_row = scale_words(Config.hidden, Config.scales);
};

/// Stores unit `unit` of a row at every place of this rank that `t` leads to. Called by whole warps.
template <scatter_config Config>
__device__ __forceinline__ void store_unit(const ll_dispatch_args& args, const token_entries& t, i32 unit,
                                           const u32 (&words)[row_packets<Config>::words]) {
    const auto at = row_packets<Config>::record.bytes_of(unit);
    u8* own_row = static_cast<u8*>(args.own.output) + t.entry.row * args.own.output_stride;
    for (u32 leaders = __ballot_sync(full_warp, t.leads); leaders != 0; leaders &= leaders - 1) {
        store_words(shuffle_row(own_row, __ffs(static_cast<i32>(leaders)) - 1), at,
                    row_packets<Config>::record.row_bytes, args.vector_bytes == 16, words);
    }
}

/// Bytes 4*word to 4*word+3 of a row's scales; of an e8m0 row the last word may be short.
template <scatter_config Config>
__device__ __forceinline__ u32 load_scale_word(const u8* scales, i32 word) {
    if constexpr (Config.scales == group_scale::f32) {
        return reinterpret_cast<const u32*>(scales)[word];
    }
    u32 value = 0;
#pragma unroll
    for (i32 b = 0; b < 4; ++b) {
        if (word * 4 + b < row_packets<Config>::scale_bytes_of_row) {
            value |= static_cast<u32>(scales[word * 4 + b]) << 8 * b;
        }
    }
    return value;
}

template <scatter_config Config>
__device__ __forceinline__ void store_scale_word(u8* scales, i32 word, u32 value) {
    if constexpr (Config.scales == group_scale::f32) {
        reinterpret_cast<u32*>(scales)[word] = value;
    } else {
#pragma unroll
        for (i32 b = 0; b < 4; ++b) {
            if (word * 4 + b < row_packets<Config>::scale_bytes_of_row) {
                scales[word * 4 + b] = static_cast<u8>(value >> 8 * b);
            }
        }
    }
}

/// One scale word to every place of this rank. Called by whole warps; lanes without a word have `word` below 0.
template <scatter_config Config>
__device__ __forceinline__ void store_scale_words(const ll_dispatch_args& args, const token_entries& t, i32 word,
                                                  u32 value) {
    for (u32 leaders = __ballot_sync(full_warp, t.leads); leaders != 0; leaders &= leaders - 1) {
        const i32 row = __shfl_sync(full_warp, t.entry.row, __ffs(static_cast<i32>(leaders)) - 1);
        if (word >= 0 && word < row_packets<Config>::scale_words_of_row) {
            store_scale_word<Config>(
                static_cast<u8*>(args.own.output_scales) + static_cast<i64>(row) * args.own.output_scale_stride, word,
                value);
        }
    }
}

#endif

}  // namespace epjit::templates
