// SPDX-License-Identifier: Apache-2.0
// The blocks of a dispatch of packets that send this rank's tokens.
#pragma once

#include "low_latency/ll_dispatch_rows.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// A pass of the senders: who is served in it.
struct send_pass {
    bool peers;
    bool places;  ///< of this rank
    bool early;   ///< by what the plan in front tells
};

/// What travels beside a token's row, to its peers in packets and to its places here. By one warp; `away` has a bit for
/// the first entry of each peer that is served.
template <scatter_config Config>
__device__ inline void send_tail(const ll_dispatch_args& args, const own_rank_phase& phase, const token_entries& t,
                                 u32 away, u32 step, bool places) {
    using packets = row_packets<Config>;
    constexpr i32 tail_words = payload_words(1);
    const i32 lane = static_cast<i32>(lane_idx());
    const u8* scales = nullptr;
    if constexpr (Config.scales != group_scale::none) {
        scales = static_cast<const u8*>(args.own.input_scales) +
                 static_cast<i64>(t.source_token) * args.own.input_scale_stride;
    }
#pragma unroll 1
    for (i32 first = 0; first < packets::record.tail_packets(); first += 32) {
        u32 words[tail_words];
#pragma unroll
        for (i32 n = 0; n < tail_words; ++n) {
            const i32 word = (first + lane) * tail_words + n;
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

/// Where a token's entries go, told by the plan in front; of its places here too where the pass wants them. False: it
/// does not come.
template <scatter_config Config>
__device__ __forceinline__ bool await_entries(const ll_dispatch_args& args, i64 index, bool places, u32 plan_step,
                                              token_entries& t) {
    if (static_cast<i32>(lane_idx()) >= Config.topk) {
        return true;
    }
    const u32 tag = early_tag(plan_step, args.sequence);
    const u64 limit = args.link.control->limit_ns;
    if (places) {
        early_place place;
        const bool came = await_plan(args.link, limit, [&] {
            place = __builtin_bit_cast(early_place, ld_relaxed_sys_128(args.early.places + index));
            return place.tag == tag;
        });
        t.entry = {place.row, place.rank, static_cast<u16>(place.source)};
        t.slot = place.slot;
        return came;
    }
    u64 word = 0;
    const bool came = await_plan(args.link, limit, [&] {
        word = ld_relaxed_gpu_64(args.early.entries + index);
        return static_cast<u32>(word >> 32) == tag;
    });
    t.entry = {-1, static_cast<u16>(word), static_cast<u16>(static_cast<u32>(word) >> 16)};
    return came;
}

/// Sends parts of rows: numbers `first`, `first + step`, ... of the tokens' parts. Each unit is read once and leaves
/// for every rank that the pass serves and that wants it. False: not all of it could be done; of a warp, and then no
/// peer was served, unless the exchange has failed.
template <scatter_config Config>
__device__ inline bool send_tokens(const ll_dispatch_args& args, const own_rank_phase& phase, const packet_step& shared,
                                   const send_pass& pass, i32 first, i32 step) {
    using packets = row_packets<Config>;
    const i32 lane = static_cast<i32>(lane_idx());
    const i32 me = args.link.me;
    const bool beside = threadIdx.x >= packets::unit_threads;
    // Where a token's weights lie as its ids do, they are read beside the row and entries find theirs in the warp.
    const bool weights_lie_so = args.own.weights != nullptr && args.own_weight_columns == Config.topk;
    packet_step at{};
    bool told = pass.early;
#pragma unroll 1
    for (i32 n = first; n - first == 0 || n < args.num_tokens * packets::parts; n += step) {
        const i32 token = n / packets::parts;
        const i32 part = n - token * packets::parts;
        const bool exists = token < args.num_tokens;
        const i64 index = static_cast<i64>(token) * Config.topk + lane;
        token_entries t;
        if (pass.early && pass.places && n != first) {
            told = false;  // the plan is at its end, and what it has written is read faster
            wait_for_kernel_before_alone();
        }
        if (!told && exists && lane < Config.topk) {
            t.entry = args.entries[index];
            t.slot = args.entry_slots[index];
        }
        if (n == first && pass.early) {
            at = meet_step(shared);
        }
        const u8* row = static_cast<const u8*>(args.own.input) + static_cast<i64>(token) * args.own.input_stride;
        const i32 unit = part * packets::unit_threads + static_cast<i32>(threadIdx.x);
        u32 words[packets::words] = {};
        float weight = 0.0f;
        if (exists && !beside) {
            load_words(row, packets::record.bytes_of(unit), packets::record.row_bytes, args.send_bytes == 16, words);
        } else if (exists && weights_lie_so && part == 0 && lane < Config.topk) {
            weight = args.own.weights[index];
        }
        if (n == first && !pass.early) {
            at = meet_step(shared);
        }
        if (at.lives == 0 || (pass.peers && at.may_write == 0)) {
            return false;
        }
        if (!exists) {
            break;
        }
        if (told && !__all_sync(full_warp, await_entries<Config>(args, index, pass.places, at.step - 1, t))) {
            return false;
        }
        t.source_rank = me;
        t.source_token = token;
        const u32 previous = __shfl_up_sync(full_warp, static_cast<u32>(t.entry.rank), 1);
        const u32 away = __ballot_sync(full_warp, pass.peers && t.entry.rank != no_rank && t.entry.rank != me &&
                                                      (lane == 0 || previous != t.entry.rank));
        token_entries here = t;
        here.entry.row = pass.places && t.entry.rank == me ? t.entry.row : -1;
        find_leaders(args, here);
        if (beside) {
            if (part == 0) {
                if (weights_lie_so) {
                    weight = __shfl_sync(full_warp, weight, t.entry.column % Config.topk);
                    here.weight = t.entry.rank != no_rank ? weight : here.weight;
                } else if (args.own.weights != nullptr && t.entry.rank != no_rank) {
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
                send_packets<row_record::unit_packets>(to + unit * packet_size, packets::plane, at.step, words);
            }
        }
        store_unit<Config>(args, here, unit, words);
    }
    return true;
}

/// The whole part of a sending block. Beside a plan rows leave for the peers as soon as it knows which, and go to this
/// rank's places as it finds those.
template <scatter_config Config>
__device__ inline void send_part(const ll_dispatch_args& args, const own_rank_phase& phase, packet_step& shared,
                                 i32 block) {
    // One call, so that there is one copy of the passes' code.
    send_pass pass{true, args.follows == 0, args.follows != 0};
    bool sent = false;  // the peers have what this warp has for them; they take it once
#pragma unroll 1
    for (;;) {
        if (!pass.early) {
            wait_for_kernel_before();
            learn_step(args.link, lane_area::row_packets, lane_op::dispatch, true, shared);
        } else if (pass.peers) {
            learn_early_step(args.link, lane_area::row_packets, args.early, args.sequence, true, shared);
        }
        const bool all = send_tokens<Config>(args, phase, shared, pass, block, args.senders);
        if (!pass.early) {
            return;
        }
        sent = sent || all;
        if (__syncthreads_and(all ? 1 : 0) == 0) {
            pass = {!sent, true, false};
        } else if (pass.peers) {
            pass = {false, true, true};
        } else {
            leave_early_step(args.link, lane_area::row_packets, lane_op::dispatch, shared);
            return;
        }
    }
}

#endif

}  // namespace epjit::templates
