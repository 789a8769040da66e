// SPDX-License-Identifier: Apache-2.0
// The blocks of a dispatch that expand: every line's row to its places, the peers' as they arrive and this rank's own
// while nothing else is there. Rows of all peers are taken in turn, as they are sent: what has arrived is read while
// it still lies in the L2, and no source's end is waited for while others pile up.
#pragma once

#include "exchange/dispatch_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The lines of one warp: every `step`-th of this rank's own, and of the peers', which are numbered round the ranks.
struct expand_walk {
    i32 own;
    i32 own_end;
    i32 peers;
    i32 peers_end;
    i32 step;

    __device__ __forceinline__ expand_walk(const row_list& list, i32 first, i32 lines_step)
        : own(first), own_end(lines_of(list, list.me)), peers(first), peers_end(0), step(lines_step) {
#pragma unroll 1
        for (i32 r = 0; r < list.num_ranks; ++r) {
            peers_end = max_of(peers_end, r == list.me ? 0 : lines_of(list, r));
        }
        peers_end *= list.num_ranks - 1;
    }
    __device__ __forceinline__ bool ended() const {
        return own >= own_end && peers >= peers_end;
    }

    __device__ __forceinline__ static i32 lines_of(const row_list& list, i32 rank) {
        return list.line_first[rank + 1] - list.line_first[rank];
    }
    __device__ __forceinline__ static line_place own_line(const row_list& list, i32 number) {
        return {list.line_first[list.me] + number, list.me};
    }
    /// False: the peer has no such line.
    __device__ __forceinline__ static bool peer_line(const row_list& list, i32 number, line_place& place) {
        const i32 others = list.num_ranks - 1;
        const i32 local = others == 1 ? number : number / others;
        place.rank = list.me + 1 + number - local * others;
        place.rank -= place.rank >= list.num_ranks ? list.num_ranks : 0;
        place.n = list.line_first[place.rank] + local;
        return local < lines_of(list, place.rank);
    }
};

/// The flag that a line's row waits for.
struct awaited_chunk {
    i32 rank = 0;
    i32 chunk = 0;
};

/// A line, and its row.
struct line_source : row_source {
    const u8* line = nullptr;
};

/// Where a line and its row lie, and the chunk it came in.
template <scatter_config Config, class Args>
__device__ __forceinline__ line_source find_line(const Args& args, const dispatch_phase<Config>& phase,
                                                 const line_place& place, bool scales, awaited_chunk& chunk) {
    const scatter_rank& from = phase.ranks[place.rank];
    const i32 local = list_local_of(phase, place.n, place.rank);
    const u8* line = line_of<Config.topk>(phase, place.rank, local);
    const i32 token = *reinterpret_cast<const i32*>(line);
    chunk = {place.rank, args.chunk == 1 ? token : token / args.chunk};
    return {row_source(from, from.by_token != 0 ? token : local, scales), line};
}

/// Where a line's row goes, from the `line` itself. Called by whole warps.
template <scatter_config Config>
__device__ __forceinline__ token_entries line_entries(const dispatch_phase<Config>& phase, const line_place& place,
                                                      const u8* line) {
    token_entries t;
    const i32 lane = static_cast<i32>(lane_idx());
    t.source_rank = place.rank;
    t.source_token = *reinterpret_cast<const i32*>(line);
    t.source_row = phase.ranks[place.rank].by_token != 0 ? t.source_token : list_local_of(phase, place.n, place.rank);
    if (lane < Config.topk) {
        const u16 slot = reinterpret_cast<const u16*>(line + line_slots_offset(Config.topk))[lane];
        if (slot != no_slot) {
            t.entry = {reinterpret_cast<const i32*>(line)[1 + lane], static_cast<u16>(phase.list.me),
                       static_cast<u16>(lane)};
            t.slot = slot;
        }
    }
    const u32 before = __shfl_up_sync(full_warp, static_cast<u32>(t.entry.rank), 1);
    t.leads = t.has_row() && (phase.layout != row_layout::flat || lane == 0 || before != t.entry.rank);
    return t;
}

/// The rows that a warp has on their way through its ring.
template <scatter_config Config>
struct expander {
    using mover_type = dispatch_mover<Config, scatter_movers(Config)>;
    mover_type mover;
    line_place* queue;  ///< [stages] which line a stage holds
    i32 loading = 0;
    i32 head = 0;  ///< stage of the oldest
    bool scales;

    __device__ __forceinline__ i32 stage(i32 behind) const {
        const i32 s = head + behind;
        return s < mover_type::stages ? s : s - mover_type::stages;
    }

    /// Starts the loads of `count` rows, row i being that of the lane whose `turn` is i.
    __device__ __forceinline__ void load(i32 count, i32 turn, const line_place& place, const line_source& source) {
        bulk_wait_read<1>();  // what the stages held was stored in the round before the last, or earlier
        if (turn >= 0) {
            queue[stage(loading + turn)] = place;
        }
        __syncwarp();
        if (turn >= 0) {
            mover.load_row(turn, source.row, source.scales, source.line, line_bytes(Config.topk));
        }
        mover.loaded(count);
        loading += count;
    }

    /// Takes rows of the peers that have arrived, in their order, no more than `room`. True: the next one has not.
    template <class Args>
    __device__ __forceinline__ bool take_arrived(const Args& args, const dispatch_phase<Config>& phase,
                                                 expand_walk& walk, i32 room, u32 step, awaited_chunk& blocking) {
        const i32 lane = static_cast<i32>(lane_idx());
        const i32 looked_at = min_of(room + 2, 32);
        const i32 number = walk.peers + lane * walk.step;
        const bool ended = lane >= looked_at || number >= walk.peers_end;
        line_place place;
        line_source source;
        awaited_chunk chunk;
        bool there = false;
        bool missing = false;
        if (!ended && expand_walk::peer_line(phase.list, number, place)) {
            source = find_line<Config>(args, phase, place, scales, chunk);
            there = flag_is_seen(args.flags, chunk.rank, chunk.chunk, step);
            missing = !there;
        }
        const u32 missed = __ballot_sync(full_warp, missing);
        const i32 limit = missed != 0 ? __ffs(static_cast<i32>(missed)) - 1 : looked_at;
        there = there && lane < limit;
        const u32 arrived = __ballot_sync(full_warp, there);
        const i32 turn = __popc(arrived & ((1u << lane) - 1));
        const i32 count = min_of(room, __popc(arrived));
        // Those passed over have no line; the first that is left for want of room comes next.
        const u32 left = __ballot_sync(full_warp, there && turn >= room);
        walk.peers += (left != 0 ? __ffs(static_cast<i32>(left)) - 1 : limit) * walk.step;
        if (count > 0) {
            fence_proxy_async();  // stored by the peers' copies, to be read by ours
            load(count, there && turn < room ? turn : -1, place, source);
        }
        blocking = {__shfl_sync(full_warp, chunk.rank, limit & 31), __shfl_sync(full_warp, chunk.chunk, limit & 31)};
        return missed != 0 && left == 0;
    }

    template <class Args>
    __device__ __forceinline__ void take_own(const Args& args, const dispatch_phase<Config>& phase, expand_walk& walk,
                                             i32 room) {
        const i32 lane = static_cast<i32>(lane_idx());
        const i32 number = walk.own + lane * walk.step;
        const bool there = lane < room && number < walk.own_end;
        const i32 count = __popc(__ballot_sync(full_warp, there));
        if (count == 0) {
            return;
        }
        line_place place;
        line_source source;
        awaited_chunk chunk;
        if (there) {
            place = expand_walk::own_line(phase.list, number);
            source = find_line<Config>(args, phase, place, scales, chunk);
        }
        load(count, there ? lane : -1, place, source);
        walk.own += count * walk.step;
    }
};

/// Expands a warp's lines, each as soon as it is there.
template <scatter_config Config, class Args>
__device__ void expand_lines(const Args& args, const dispatch_phase<Config>& phase, u8* rows, u64* barriers,
                             line_place* queue, expand_walk walk, u32 step) {
    using expander_type = expander<Config>;
    constexpr i32 most = expander_type::mover_type::stages - 1;
    expander_type ring{typename expander_type::mover_type(rows, barriers), queue};
    ring.scales = scales_move_along<Config>(phase);
    ring.mover.init(1);
#pragma unroll 1
    while (ring.loading > 0 || !walk.ended()) {
        awaited_chunk blocking;
        bool blocked = false;
        if (ring.loading < most && walk.peers < walk.peers_end) {
            blocked = ring.take_arrived(args, phase, walk, most - ring.loading, step, blocking);
        }
        if (ring.loading < most && walk.own < walk.own_end) {
            ring.take_own(args, phase, walk, most - ring.loading);
        }
        if (ring.loading == 0) {
            // Nothing to do but to wait, or all that was looked at had no line.
            if (blocked && !__all_sync(full_warp, wait_flag(args.flags, args.link, blocking.rank, blocking.chunk, step,
                                                            lane_op::dispatch))) {
                break;
            }
            continue;
        }
        const line_place place = ring.queue[ring.stage(0)];
        ring.mover.wait();
        token_entries t = line_entries<Config>(phase, place, ring.mover.note());
        t.weight = read_weight<Config>(phase, place.n, place.rank, t);
        ring.mover.store(phase, t, ring.scales);
        ring.head = ring.stage(1);
        --ring.loading;
        if (phase.metadata) {
            write_metadata<Config>(phase, t);
        }
        copy_other_scales<Config>(phase, t, ring.scales);
    }
    bulk_wait<0>();
}

/// One line's row without bulk copies.
template <scatter_config Config, class Args>
__device__ __forceinline__ void expand_by_elements(const Args& args, const dispatch_phase<Config>& phase,
                                                   const line_place& place, const line_source& source) {
    const token_entries t = read_entries<Config>(phase, place.n, place.rank);
    copy_elements<Config>(phase.ranks, t, source.row);
    if (phase.metadata) {
        write_metadata<Config>(phase, t);
    }
    copy_other_scales<Config>(phase, t, false);
}

/// expand_lines without bulk copies.
template <scatter_config Config, class Args>
__device__ __noinline__ void expand_elements(const Args& args, const dispatch_phase<Config>& phase, expand_walk walk,
                                             u32 step) {
    awaited_chunk chunk;
#pragma unroll 1
    while (!walk.ended()) {
        line_place place;
        bool there = false;
        if (walk.own < walk.own_end) {
            place = expand_walk::own_line(phase.list, walk.own);
            there = true;
            walk.own += walk.step;
        } else {
            there = expand_walk::peer_line(phase.list, walk.peers, place);
            walk.peers += walk.step;
        }
        if (!there) {
            continue;
        }
        const line_source source = find_line<Config>(args, phase, place, false, chunk);
        if (place.rank != args.link.me &&
            !wait_flag(args.flags, args.link, chunk.rank, chunk.chunk, step, lane_op::dispatch)) {
            return;
        }
        expand_by_elements<Config>(args, phase, place, source);
    }
}

/// The whole part of an expanding block.
template <scatter_config Config, class Args>
__device__ __forceinline__ void expand_part(const Args& args, const dispatch_phase<Config>& phase, u8* memory,
                                            u32 step) {
    constexpr i32 movers = scatter_movers(Config);
    using mover_type = dispatch_mover<Config, movers>;
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    const i32 block = static_cast<i32>(blockIdx.x) - args.senders;
    const i32 blocks = static_cast<i32>(gridDim.x) - args.senders;
    if (warp >= movers) {
        fill_unused_rows<Config>(args, block, blocks);
        return;
    }
    // Numbered by warps first: of lines that do not go round no block gets two.
    const expand_walk walk(phase.list, warp * blocks + block, blocks * movers);
    if (args.vector_bytes == 16) {
        u64* barriers = reinterpret_cast<u64*>(memory + movers * mover_type::ring_bytes);
        line_place* queues = reinterpret_cast<line_place*>(barriers + movers * mover_type::stages);
        expand_lines<Config>(args, phase, memory + warp * mover_type::ring_bytes, barriers + warp * mover_type::stages,
                             queues + warp * mover_type::stages, walk, step);
    } else {
        expand_elements<Config>(args, phase, walk, step);
    }
}

#endif
#endif

}  // namespace epjit::templates
