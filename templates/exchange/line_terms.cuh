// SPDX-License-Identifier: Apache-2.0
// What a combine between real ranks sums: the rows of a peer's line, the parts of an own token. Weights of lines travel
// to the ranks that apply them, each a word of 8 bytes with the step it belongs to, so that it tells by itself that it
// has arrived.
#pragma once

#include "base/device.cuh"
#include "exchange/dispatch_layout.cuh"
#include "exchange/flags.cuh"
#include "rows/gather_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Sends the weights of this rank's tokens that lie on other ranks, an entry a thread; thread `thread` of `threads`.
/// Null weights are ones.
template <i32 TopK, class Args>
__device__ inline void send_line_weights(const Args& args, const weight_area& area, const gather_rank& own, u32 step,
                                         i32 thread, i32 threads) {
    const i32 size = args.num_tokens * TopK;
#pragma unroll 2
    for (i32 i = args.list.first_token * TopK + thread; i < size; i += threads) {
        const plan_entry entry = args.entries[i];
        const i32 position = args.list.positions[i];
        if (entry.rank != no_rank && entry.rank != args.link.me) {
            const float weight = own.weights != nullptr
                                     ? own.weights[static_cast<i64>(i / TopK) * args.own_weight_columns + entry.column]
                                     : 1.0f;
            u64* to = reinterpret_cast<u64*>(args.link.peers[entry.rank] + area.offset);
            st_relaxed_sys_64(to + (static_cast<i64>(args.link.me) * area.lines + position) * TopK + i % TopK,
                              static_cast<u64>(step) << 32 | __float_as_uint(weight));
        }
    }
}

/// Where weight `k` of a line arrives.
template <i32 TopK>
__device__ __forceinline__ const u64* line_weight_at(const weight_area& area, i32 source, i32 position, i32 k) {
    return area.own + (static_cast<i64>(source) * area.lines + position) * TopK + k;
}

/// Waits for a weight of a line of `source`; `word` is what was there at first. False: the exchange has failed.
__device__ inline bool await_line_weight(const rank_link& link, const u64* at, u64 word, i32 source, u32 step,
                                         float& weight) {
    if (static_cast<u32>(word >> 32) != step) {
        const u64 start = global_time_ns();
        for (u32 spin = 1;; ++spin) {
            word = ld_relaxed_sys_64(at);
            if (static_cast<u32>(word >> 32) == step) {
                break;
            }
            if (spin % 16 == 0 && !keep_waiting(link, source, step, lane_op::combine, start)) {
                return false;
            }
        }
    }
    weight = __uint_as_float(static_cast<u32>(word));
    return true;
}

/// Whether lane k's entry has a row of its own here; called by one whole warp. On the flat layout a rank has one row of
/// the token, which several entries name.
__device__ __forceinline__ bool has_own_row(row_layout layout, const plan_entry& entry) {
    const u32 previous = __shfl_up_sync(full_warp, static_cast<u32>(entry.rank), 1);
    return entry.row >= 0 && (layout != row_layout::flat || lane_idx() == 0 || previous != entry.rank);
}

/// This rank's rows of a peer's line in ascending slot, each with its weight. Called by one warp; lane k has the term
/// of entry k, or null. `ok`: false where a weight did not come.
template <gather_config Config, class Args, class Phase>
__device__ __forceinline__ row_term* resolve_line(const Args& args, const weight_area& area, const Phase& phase,
                                                  const gather_rank& own, i32 source, i32 position, u32 step,
                                                  row_terms<Config>& out, bool& ok) {
    const plan_entry entry = read_listed_entry<Config.topk>(args, 0, source, position).entry;
    const bool used = has_own_row(args.layout, entry);
    float weight = 1.0f;
    ok = true;
    if (used && args.weighted != 0) {
        const u64* at = line_weight_at<Config.topk>(area, source, position, static_cast<i32>(lane_idx()));
        ok = await_line_weight(args.link, at, ld_relaxed_sys_64(at), source, step, weight);
    }
    row_term* term = order_term<Config>(phase, used, entry.rank, out);
    if (term != nullptr) {
        term->row = static_cast<const u8*>(own.rows) + static_cast<i64>(entry.row) * own.row_stride;
        term->weight = weight;
    }
    return term;
}

/// A peer that holds rows of an own token, and where its sum of them lies: at the position of the token's line in its
/// list, in a window at the token.
struct awaited_sum {
    i32 source = -1;  ///< -1: none
    i32 position = 0;
};

/// What lane k reads of entry k of an own token; `position` as in awaited_sum.
struct token_part {
    plan_entry entry{-1, no_rank, 0};
    i32 position = -1;
};

template <gather_config Config, class Args>
__device__ __forceinline__ token_part read_token_part(const Args& args, i32 token) {
    token_part part;
    if (static_cast<i32>(lane_idx()) < Config.topk) {
        const i64 index = static_cast<i64>(token) * Config.topk + static_cast<i32>(lane_idx());
        part.entry = args.entries[index];
        part.position = args.list.window != 0 ? token : args.list.positions[index];
    }
    return part;
}

/// Whether it is a part of the sum: a row of this rank, or the first that names another rank, whose sum it stands for.
template <class Args>
__device__ __forceinline__ bool is_summed(const Args& args, const token_part& part) {
    const u32 previous = __shfl_up_sync(full_warp, static_cast<u32>(part.entry.rank), 1);
    const bool first = lane_idx() == 0 || previous != part.entry.rank;
    const bool here = part.entry.rank == args.link.me;
    return part.entry.rank != no_rank &&
           (here ? part.entry.row >= 0 && (first || args.layout != row_layout::flat) : first);
}

/// The parts of an own token: its own rows with the caller's weights, a partial sum of every other rank, found at
/// `sum_at(source, position)`. Called by one warp; lane k has the term of entry k, or null, and the peer it comes from.
template <gather_config Config, class Args, class Phase, class SumAt>
__device__ __forceinline__ row_term* resolve_token(const Args& args, const Phase& phase, const gather_rank& own,
                                                   i32 token, row_terms<Config>& out, awaited_sum& awaited,
                                                   const SumAt& sum_at) {
    const token_part part = read_token_part<Config>(args, token);
    const plan_entry entry = part.entry;
    const bool here = entry.rank == args.link.me;
    awaited.source = -1;
    row_term* term = order_term<Config>(phase, is_summed(args, part), entry.rank, out);
    if (term != nullptr) {
        term->weight = 1.0f;
        if (here) {
            term->row = static_cast<const u8*>(own.rows) + static_cast<i64>(entry.row) * own.row_stride;
            if (own.weights != nullptr) {
                term->weight = own.weights[static_cast<i64>(token) * args.own_weight_columns + entry.column];
            }
        } else {
            term->row = sum_at(static_cast<i32>(entry.rank), part.position);
            awaited = {static_cast<i32>(entry.rank), part.position};
        }
    }
    return term;
}

#endif

}  // namespace epjit::templates
