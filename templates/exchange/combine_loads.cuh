// SPDX-License-Identifier: Apache-2.0
// Combine between ranks where bulk copies cannot bring the rows: every thread loads its part of them.
//
// Cost model: as combine_kernel; some 57 KB of rows are in flight per SM, a third of what copies allow.
#pragma once

#include "exchange/combine_common.cuh"
#include "exchange/line_terms.cuh"
#include "rows/gather_kernel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

template <gather_config Config>
__device__ __forceinline__ void sum_terms(const combine_phase& phase, const row_terms<Config>& terms) {
    constexpr i32 widest = row_packet_bytes(static_cast<i64>(Config.hidden) * element_bytes(Config.type));
    if (phase.vector_bytes >= widest) {
        sum_row<Config, widest, min_of(Config.topk, 4)>(terms, phase.order);
    } else {
        sum_row<Config, element_bytes(Config.type), 1>(terms, phase.order);
    }
}

/// What the two parts of a block share: the terms of the sum that is made and of the one that is being resolved. A
/// count below 0 ends the block's work.
template <gather_config Config>
struct sums_in_turn {
    row_terms<Config> terms[2];

    /// Called by one lane.
    __device__ __forceinline__ void end(i32 side) { terms[side].count = -1; }
};

/// The warps that sum: what the last warp has resolved, side by side with it.
template <gather_config Config>
__device__ inline void make_sums(const combine_phase& phase, const sums_in_turn<Config>& work) {
#pragma unroll 1
    for (i32 side = 0;; side ^= 1) {
        meet_block(combine_threads(Config));
        if (work.terms[side].count < 0) {
            return;
        }
        sum_terms<Config>(phase, work.terms[side]);
    }
}

/// The last warp of a block that sends: resolves the peers' lines, whose sums are made in place, and raises the flag of
/// each at its owner.
template <gather_config Config, class Args>
__device__ inline void resolve_lines(const Args& args, const combine_phase& phase, const combine_part& part,
                                     sums_in_turn<Config>& work, u32 step) {
    const bool leads = lane_idx() == 0;
    line_walk next(phase, part.block, part.blocks);
    i32 summed = -1;  // its place
    i32 summed_source = 0;
#pragma unroll 1
    for (i32 side = 0;; side ^= 1) {
        bool more = next.advance(phase);
        i32 place = 0;
        if (more) {
            bool ok = true;
            const i32 position = line_position(phase, next.source, next.line);
            place = place_of_line<Config.topk>(phase, next.source, position);
            resolve_line<Config>(args, args.line_weights, phase, phase.ranks[args.link.me], next.source, position, step,
                                 work.terms[side], ok);
            more = __all_sync(full_warp, ok);
        }
        if (leads) {
            if (more) {
                const gather_rank& owner = phase.ranks[next.source];
                work.terms[side].output =
                    static_cast<u8*>(owner.output) + static_cast<i64>(place) * owner.output_stride;
            } else {
                work.end(side);
            }
        }
        // The sum before is made, this one begins.
        meet_block(combine_threads(Config));
        if (leads && summed >= 0) {
            raise_flag(args.flags, args.link, summed_source, summed, step);
        }
        if (!more) {
            return;
        }
        summed = place;
        summed_source = next.source;
    }
}

/// The last warp of a block that finishes: resolves this rank's tokens and waits for what is missing of them.
template <gather_config Config, class Args>
__device__ inline void resolve_tokens(const Args& args, const combine_phase& phase, const combine_part& part,
                                      sums_in_turn<Config>& work, u32 step) {
    const gather_rank& own = phase.ranks[args.link.me];
    i32 token = args.list.first_token + part.block;
#pragma unroll 1
    for (i32 side = 0;; side ^= 1, token += part.blocks) {
        bool more = token < args.num_tokens;
        if (more) {
            awaited_sum awaited;
            resolve_token<Config>(
                args, phase, own, token, work.terms[side], awaited, [&phase](i32 source, i32 position) {
                    const gather_rank& holder = phase.ranks[source];
                    return static_cast<const u8*>(holder.rows) + static_cast<i64>(position) * holder.row_stride;
                });
            more = __all_sync(full_warp, awaited.source < 0 || wait_flag(args.flags, args.link, awaited.source,
                                                                         awaited.position, step, lane_op::combine));
        }
        if (lane_idx() == 0) {
            if (more) {
                work.terms[side].output = static_cast<u8*>(own.output) + static_cast<i64>(token) * own.output_stride;
            } else {
                work.end(side);
            }
        }
        meet_block(combine_threads(Config));
        if (!more) {
            return;
        }
    }
}

/// The part of one block. All threads call it.
template <gather_config Config, class Args>
__device__ __forceinline__ void combine_by_loads(const Args& args, const combine_phase& phase, const combine_part& part,
                                                 u32 step, u32 partials_step) {
    __shared__ sums_in_turn<Config> work;
    // The owners have read what this rank sent last.
    if (part.sends && !wait_all(args.link, partials_step, lane_op::none, false)) {
        return;
    }
    if (static_cast<i32>(threadIdx.x) < Config.threads) {
        make_sums<Config>(phase, work);
    } else if (part.sends) {
        resolve_lines<Config>(args, phase, part, work, step);
    } else {
        resolve_tokens<Config>(args, phase, part, work, step);
    }
}

#endif

}  // namespace epjit::templates
