// SPDX-License-Identifier: Apache-2.0
// Where rows lie, of a plan made of all ranks' routing: this rank's entries and the lines that come to it. A dispatch
// of packets is told them one by one, as they are found.
#pragma once

#include "base/device.cuh"
#include "plan/gathered_rows.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Whether a dispatch of packets is told anything before the plan has ended.
__device__ __forceinline__ bool tells(const gathered_plan_args& args) {
    return args.early.tokens != 0;
}

/// That the plan has begun, by one thread: whoever sees it sees what was there before the plan.
__device__ __forceinline__ void tell_begun(const gathered_plan_args& args, const gathering& g) {
    st_release_gpu_64(args.early.state, early_word(0, early_tag(g.step, args.sequence)));
}

/// What is needed to send this rank's tokens from `first` on, of which `shared.staged` has the ids: told while the
/// ranks' ids are on their way.
template <plan_config Config>
__device__ void tell_entries(const gathered_plan_args& args, const gathered_shared<Config>& shared, const gathering& g,
                             i32 first) {
    constexpr i32 group = token_lanes<Config>::value;
    const i32 tokens = min_of(gathered_pack_tokens, args.num_tokens - first);
    const bool by_slot = names_slots<Config>(args);
    const u32 tag = early_tag(g.step, args.sequence);
    const i32 k = static_cast<i32>(threadIdx.x) % group;
#pragma unroll 1
    for (i32 base = 0; base < tokens; base += Config.threads / group) {
        const i32 t = base + static_cast<i32>(threadIdx.x) / group;
        if (!__any_sync(full_warp, t < tokens)) {
            continue;
        }
        const u16 id = t < tokens && k < Config.topk ? shared.staged[t * Config.topk + k] : no_slot;
        const u16 slot = id != no_slot ? slot_of(args, by_slot, id, args.link.me, first + t) : no_slot;
        const i32 place = entry_place<Config, 8>(slot, k);
        if (t < tokens && place < Config.topk) {
            st_relaxed_gpu_64(args.early.entries + static_cast<i64>(first + t) * Config.topk + place,
                              early_entry(slot != no_slot ? shared.slot_rank[slot] : no_rank,
                                          Config.sparse ? id : static_cast<u16>(k), tag));
        }
    }
}

__device__ __forceinline__ void tell_place(early_place* to, const early_place& place) {
    st_relaxed_sys_128(to, __builtin_bit_cast(uint4, place));
}

/// Rows of `key` before token `t` of the chunk's tile `tile`; at once, those of the tiles from `from` on.
template <plan_config Config>
__device__ __forceinline__ i32 rows_before(const gathered_plan_args& args, const gathered_shared<Config>& shared,
                                           i32 from, i32 tile, i32 t, i32 key) {
    const bool at_once = args.at_once != 0;
    i32 rows = at_once ? 0 : static_cast<i32>(shared.before[key]);
#pragma unroll 1
    for (i32 i = at_once ? from : 0; i < tile; ++i) {
        rows += __popcll(shared.masks[i * shared.keys + key]);
    }
    return rows + __popcll(shared.masks[tile * shared.keys + key] & ((1ull << t) - 1));
}

/// Where a token's row for a slot lies in the slot's rank's output, -1 beyond its capacity.
template <plan_config Config>
__device__ __forceinline__ i32 row_of(const gathered_plan_args& args, const gathered_shared<Config>& shared, i32 tile,
                                      i32 t, u16 slot, i32 rank) {
    const bool flat = args.layout == row_layout::flat;
    const i32 capacity = static_cast<i32>(shared.headers[rank].capacity);
    i32 row = rows_before(args, shared, 0, tile, t, flat ? Config.num_slots + rank : slot);
    if (args.layout == row_layout::expert_major) {
        row += shared.starts[slot] - shared.starts[shared.rank_first[rank]];
    }
    if (row >= capacity) {
        return -1;
    }
    return args.layout == row_layout::masked ? row + (slot - shared.rank_first[rank]) * capacity : row;
}

/// Of a plan at once: the lines that come from each source.
template <plan_config Config>
__device__ __forceinline__ void tell_lines(const gathered_plan_args& args, const gathered_shared<Config>& shared,
                                           const gathering& g) {
    // From the last thread down: the first ones have tokens to place.
    const i32 r = Config.threads - 1 - static_cast<i32>(threadIdx.x);
    if (r < Config.num_ranks) {
        const i32 rank_tiles = args.by_rank_tiles.divisor;
        i32 lines = 0;
#pragma unroll 1
        for (i32 tile = r * rank_tiles; tile < (r + 1) * rank_tiles; ++tile) {
            lines += __popcll(shared.masks[tile * shared.keys + Config.num_slots + args.link.me]);
        }
        st_relaxed_gpu_64(args.early.state + 1 + r,
                          early_word(static_cast<u32>(lines), early_tag(g.step, args.sequence)));
    }
}

/// Flat, by the block that publishes a plan at once, in whose counts are all rows: takes back those that do not fit.
template <plan_config Config>
__device__ __forceinline__ void take_back_dropped(const gathered_plan_args& args, const gathered_shared<Config>& shared,
                                                  i32 tiles) {
    const i32 me = args.link.me;
    if (args.layout != row_layout::flat ||
        shared.totals[Config.num_slots + me] <= static_cast<i32>(shared.headers[me].capacity)) {
        return;
    }
    __syncthreads();
#pragma unroll 1
    for (i32 i = static_cast<i32>(threadIdx.x); i < tiles * plan_tile_tokens * Config.topk; i += Config.threads) {
        const i32 tile = i / (plan_tile_tokens * Config.topk);
        const i32 t = i / Config.topk - tile * plan_tile_tokens;
        if ((shared.masks[tile * shared.keys + Config.num_slots + me] >> t & 1) == 0) {
            continue;
        }
        const u16 slot = shared.slots[i];
        if (slot != no_slot && shared.slot_rank[slot] == me && row_of(args, shared, tile, t, slot, me) < 0) {
            atomicAdd(&args.slot_counts[slot], -1);
        }
    }
}

/// Entries of this rank's tokens of the chunk, and lines of all ranks' tokens that come here. Lanes share a token as in
/// counting; at once, blocks share the chunk.
template <plan_config Config>
__device__ void place_tiles(const gathered_plan_args& args, const gathered_shared<Config>& shared, const gathering& g,
                            i32 first, i32 last) {
    constexpr i32 group = token_lanes<Config>::value;
    const u32 tag = early_tag(g.step, args.sequence);
    const i32 rank_tiles = args.by_rank_tiles.divisor;
    const i32 tile_tokens = args.by_tile_tokens.divisor;
    const i32 me = args.link.me;
    const i32 k = static_cast<i32>(threadIdx.x) % group;
    constexpr i32 round = Config.threads / group;
    const bool shares = args.at_once != 0;
#pragma unroll 1
    for (i32 base = shares ? static_cast<i32>(blockIdx.x) * round : 0; base < (last - first) * tile_tokens;
         base += shares ? static_cast<i32>(gridDim.x) * round : round) {
        const i32 number = base + static_cast<i32>(threadIdx.x) / group;
        const i32 tile = args.by_tile_tokens.of(number);
        const i32 t = number - tile * tile_tokens;
        const i32 at = tile * plan_tile_tokens + t;
        const i32 source = args.by_rank_tiles.of(first + tile);
        const i32 token = (first + tile - source * rank_tiles) * plan_tile_tokens + t;
        const bool exists = tile < last - first && token < args.bound;
        const bool own = exists && source == me && token < args.num_tokens;
        const bool comes = exists && (shared.masks[tile * shared.keys + Config.num_slots + me] >> t & 1) != 0;
        if (!__any_sync(full_warp, own || comes)) {
            continue;
        }
        const u16 slot = exists && k < Config.topk ? shared.slots[at * Config.topk + k] : no_slot;
        const i32 place = entry_place<Config, 8>(slot, k);
        if (place >= Config.topk || (!own && !comes)) {
            continue;
        }
        plan_entry entry{-1, no_rank, 0};
        if (slot != no_slot) {
            entry.rank = shared.slot_rank[slot];
            if (own || entry.rank == me) {
                entry.row = row_of(args, shared, tile, t, slot, entry.rank);
            }
            if (own) {
                entry.column = Config.sparse ? shared.ids[at * Config.topk + k] : static_cast<u16>(k);
            }
        }
        // What a dispatch waits for goes first.
        const bool early = tells(args);
        const i64 index = static_cast<i64>(token) * Config.topk + place;
        if (own && early) {
            tell_place(args.early.places + index, {entry.row, entry.rank, slot, entry.column, tag});
        }
        const bool here = slot != no_slot && entry.rank == me;
        const i32 row = here ? entry.row : -1;
        const u16 local = here ? static_cast<u16>(slot - shared.rank_first[me]) : no_slot;
        i32 line = 0;
        if (comes) {
            line = rows_before(args, shared, source * rank_tiles, tile, t, Config.num_slots + me) -
                   (shares ? 0 : shared.line_first[source]);
            if (early) {
                const i64 told = (static_cast<i64>(source) * args.early.tokens + line) * Config.topk + place;
                tell_place(args.early.lines + told, {row, here ? entry.rank : no_rank, local, token, tag});
            }
        }
        if (own) {
            i32 position = -1;
            if (slot != no_slot) {
                position = rows_before(args, shared, me * rank_tiles, tile, t, Config.num_slots + entry.rank) -
                           (shares ? 0 : shared.totals[shared.keys + entry.rank]);
            }
            args.entries[index] = entry;
            args.entry_slots[index] = slot;
            args.positions[index] = position;
        }
        if (comes) {
            u8* to = args.lines + (static_cast<i64>(source) * args.list_stride + line) * line_bytes(Config.topk);
            reinterpret_cast<i32*>(to)[1 + place] = row;
            reinterpret_cast<u16*>(to + line_slots_offset(Config.topk))[place] = local;
            if (place == 0) {
                *reinterpret_cast<i32*>(to) = token;
            }
            if (!shares && here && entry.row < 0 && args.layout == row_layout::flat) {
                atomicAdd(&args.slot_counts[slot], -1);
            }
        }
    }
}

#endif

}  // namespace epjit::templates
