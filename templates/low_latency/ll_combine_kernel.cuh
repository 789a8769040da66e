// SPDX-License-Identifier: Apache-2.0
// Combine of few tokens between ranks that store into each other's windows: weights go to the holders of the rows and
// sums come back as packets that announce themselves.
//
// Cost model: a token's partial sums cross once a rank in 8/7 of their bytes; one flight over the link, two where
// weights travel, the first of which hides the reading of rows: not those that came with the rows. Launches: 1. SMs: a
// block for each part of a line's sum and of a token's, up to what fits (see ll_dispatch_kernel). In the grid: blocks
// that send weights wait for nothing, blocks that send sums for the peers' weights, blocks that finish tokens for the
// peers' sums.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "exchange/line_terms.cuh"
#include "low_latency/packets.cuh"
#include "rows/gather_kernel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

template <gather_config Config>
struct sum_packets {
    static constexpr sum_record record = sum_record_of(Config.hidden, Config.type);
    static constexpr i32 units = record.units();
    static constexpr i32 words = sum_record::unit_words;
    static constexpr i64 plane = static_cast<i64>(units) * packet_size;
    static constexpr i32 parts = record.parts(Config.threads);  ///< of a sum, each a block's, a thread a unit
};

/// A unit's values.
template <gather_config Config>
struct unit_values {
    static constexpr i32 words = sum_packets<Config>::words;
    using piece = unpacked<Config.type, 4>;
    static constexpr i32 count = words * piece::count;
    float v[count] = {};

    __device__ __forceinline__ void add(const u32 (&w)[words], float weight) {
#pragma unroll
        for (i32 p = 0; p < words; ++p) {
            piece some;
            some.unpack(packet<4>{w[p]});
#pragma unroll
            for (i32 i = 0; i < piece::count; ++i) {
                v[p * piece::count + i] = fmaf(weight, some.values[i], v[p * piece::count + i]);
            }
        }
    }
    /// Adds what another sum is worth on the wire, and clears it.
    __device__ __forceinline__ void take(unit_values& other) {
        u32 w[words];
        other.pack(w);
        add(w, 1.0f);
#pragma unroll
        for (i32 i = 0; i < count; ++i) {
            other.v[i] = 0.0f;
        }
    }
    __device__ __forceinline__ void pack(u32 (&w)[words]) const {
#pragma unroll
        for (i32 p = 0; p < words; ++p) {
            piece some;
#pragma unroll
            for (i32 i = 0; i < piece::count; ++i) {
                some.values[i] = v[p * piece::count + i];
            }
            w[p] = some.pack().v;
        }
    }
};

/// The elements of a word plus zero: none of them is -0 then.
template <element Type>
__device__ __forceinline__ u32 plus_zero(u32 word) {
    if constexpr (Type == element::bf16) {
        asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(word) : "r"(0x3f803f80), "r"(0));
    } else if constexpr (Type == element::fp16) {
        asm("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(word) : "r"(0x3c003c00), "r"(0));
    } else {
        word = __float_as_uint(__uint_as_float(word) + 0.0f);
    }
    return word;
}

/// A unit of the sum of this rank's rows of one token, rounded as it is on the wire. Called by whole warps: lane k has
/// the row of entry k, `used` the lanes that have one. `weigh` gives the lane's weight, for which it may wait: the
/// first rows are on their way by then. False: it did not come.
template <gather_config Config, bool Wide, class Weigh>
__device__ __forceinline__ bool sum_own_rows(const gather_rank& own, i32 row, u32 used, i32 unit, const Weigh& weigh,
                                             u32 (&result)[sum_packets<Config>::words]) {
    using packets = sum_packets<Config>;
    constexpr i32 batch = Wide ? min_of(Config.topk, 4) : 1;
    unit_values<Config> sum;
    float weight = 1.0f;
    bool ok = true;
    const u8* own_row = static_cast<const u8*>(own.rows) + row * own.row_stride;
    const auto at = packets::record.bytes_of(unit);
    u32 rest = used;
#pragma unroll 1
    do {
        u32 rows[batch][packets::words] = {};
        u32 now = rest;
#pragma unroll
        for (i32 n = 0; n < batch; ++n) {
            const u8* of = shuffle_row(own_row, __ffs(static_cast<i32>(rest)) - 1);
            if (rest != 0) {
                load_words(of, at, packets::record.row_bytes, Wide, rows[n]);
            }
            rest &= rest - 1;
        }
        if (now == used) {
            ok = weigh(weight);
        }
#pragma unroll
        for (i32 n = 0; n < batch; ++n) {
            const i32 k = __ffs(static_cast<i32>(now)) - 1;
            const float w = __shfl_sync(full_warp, weight, k & 31);
            if (now != 0) {
                sum.add(rows[n], w);
            }
            now &= now - 1;
        }
    } while (rest != 0);
    sum.pack(result);
#pragma unroll
    for (u32& word : result) {
        word = plus_zero<Config.type>(word);
    }
    return ok;
}

template <gather_config Config, class Weigh>
__device__ __forceinline__ bool sum_rows(const ll_combine_args& args, i32 row, u32 used, i32 unit, const Weigh& weigh,
                                         u32 (&result)[sum_packets<Config>::words]) {
    // On the flat layout a rank has one row of the token, which several entries name.
    const u32 rows = args.layout == row_layout::flat ? used & (0u - used) : used;
    return args.vector_bytes == 16 ? sum_own_rows<Config, true>(args.own, row, rows, unit, weigh, result)
                                   : sum_own_rows<Config, false>(args.own, row, rows, unit, weigh, result);
}

/// The weights of lines of this step.
__device__ __forceinline__ weight_area weights_of(const ll_combine_args& args, const packet_step& at, i32 topk) {
    weight_area area = args.line_weights;
    const i64 words = static_cast<i64>(at.parity()) * args.link.num_ranks * area.lines * topk;
    area.own += words;
    area.offset += words * static_cast<i64>(sizeof(u64));
    return area;
}

/// Sends the weights of this rank's tokens that lie on other ranks, an entry a thread; thread `thread` of `threads`,
/// both of whole warps. Null weights are ones.
template <gather_config Config>
__device__ inline void send_weights(const ll_combine_args& args, const packet_step& shared, i32 thread, i32 threads) {
    constexpr i32 topk = Config.topk;
    const i32 size = args.num_tokens * topk;
    // Where a token's weights lie as its entries do, they are read beside the entries and find theirs in the warp.
    const bool beside = 32 % topk == 0 && args.own_weight_columns == topk;
    const i32 lane = static_cast<i32>(lane_idx());
    packet_step at{};
#pragma unroll 1
    for (i32 i = thread; i == thread || i - lane < size; i += threads) {
        plan_entry entry{-1, no_rank, 0};
        i32 position = 0;
        float weight = 1.0f;
        if (i < size) {
            entry = args.entries[i];
            position = args.list.positions[i];
            if (beside && args.own.weights != nullptr) {
                weight = args.own.weights[i];
            }
        }
        if (i == thread) {
            at = meet_step(shared);
            if (at.may_write == 0) {
                return;
            }
        }
        if (args.own.weights != nullptr) {
            if (beside) {
                weight = __shfl_sync(full_warp, weight, lane / topk * topk + entry.column % topk);
            } else if (entry.rank != no_rank && entry.rank != args.link.me) {
                weight = args.own.weights[static_cast<i64>(i / topk) * args.own_weight_columns + entry.column];
            }
        }
        if (entry.rank != no_rank && entry.rank != args.link.me) {
            const weight_area area = weights_of(args, at, topk);
            u64* to = reinterpret_cast<u64*>(args.link.peers[entry.rank] + area.offset);
            st_relaxed_sys_64(to + (static_cast<i64>(args.link.me) * area.lines + position) * topk + i % topk,
                              static_cast<u64>(at.step) << 32 | __float_as_uint(weight));
        }
    }
}

/// Sums of the peers' lines, to their owners: numbers `first`, `first + step`, ... of all lines' parts.
template <gather_config Config>
__device__ inline void send_sums(const ll_combine_args& args, const packet_step& shared, i32 first, i32 step) {
    using packets = sum_packets<Config>;
    packet_step at{};
    bool met = false;
    i32 n = first;
#pragma unroll 1
    for (i32 r = 1; r < args.link.num_ranks; ++r) {
        const i32 source = peer_after(args.link, r);
        const i32 before = args.list.line_first[source];
        const i32 end = args.list.line_first[source + 1];
#pragma unroll 1
        for (;; n += step) {
            // The line is read before it is known to be one: all loads are under way at once.
            const i32 position = n / packets::parts;
            const bool keeps = args.kept.weights != nullptr;
            i32 row = -1;
            float kept = 0.0f;
            if (position < args.list.list_stride) {
                row = read_line_entry<Config.topk>(args, source, position).row;
                if (keeps && position < args.kept.lines && static_cast<i32>(lane_idx()) < Config.topk) {
                    kept = args.kept.weights[args.kept.at(source, position, Config.topk) + lane_idx()];
                }
            }
            if (!met) {
                met = true;
                at = meet_step(shared);
                if (at.may_write == 0) {
                    return;
                }
            }
            if (position >= end - before) {
                break;
            }
            const i32 unit = (n - position * packets::parts) * Config.threads + static_cast<i32>(threadIdx.x);
            u32 words[packets::words];
            const bool ok = sum_rows<Config>(
                args, row, __ballot_sync(full_warp, row >= 0), unit,
                [&](float& weight) {
                    bool came = row < 0 || args.weighted == 0;
                    if (keeps) {
                        weight = kept;
                    } else if (!came) {
                        const u64* word = line_weight_at<Config.topk>(weights_of(args, at, Config.topk), source,
                                                                      position, static_cast<i32>(lane_idx()));
                        came = await_line_weight(args.link, word, ld_relaxed_sys_64(word), source, at.step, weight);
                    }
                    return __all_sync(full_warp, came) != 0;
                },
                words);
            if (!ok) {
                return;
            }
            if (unit < packets::units) {
                u8* to = record_at(args.sums, args.link, at.parity(), source, position, packets::record.bytes());
                send_packets<sum_record::unit_packets>(to + unit * packet_size, packets::plane, at.step, words);
            }
        }
        n -= (end - before) * packets::parts;
    }
    if (!met) {
        meet_step(shared);
    }
}

/// A token's partial sums in the order of ranks or of hosts: lane k of a warp may have the k-th entry's rank, the first
/// of its kind.
struct partial_sums {
    i32 source = -1;  ///< -1: this lane has none
    i32 position = 0;
    i32 host = 0;
    i32 place = -1;  ///< in the sum
    i32 count = 0;   ///< of all lanes
};

/// Called by whole warps with each lane's entry; `here`: this rank has rows of the token.
template <gather_config Config>
__device__ __forceinline__ partial_sums order_partials(const ll_combine_args& args, const plan_entry& entry,
                                                       i32 position, bool here) {
    partial_sums out;
    const i32 lane = static_cast<i32>(lane_idx());
    const u32 previous = __shfl_up_sync(full_warp, static_cast<u32>(entry.rank), 1);
    const bool first =
        entry.rank != no_rank && (lane == 0 || previous != entry.rank) && (entry.rank != args.link.me || here);
    out.source = first ? entry.rank : -1;
    out.position = position;
    const u32 firsts = __ballot_sync(full_warp, first);
    out.count = __popc(firsts);
    if (args.order == sum_order::per_host) {
        out.host = first ? args.hosts[entry.rank] : 0x7fffffff;
        out.place = 0;
#pragma unroll 1
        for (i32 j = 0; j < Config.topk; ++j) {
            const i32 other = __shfl_sync(full_warp, out.host, j);
            out.place += other < out.host || (other == out.host && j < lane) ? 1 : 0;
        }
    } else {
        out.host = 0;
        out.place = __popc(firsts & ((1u << lane) - 1));
    }
    out.place = first ? out.place : -1;
    return out;
}

/// A unit of a token: this rank's own sum, and those that the others send.
template <gather_config Config>
__device__ __forceinline__ bool sum_partials(const ll_combine_args& args, const packet_step& at,
                                             const partial_sums& partials, i32 unit,
                                             u32 (&words)[sum_packets<Config>::words]) {
    using packets = sum_packets<Config>;
    // Every partial sum is rounded already: it is added as it is.
    unit_values<Config> total;
    unit_values<Config> host_total;
    bool ok = true;
    bool several_hosts = false;
    i32 last_host = 0;
#pragma unroll 1
    for (i32 n = 0; n < partials.count; ++n) {
        const i32 k = __ffs(static_cast<i32>(__ballot_sync(full_warp, partials.place == n))) - 1;
        const i32 source = __shfl_sync(full_warp, partials.source, k);
        const i32 position = __shfl_sync(full_warp, partials.position, k);
        const i32 host = __shfl_sync(full_warp, partials.host, k);
        if (n != 0 && host != last_host) {
            total.take(host_total);
            several_hosts = true;
        }
        last_host = host;
        u32 arrived[packets::words] = {};
        if (source != args.link.me && unit < packets::units && ok) {
            u8* record = record_from(args.sums, args.link, at.parity(), source, position, packets::record.bytes());
            ok = take_packets<sum_record::unit_packets>(record + unit * packet_size, packets::plane, args.link, source,
                                                        at.step, lane_op::combine, arrived);
        }
#pragma unroll
        for (i32 w = 0; w < packets::words; ++w) {
            arrived[w] = source == args.link.me ? words[w] : arrived[w];
        }
        host_total.add(arrived, 1.0f);
    }
    if (several_hosts) {
        total.take(host_total);
        total.pack(words);
    } else {
        host_total.pack(words);
    }
    return ok;
}

/// This rank's tokens: numbers `first`, `first + step`, ... of their parts.
template <gather_config Config>
__device__ inline void finish_tokens(const ll_combine_args& args, const packet_step& shared, i32 first, i32 step) {
    using packets = sum_packets<Config>;
    const i32 lane = static_cast<i32>(lane_idx());
    packet_step at{};
#pragma unroll 1
    for (i32 n = first; n == first || n < args.num_tokens * packets::parts; n += step) {
        const i32 token = n / packets::parts;
        const bool exists = token < args.num_tokens;
        plan_entry entry{-1, no_rank, 0};
        i32 position = -1;
        if (exists && lane < Config.topk) {
            const i64 index = static_cast<i64>(token) * Config.topk + lane;
            entry = args.entries[index];
            position = args.list.positions[index];
        }
        if (n == first) {
            at = meet_step(shared);
        }
        if (!exists || at.lives == 0) {
            return;
        }
        const i32 row = entry.rank == args.link.me ? entry.row : -1;
        const u32 used = __ballot_sync(full_warp, row >= 0);
        const partial_sums partials = order_partials<Config>(args, entry, position, used != 0);
        const i32 unit = (n - token * packets::parts) * Config.threads + static_cast<i32>(threadIdx.x);
        u32 words[packets::words] = {};
        if (used != 0) {
            sum_rows<Config>(
                args, row, used, unit,
                [&](float& weight) {
                    if (row >= 0 && args.own.weights != nullptr) {
                        weight = args.own.weights[static_cast<i64>(token) * args.own_weight_columns + entry.column];
                    }
                    return true;
                },
                words);
        }
        const bool ok = sum_partials<Config>(args, at, partials, unit, words);
        if (!__all_sync(full_warp, ok)) {
            return;
        }
        store_words(static_cast<u8*>(args.own.output) + static_cast<i64>(token) * args.own.output_stride,
                    packets::record.bytes_of(unit), packets::record.row_bytes, args.vector_bytes == 16, words);
    }
}

template <gather_config Config>
__global__ void __launch_bounds__(Config.threads, max_of(1, 512 / Config.threads))
    ll_combine_kernel(const __grid_constant__ ll_combine_args args) {
    __shared__ packet_step step;
    const i32 block = static_cast<i32>(blockIdx.x);
    const i32 owners = args.weight_blocks + args.senders;
    prefetch_link(args.link);
    wait_for_kernel_before();
    learn_step(args.link, lane_area::sum_packets, lane_op::combine, block < owners, step);
    if (block < args.weight_blocks) {
        send_weights<Config>(args, step, block * Config.threads + static_cast<i32>(threadIdx.x),
                             args.weight_blocks * Config.threads);
    } else if (block < owners) {
        send_sums<Config>(args, step, block - args.weight_blocks, args.senders);
    } else {
        finish_tokens<Config>(args, step, block - owners, static_cast<i32>(gridDim.x) - owners);
    }
}

#endif

}  // namespace epjit::templates
