// SPDX-License-Identifier: Apache-2.0
// Dispatch of few tokens between ranks that store into each other's windows: rows travel as packets that announce
// themselves, straight from the caller's input and straight to their places.
//
// Cost model: a row crosses once a rank in 4/3 of its bytes; one flight over the link, no flag and no round of steps.
// Launches: 1. SMs: a block for each part of a token's row and of an arriving line's, up to what fits: an SM stores 46
// GB/s into a peer's memory, so a row of 14 KiB leaves one in 0.4 us and four in 0.1. Senders come first in the grid
// and wait for nothing in it; receivers wait for the peers' senders.
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
    static constexpr packet_record record = row_record(Config.hidden, Config.output, Config.scales, Config.topk);
    static constexpr i32 units = record.units();
    static constexpr i32 words = record.unit_words();
    static constexpr i64 plane = static_cast<i64>(units) * packet_size;
    static constexpr i64 tail = plane * record.unit_packets;
    static constexpr i32 unit_threads = row_unit_threads(Config.threads);
    static constexpr i32 parts = record.parts(unit_threads);  ///< of a row, each a block's
    static constexpr i32 scale_bytes_of_row = ceil_div(Config.hidden, scale_group) * scale_bytes(Config.scales);
    static constexpr i32 scale_words_of_row = scale_words(Config.hidden, Config.scales);
    static_assert(record.unit_packets == 4);
};

/// Stores a unit of a row at every place of this rank that `t` leads to. Called by whole warps; threads without a unit
/// have `at` beyond the row.
template <scatter_config Config>
__device__ __forceinline__ void store_unit(const ll_dispatch_args& args, const token_entries& t, i32 at,
                                           const u32 (&words)[row_packets<Config>::words]) {
    for (u32 leaders = __ballot_sync(full_warp, t.leads); leaders != 0; leaders &= leaders - 1) {
        const i32 row = __shfl_sync(full_warp, t.entry.row, __ffs(static_cast<i32>(leaders)) - 1);
        store_words(static_cast<u8*>(args.own.output) + static_cast<i64>(row) * args.own.output_stride, at,
                    row_packets<Config>::record.row_bytes, args.vector_bytes == 16, words);
    }
}

template <scatter_config Config>
__device__ __forceinline__ void mark_leaders(const ll_dispatch_args& args, token_entries& t) {
    const u32 before = __shfl_up_sync(full_warp, static_cast<u32>(t.entry.rank), 1);
    t.leads = t.has_row() && (args.layout != row_layout::flat || lane_idx() == 0 || before != t.entry.rank);
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

/// A pass of the senders: who is served in it.
struct send_pass {
    bool peers;
    bool places;  ///< of this rank
};

/// What travels beside a token's row, to its peers in packets and to its places here. By one warp; `away` has a bit for
/// the first entry of each peer that is served.
template <scatter_config Config>
__device__ inline void send_tail(const ll_dispatch_args& args, const own_rank_phase& phase, const token_entries& t,
                                 u32 away, u32 step, bool places) {
    using packets = row_packets<Config>;
    const i32 lane = static_cast<i32>(lane_idx());
    const u8* scales = nullptr;
    if constexpr (Config.scales != group_scale::none) {
        scales = static_cast<const u8*>(args.own.input_scales) +
                 static_cast<i64>(t.source_token) * args.own.input_scale_stride;
    }
#pragma unroll 1
    for (i32 first = 0; first < packets::record.tail_packets(); first += 32) {
        u32 words[packet_words];
#pragma unroll
        for (i32 n = 0; n < packet_words; ++n) {
            const i32 word = (first + lane) * packet_words + n;
            const i32 k = word - packets::scale_words_of_row;
            const float weight = __shfl_sync(full_warp, t.weight, k & 31);
            words[n] = k >= 0 && k < Config.topk ? __float_as_uint(weight) : 0;
            if constexpr (Config.scales != group_scale::none) {
                if (k < 0) {
                    words[n] = load_scale_word<Config>(scales, word);
                }
                store_scale_words<Config>(args, t, word, words[n]);
            }
        }
        for (u32 peers = away; peers != 0; peers &= peers - 1) {
            const i32 k = __ffs(static_cast<i32>(peers)) - 1;
            const i32 peer = static_cast<i32>(__shfl_sync(full_warp, static_cast<u32>(t.entry.rank), k));
            u8* to = record_at(args.rows, args.link, static_cast<i32>(step & 1), peer, t.source_token,
                               packets::record.bytes());
            if (first + lane < packets::record.tail_packets()) {
                send_packets<1>(to + packets::tail + (first + lane) * packet_size, 0, step, words);
            }
        }
    }
    if (places) {
        token_entries here = t;
        here.slot = t.has_row() ? t.slot - args.rank_first[args.link.me] : t.slot;
        write_metadata_inline<Config>(phase, here);
    }
}

/// Lane k's entry k of a token, as the plan whose last step is `plan_step` tells it. False: it does not come.
template <scatter_config Config>
__device__ __forceinline__ bool await_entry(const ll_dispatch_args& args, i64 index, u32 plan_step, plan_entry& entry) {
    const u32 tag = early_tag(plan_step, args.sequence);
    u64 word = ld_relaxed_gpu_64(args.early + index);
    if (static_cast<u32>(word >> 32) != tag) {
        const u64 start = global_time_ns();
#pragma unroll 1
        for (u32 spin = 1; static_cast<u32>(word >> 32) != tag; ++spin) {
            if (spin % 16 == 0 && early_wait_ends(args.link, start)) {
                return false;
            }
            word = ld_relaxed_gpu_64(args.early + index);
        }
    }
    entry = {-1, static_cast<u16>(word), static_cast<u16>(static_cast<u32>(word) >> 16)};
    return true;
}

/// Sends parts of rows: numbers `first`, `first + step`, ... of the tokens' parts. Each unit is read once and leaves
/// for every rank that the pass serves and that wants it. False: not all have left for the peers.
template <scatter_config Config>
__device__ inline bool send_tokens(const ll_dispatch_args& args, const own_rank_phase& phase, const packet_step& shared,
                                   const send_pass& pass, i32 first, i32 step) {
    using packets = row_packets<Config>;
    const i32 lane = static_cast<i32>(lane_idx());
    const i32 me = args.link.me;
    const bool beside = threadIdx.x >= packets::unit_threads;
    packet_step at{};
#pragma unroll 1
    for (i32 n = first; n - first == 0 || n < args.num_tokens * packets::parts; n += step) {
        const i32 token = n / packets::parts;
        const i32 part = n - token * packets::parts;
        const bool exists = token < args.num_tokens;
        const i64 index = static_cast<i64>(token) * Config.topk + lane;
        token_entries t;
        if (pass.places && exists && lane < Config.topk) {
            t.entry = args.entries[index];
            t.slot = args.entry_slots[index];
        }
        const u8* row = static_cast<const u8*>(args.own.input) + static_cast<i64>(token) * args.own.input_stride;
        const i32 unit = part * packets::unit_threads + static_cast<i32>(threadIdx.x);
        u32 words[packets::words] = {};
        if (exists && !beside) {
            load_words(row, unit * packets::words * 4, packets::record.row_bytes, args.send_bytes == 16, words);
        }
        if (n == first) {
            at = meet_step(shared);
        }
        if (!exists || at.lives == 0 || (pass.peers && at.may_write == 0)) {
            break;
        }
        if (!pass.places &&
            !__all_sync(full_warp, lane >= Config.topk || await_entry<Config>(args, index, at.step - 1, t.entry))) {
            return false;
        }
        t.source_rank = me;
        t.source_token = token;
        const u32 previous = __shfl_up_sync(full_warp, static_cast<u32>(t.entry.rank), 1);
        const u32 away = __ballot_sync(full_warp, pass.peers && t.entry.rank != no_rank && t.entry.rank != me &&
                                                      (lane == 0 || previous != t.entry.rank));
        token_entries here = t;
        here.entry.row = pass.places && t.entry.rank == me ? t.entry.row : -1;
        mark_leaders<Config>(args, here);
        if (beside) {
            if (part == 0) {
                if (args.own.weights != nullptr && t.entry.rank != no_rank) {
                    here.weight = args.own.weights[static_cast<i64>(token) * args.own_weight_columns + t.entry.column];
                }
                send_tail<Config>(args, phase, here, away, at.step, pass.places);
            }
            continue;
        }
        for (u32 peers = away; peers != 0; peers &= peers - 1) {
            const i32 k = __ffs(static_cast<i32>(peers)) - 1;
            const i32 peer = static_cast<i32>(__shfl_sync(full_warp, static_cast<u32>(t.entry.rank), k));
            u8* to = record_at(args.rows, args.link, at.parity(), peer, token, packets::record.bytes());
            if (unit < packets::units) {
                send_packets<4>(to + unit * packet_size, packets::plane, at.step, words);
            }
        }
        store_unit<Config>(args, here, unit * packets::words * 4, words);
    }
    return at.may_write != 0;
}

/// The whole part of a sending block. What was there before the plan leaves for the peers as soon as the plan knows
/// which; this rank's places follow when it has ended.
template <scatter_config Config>
__device__ inline void send_part(const ll_dispatch_args& args, const own_rank_phase& phase, packet_step& shared,
                                 i32 block) {
    bool early = args.early != nullptr && args.follows != 0;
    send_pass pass{true, !early};
#pragma unroll 1
    for (;; early = false) {
        if (early) {
            const i32 token = block / row_packets<Config>::parts;
            learn_early_step(args.link, lane_area::row_packets,
                             token < args.num_tokens ? args.early + static_cast<i64>(token) * Config.topk : nullptr,
                             args.sequence, shared);
        } else {
            wait_for_plan(args.link, args.follows >= 2, plan_ended);
            learn_step(args.link, lane_area::row_packets, lane_op::dispatch, pass.peers, shared);
        }
        const bool sent = send_tokens<Config>(args, phase, shared, pass, block, args.senders);
        if (!early) {
            return;
        }
        pass = {!sent, true};
        __syncthreads();  // all have read the step
    }
}

/// Receives what travels beside a line's row. By one warp.
template <scatter_config Config>
__device__ inline bool receive_tail(const ll_dispatch_args& args, const own_rank_phase& phase, token_entries& t,
                                    const u8* record, u32 step) {
    using packets = row_packets<Config>;
    const i32 lane = static_cast<i32>(lane_idx());
    const bool weights = args.own.row_weights != nullptr || args.own.local_weights != nullptr;
    bool ok = true;
    if (weights || Config.scales != group_scale::none) {
#pragma unroll 1
        for (i32 first = 0; first < packets::record.tail_packets(); first += 32) {
            u32 words[packet_words] = {};
            if (first + lane < packets::record.tail_packets()) {
                ok = await_packets<1>(record + packets::tail + (first + lane) * packet_size, 0, args.link,
                                      t.source_rank, step, lane_op::dispatch, words) &&
                     ok;
            }
            const i32 mine = packets::scale_words_of_row + lane;  // the word that is this lane's weight
            const i32 holder = mine / packet_words - first;
#pragma unroll
            for (i32 n = 0; n < packet_words; ++n) {
                const u32 word = __shfl_sync(full_warp, words[n], holder & 31);
                if (lane < Config.topk && holder >= 0 && holder < 32 && mine % packet_words == n) {
                    t.weight = __uint_as_float(word);
                }
                if constexpr (Config.scales != group_scale::none) {
                    store_scale_words<Config>(args, t, (first + lane) * packet_words + n, words[n]);
                }
            }
        }
    }
    write_metadata_inline<Config>(phase, t);
    return __all_sync(full_warp, ok);
}

/// Receives parts of the peers' lines: numbers `first`, `first + step`, ... of all lines' parts.
template <scatter_config Config>
__device__ inline void receive_lines(const ll_dispatch_args& args, const own_rank_phase& phase,
                                     const packet_step& shared, i32 first, i32 step) {
    using packets = row_packets<Config>;
    const bool beside = threadIdx.x >= packets::unit_threads;
    packet_step at{};
    bool met = false;
    i32 n = first;
#pragma unroll 1
    for (i32 r = 1; r < args.link.num_ranks; ++r) {
        const i32 source = peer_after(args.link, r);
        const i32 before = args.list.line_first[source];
        const i32 end = args.list.line_first[source + 1];
#pragma unroll 1
        for (bool more = true; more; n += step) {
            // The line is read before it is known to be one: all loads are under way at once.
            const i32 position = n / packets::parts;
            line_entry e;
            token_entries t;
            t.source_rank = source;
            if (position < args.list.list_stride) {
                e = read_line_entry<Config.topk>(args, source, position);
                t.source_token = *reinterpret_cast<const i32*>(line_of<Config.topk>(args, source, position));
            }
            if (!met) {
                met = true;
                at = meet_step(shared);
                if (at.lives == 0) {
                    return;
                }
            }
            more = position < end - before;
            if (!more) {
                break;
            }
            if (e.slot != no_slot) {
                t.entry = {e.row, static_cast<u16>(args.link.me), 0};
                t.slot = e.slot;
            }
            mark_leaders<Config>(args, t);
            const u8* record =
                record_from(args.rows, args.link, at.parity(), source, t.source_token, packets::record.bytes());
            const i32 part = n - position * packets::parts;
            if (beside) {
                if (part == 0 && !receive_tail<Config>(args, phase, t, record, at.step)) {
                    return;
                }
                continue;
            }
            const i32 unit = part * packets::unit_threads + static_cast<i32>(threadIdx.x);
            u32 words[packets::words] = {};
            bool ok = true;
            if (unit < packets::units) {
                ok = await_packets<4>(record + unit * packet_size, packets::plane, args.link, source, at.step,
                                      lane_op::dispatch, words);
            }
            if (!__all_sync(full_warp, ok)) {
                return;
            }
            store_unit<Config>(args, t, unit * packets::words * 4, words);
        }
        n -= (end - before) * packets::parts;
    }
    if (!met) {
        meet_step(shared);
    }
}

/// Of a block that receives lines, or fills rows that no token has.
template <scatter_config Config>
__device__ inline void receive_part(const ll_dispatch_args& args, const own_rank_phase& phase,
                                    const packet_step& shared, i32 block) {
    if (block < args.receivers) {
        receive_lines<Config>(args, phase, shared, block, args.receivers);
    } else {
        meet_step(shared);
        constexpr i32 warps = Config.threads / 32;
        fill_unused_rows_inline<Config>(phase, (block - args.receivers) * warps + static_cast<i32>(threadIdx.x) / 32,
                                        (static_cast<i32>(gridDim.x) - args.senders - args.receivers) * warps);
    }
}

template <scatter_config Config>
__global__ void __launch_bounds__(Config.threads, max_of(1, 1024 / Config.threads))
    ll_dispatch_kernel(const __grid_constant__ ll_dispatch_args args) {
    static_assert(Config.input == Config.output, "packets do not convert");
    __shared__ packet_step step;
    const own_rank_phase phase(args);
    const i32 block = static_cast<i32>(blockIdx.x);
    const bool sends = block < args.senders;
    prefetch_link(args.link);
    if (sends) {
        send_part<Config>(args, phase, step, block);
    } else {
        wait_for_plan(args.link, args.follows >= 2, plan_ended);
        learn_step(args.link, lane_area::row_packets, lane_op::dispatch, false, step);
        receive_part<Config>(args, phase, step, block - args.senders);
    }
    if (args.follows >= 2) {
        wait_for_kernel_before_alone();  // so that this kernel does not end before the plan's
    }
}

#endif

}  // namespace epjit::templates
