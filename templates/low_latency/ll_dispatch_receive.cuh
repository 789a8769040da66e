// SPDX-License-Identifier: Apache-2.0
// The blocks of a dispatch of packets that receive what the peers send.
#pragma once

#include "low_latency/ll_dispatch_rows.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Receives what travels beside the row of the line at `position`. By one warp.
template <scatter_config Config>
__device__ inline bool receive_tail(const ll_dispatch_args& args, const own_rank_phase& phase, token_entries& t,
                                    u8* record, u32 step, i32 position) {
    using packets = row_packets<Config>;
    const i32 lane = static_cast<i32>(lane_idx());
    constexpr i32 tail_words = payload_words(1);
    const bool keeps = args.kept.weights != nullptr;
    const bool weights = keeps || args.own.row_weights != nullptr || args.own.local_weights != nullptr;
    bool ok = true;
    if (weights || Config.scales != group_scale::none) {
#pragma unroll 1
        for (i32 first = 0; first < packets::record.tail_packets(); first += 32) {
            u32 words[tail_words] = {};
            if (first + lane < packets::record.tail_packets()) {
                ok = take_packets<1>(record + packets::tail + (first + lane) * packet_size, 0, args.link, t.source_rank,
                                     step, lane_op::dispatch, words) &&
                     ok;
            }
            const i32 mine = packets::scale_words_of_row + lane;  // the word that is this lane's weight
            const i32 holder = mine / tail_words - first;
#pragma unroll
            for (i32 n = 0; n < tail_words; ++n) {
                const u32 word = __shfl_sync(full_warp, words[n], holder & 31);
                if (lane < Config.topk && holder >= 0 && holder < 32 && mine % tail_words == n) {
                    t.weight = __uint_as_float(word);
                }
                if constexpr (Config.scales != group_scale::none) {
                    store_scale_words<Config>(args, t, (first + lane) * tail_words + n, words[n]);
                }
            }
        }
    }
    if (keeps && lane < Config.topk) {
        args.kept.weights[args.kept.at(t.source_rank, position, Config.topk) + lane] = t.weight;
    }
    write_metadata_inline<Config>(phase, t);
    return __all_sync(full_warp, ok);
}

/// A line of a source's list, lane k with its k-th entry.
struct taken_line {
    i32 token = 0;
    line_entry entry;
};

/// The line at `position`; read before it is known to be one, so that all loads are under way at once. By one warp.
template <scatter_config Config>
__device__ __forceinline__ taken_line read_line(const ll_dispatch_args& args, i32 source, i32 position) {
    taken_line line;
    if (position < args.list.list_stride) {
        line.entry = read_line_entry<Config.topk>(args, source, position);
        line.token = *reinterpret_cast<const i32*>(line_of<Config.topk>(args, source, position));
    }
    return line;
}

/// The same as the plan in front tells it, whose tag is `tag`. `lines`: of the source; -1: it did not tell.
template <scatter_config Config>
__device__ __forceinline__ taken_line await_line(const ll_dispatch_args& args, i32 source, i32 position, u32 tag,
                                                 i32& lines) {
    const i32 lane = static_cast<i32>(lane_idx());
    const i64 at = static_cast<i64>(source) * args.early.tokens + min_of(position, args.early.tokens - 1);
    const early_place* told = args.early.lines + at * Config.topk + lane % Config.topk;
    early_place place;
    const bool came = await_plan(args.link, args.link.control->limit_ns, [&] {
        const u64 word = ld_relaxed_gpu_64(args.early.state + 1 + source);
        place = __builtin_bit_cast(early_place, ld_relaxed_sys_128(told));
        lines = static_cast<i32>(static_cast<u32>(word));
        return static_cast<u32>(word >> 32) == tag && (position >= lines || place.tag == tag);
    });
    lines = __all_sync(full_warp, came) ? lines : -1;
    taken_line line{place.source, {}};
    if (lane < Config.topk) {
        line.entry = {place.row, place.slot};
    }
    return line;
}

/// Where the line's row goes. Called by whole warps.
template <scatter_config Config>
__device__ __forceinline__ token_entries entries_of(const ll_dispatch_args& args, i32 source, const taken_line& line) {
    token_entries t;
    t.source_rank = source;
    t.source_token = line.token;
    if (line.entry.slot != no_slot) {
        t.entry = {line.entry.row, static_cast<u16>(args.link.me), 0};
        t.slot = line.entry.slot;
    }
    find_leaders(args, t);
    return t;
}

/// Receives a part of the row of the line at `position`. False: the exchange has failed. By a warp.
template <scatter_config Config>
__device__ __forceinline__ bool receive_line(const ll_dispatch_args& args, const own_rank_phase& phase,
                                             const packet_step& at, token_entries& t, i32 position, i32 part) {
    using packets = row_packets<Config>;
    u8* record = record_from(args.rows, args.link, at.parity(), t.source_rank, t.source_token, packets::record.bytes());
    if (threadIdx.x >= packets::unit_threads) {
        return part != 0 || receive_tail<Config>(args, phase, t, record, at.step, position);
    }
    const i32 unit = part * packets::unit_threads + static_cast<i32>(threadIdx.x);
    u32 words[packets::words] = {};
    bool ok = true;
    if (unit < packets::units) {
        ok = take_packets<row_record::unit_packets>(record + unit * packet_size, packets::plane, args.link,
                                                    t.source_rank, at.step, lane_op::dispatch, words);
    }
    if (!__all_sync(full_warp, ok)) {
        return false;
    }
    store_unit<Config>(args, t, unit, words);
    return true;
}

/// Where a warp is in the peers' lines: part `n` of those of source number `r`. What lies before has been taken.
struct parts_taken {
    i32 r;
    i32 n;
};

/// Receives parts of the peers' lines: numbers `n`, `n + step`, ... of all lines' parts. False: the plan in front did
/// not tell all of them; of a warp, which goes on from there.
template <scatter_config Config>
__device__ inline bool receive_lines(const ll_dispatch_args& args, const own_rank_phase& phase,
                                     const packet_step& shared, bool early, parts_taken& walk, i32 step) {
    using packets = row_packets<Config>;
    packet_step at{};
    bool met = early;  // what the plan tells bears its step
    if (early) {
        at = meet_step(shared);
        if (at.lives == 0) {
            return false;
        }
    }
    i32& n = walk.n;
#pragma unroll 1
    for (; walk.r < args.link.num_ranks; ++walk.r) {
        const i32 source = peer_after(args.link, walk.r);
        i32 lines = early ? 0 : args.list.line_first[source + 1] - args.list.line_first[source];
        bool known = met && !early;
#pragma unroll 1
        for (;; n += step) {
            const i32 position = n / packets::parts;
            if (known && position >= lines) {
                break;
            }
            if (known && early) {
                early = false;  // the plan is at its end, and what it has written is read faster
                wait_for_kernel_before_alone();
            }
            const taken_line line =
                early ? await_line<Config>(args, source, position, early_tag(at.step - 1, args.sequence), lines)
                      : read_line<Config>(args, source, position);
            known = true;
            if (!met) {
                met = true;
                at = meet_step(shared);
            }
            if (at.lives == 0 || lines < 0) {
                return false;
            }
            if (position >= lines) {
                break;
            }
            token_entries t = entries_of<Config>(args, source, line);
            if (!receive_line<Config>(args, phase, at, t, position, n - position * packets::parts)) {
                return true;  // nothing comes any more
            }
        }
        n -= lines * packets::parts;
    }
    if (!met) {
        meet_step(shared);
    }
    return true;
}

/// The whole part of a receiving block.
template <scatter_config Config>
__device__ inline void receive_part(const ll_dispatch_args& args, const own_rank_phase& phase, packet_step& shared,
                                    i32 block) {
    parts_taken walk{1, block};
#pragma unroll 1
    for (bool early = args.follows != 0;; early = false) {
        if (early) {
            learn_early_step(args.link, lane_area::row_packets, args.early, args.sequence, false, shared);
        } else {
            wait_for_kernel_before();
            learn_step(args.link, lane_area::row_packets, lane_op::dispatch, false, shared);
        }
        const bool all = receive_lines<Config>(args, phase, shared, early, walk, args.receivers);
        if (!early) {
            return;
        }
        if (__syncthreads_and(all ? 1 : 0) != 0) {
            leave_early_step(args.link, lane_area::row_packets, lane_op::dispatch, shared);
            return;
        }
    }
}

#endif

}  // namespace epjit::templates
