// SPDX-License-Identifier: Apache-2.0
// Combine between ranks with rows in shared memory: bulk copies bring them far ahead of the sums and take the sums
// away. A team of a block is a warp that finds rows, one that waits for what is missing and starts their loads, warps
// that sum stage by stage, and a warp that stores the sums; one warp more tells the peers of them. They meet at
// barriers in shared memory and never all at once.
//
// Cost model: as combine_kernel; the ring keeps some 190 KB of rows in flight per SM.
#pragma once

#include "exchange/combine_common.cuh"
#include "exchange/combine_feed.cuh"
#include "exchange/combine_sums.cuh"
#include "exchange/telling.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The warp that takes sums away: to a peer, noting in `list` what is there, or to this rank's output. `stores`: not,
/// where the threads that sum have stored them.
template <gather_config Config, class Args>
__device__ inline void store_sums(const Args& args, const combine_phase& phase, const combine_team<Config>& team,
                                  bool sends, bool stores, sent_list& list, u32 step, u32 partials_step) {
    using team_type = combine_team<Config>;
    // The owners have read what this rank sent last. Where one has not, nothing is stored.
    const bool live = !sends || wait_peers(args.link, partials_step, lane_op::none);
    __syncwarp();
    if (lane_idx() == 0) {
        sent_notes notes(list);
        u32 round = 0;
#pragma unroll 1
        for (i32 side = 0;;) {
            mbarrier_wait(&team.sum_full[side], round);
            const sum_place place = team.places[side];
            if (place.owner < 0) {
                break;
            }
            if (live && stores) {
                const gather_rank& owner = phase.ranks[place.owner];
                u8* to = static_cast<u8*>(owner.output) + static_cast<i64>(place.item) * owner.output_stride;
                if (sends) {
                    bulk_store_kept(to, team.sum_row(side), team_type::row_bytes);
                    notes.begin(place.owner, place.item);
                } else {
                    bulk_store(to, team.sum_row(side), team_type::row_bytes);
                }
                bulk_commit();
            }
            bulk_wait_read<0>();
            mbarrier_arrive(&team.sum_empty[side]);
            side ^= 1;
            round ^= side == 0 ? 1u : 0u;
            if (notes.begun() > 0 && !mbarrier_done(&team.sum_full[side], round)) {
                bulk_wait<0>();  // nothing else is to be done
                notes.all_arrived();
            } else if (notes.begun() > 2) {
                bulk_wait<2>();
                notes.arrived(notes.begun() - 2);
            }
        }
        bulk_wait<0>();
        notes.end(args.link, args.flags, step);
    }
    __syncwarp();
}

/// The part of one block, its teams side by side. All threads call it.
template <gather_config Config, class Args>
__device__ __forceinline__ void combine_by_ring(const Args& args, const combine_phase& phase, const combine_part& part,
                                                u8* memory, sent_list* lists, found_items<Config>* queues, u32 step,
                                                u32 partials_step) {
    using team_type = combine_team<Config>;
    constexpr i32 team_threads = team_type::shape.threads;
    const i32 number = static_cast<i32>(threadIdx.x) / team_threads;
    const i32 thread = static_cast<i32>(threadIdx.x) % team_threads;
    if (number == Config.teams) {
        if (part.sends) {
            tell_peers(args.link, args.flags, lists, Config.teams, step);
        }
        return;
    }
    const team_type team(memory, number);
    const bool outside = !part.sends && args.vector_bytes < 16;
    if (thread < team_type::shape.summers) {
        sum_stages<Config>(team, thread, outside ? &phase.ranks[args.link.me] : nullptr);
    } else if (thread < team_type::shape.summers + 32) {
        feed_sums<Config>(args, team, queues[number], part.sends, step);
    } else if (thread < team_type::shape.summers + 64) {
        store_sums<Config>(args, phase, team, part.sends, !outside, lists[number], step, partials_step);
    } else {
        find_items<Config>(args, phase, queues[number], part.sends, number * part.blocks + part.block,
                           Config.teams * part.blocks);
    }
}

#endif
#endif

}  // namespace epjit::templates
