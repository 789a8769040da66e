// SPDX-License-Identifier: Apache-2.0
// Routing on its way to every rank: rows of ids, validated by their owner, packed into vectors of 16 bytes, stored into
// every rank's memory and read there. See gathered_plan_layout.cuh.
#pragma once

#include "base/device.cuh"
#include "exchange/flags.cuh"
#include "plan/count.cuh"
#include "plan/gathered_plan_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// The plan's config with the threads of gathered_plan_kernel.
EPJIT_SHARED constexpr plan_config gathered_config(plan_config c) {
    c.threads = gathered_plan_threads;
    return c;
}

/// A block's shared memory; see gathered_shared_bytes. Sums are of the keys (plan_keys), then of lines: [R] to each
/// rank from the ranks before this one, [R] to each from this one, [R] to this one from each.
template <plan_config Config>
struct gathered_shared {
    static constexpr i32 keys = plan_keys(Config);
    static constexpr i32 sums = gathered_sums(Config);
    static constexpr i32 ranks = Config.num_ranks;

    u64* masks;       ///< [tiles, keys] the tile's tokens that have the key
    u8** windows;     ///< [R]
    u32* before;      ///< [keys] rows of the key before the chunk; not at once
    i32* counts;      ///< [sums] of the tiles that the block has counted; after that, rows before its next tile
    i32* totals;      ///< [sums] over all blocks; the same memory as counts where one block counts once
    i32* starts;      ///< [S+1]
    i32* rank_first;  ///< [R+1]
    i32* line_first;  ///< [R+1]
    gathered_header* headers;  ///< [R]
    u32* problems;             ///< bad, duplicate, excess ids of this rank; dropped rows
    u16* slots;                ///< [tiles, plan_tile_tokens, K] slots in the order of the ids, no_slot filled
    u16* ids;                  ///< sparse: the same of the experts
    u16* staged;               ///< [gathered_pack_tokens, K] ids on their way out
    u16* slot_rank;            ///< [S]

    __device__ gathered_shared(u8* memory, i32 tiles) {
        masks = reinterpret_cast<u64*>(memory);
        windows = reinterpret_cast<u8**>(masks + static_cast<i64>(tiles) * keys);
        before = reinterpret_cast<u32*>(windows + ranks);
        counts = reinterpret_cast<i32*>(before + keys);
        totals = counts + sums;
        starts = totals + sums;
        rank_first = starts + Config.num_slots + 1;
        line_first = rank_first + ranks + 1;
        problems = reinterpret_cast<u32*>(line_first + ranks + 1);
        headers = reinterpret_cast<gathered_header*>(problems + 4);
        slots = reinterpret_cast<u16*>(headers + ranks);
        ids = slots + static_cast<i64>(tiles) * plan_tile_tokens * Config.topk;
        staged = Config.sparse ? ids + (ids - slots) : ids;
        slot_rank = staged + gathered_pack_tokens * Config.topk;
    }
};

/// This launch's place in the exchange's order.
struct gathering {
    u32 step;    ///< the lane's step that it takes
    u32 number;  ///< of the gathering, on every vector
    u8* rows;    ///< [R, row_stride] where rows arrive
    i64 offset;  ///< flagged: of `rows` in every window
};

/// The one after `steps` steps of the lane and `gatherings` plans like this one.
template <plan_config Config>
__device__ __forceinline__ gathering gathering_of(const gathered_plan_args& args, u32 steps, u32 gatherings) {
    if (args.flagged == 0) {
        return {0, 0, args.rows, args.rows_offset};
    }
    // Two places in turn: a rank that has all vectors of one gathering knows that every rank is done with the one
    // before.
    const u32 number = gatherings + 1;
    const i64 side = (number & 1) * Config.num_ranks * args.row_stride;
    return {steps + 1, number, args.rows + side, args.rows_offset + side};
}

/// Validated ids of this rank's tokens [first, first + gathered_pack_tokens) to `shared.staged`, no_slot where there is
/// none.
template <plan_config Config>
__device__ void stage_rows(const gathered_plan_args& args, const gathered_shared<Config>& shared, i32 first,
                           id_problems& problems) {
    const i32 tokens = min_of(gathered_pack_tokens, args.bound - first);
    if constexpr (Config.sparse) {
        const u8* map = static_cast<const u8*>(args.ranks[0].routing);
#pragma unroll 1
        for (i32 t = static_cast<i32>(threadIdx.x) / 32; t < tokens; t += Config.threads / 32) {
            const i32 token = first + t;
            const u8* row = token < args.num_tokens ? map + static_cast<i64>(token) * Config.num_experts : nullptr;
            compact_map_row<Config>(row, shared.staged + t * Config.topk, problems);
        }
    } else {
        constexpr i32 group = token_lanes<Config>::value;
        constexpr i32 pass_tokens = Config.threads / group;
        constexpr i32 at_once = min_of(4, ceil_div(gathered_pack_tokens, pass_tokens));
        const i32 k = static_cast<i32>(threadIdx.x) % group;
        const i32 own = static_cast<i32>(threadIdx.x) / group;
#pragma unroll 1
        for (i32 base = 0; base < tokens; base += at_once * pass_tokens) {
            // Ids of several passes are on their way before the first is looked at.
            i64 ids[at_once];
#pragma unroll
            for (i32 p = 0; p < at_once; ++p) {
                const i32 t = base + p * pass_tokens + own;
                ids[p] = -1;
                if (base + p * pass_tokens < tokens && t < tokens && k < Config.topk && first + t < args.num_tokens) {
                    ids[p] = load_id(args.ranks[0].routing, static_cast<i64>(first + t) * Config.topk + k, args.width);
                }
            }
#pragma unroll
            for (i32 p = 0; p < at_once; ++p) {
                const i32 t = base + p * pass_tokens + own;
                if (base + p * pass_tokens < tokens) {
                    const i64 valid = valid_id<Config>(args, ids[p], problems);
                    if (t < tokens && k < Config.topk) {
                        shared.staged[t * Config.topk + k] = static_cast<u16>(valid);
                    }
                }
            }
        }
    }
}

/// Adds each warp's problems to the block's.
template <plan_config Config>
__device__ __forceinline__ void sum_problems(const gathered_shared<Config>& shared, const id_problems& problems) {
    if (__any_sync(full_warp, (problems.bad | problems.duplicate | problems.excess) != 0)) {
        const u32 bad = __reduce_add_sync(full_warp, problems.bad);
        const u32 duplicate = __reduce_add_sync(full_warp, problems.duplicate);
        const u32 excess = __reduce_add_sync(full_warp, problems.excess);
        if (lane_idx() == 0) {
            atomicAdd(&shared.problems[0], bad);
            atomicAdd(&shared.problems[1], duplicate);
            atomicAdd(&shared.problems[2], excess);
        }
    }
}

/// One vector of this rank's rows to where rank `to` reads it: flagged, to its window, else to this rank's own place.
template <plan_config Config>
__device__ __forceinline__ void store_vector(const gathered_plan_args& args, const gathered_shared<Config>& shared,
                                             const gathering& g, i32 to, i32 vector, uint4 value) {
    const i64 at = args.link.me * args.row_stride + static_cast<i64>(vector) * gathered_vector_bytes;
    if (args.flagged != 0) {
        value.w = g.number;
        st_relaxed_sys_128(shared.windows[to] + g.offset + at, value);
    } else {
        *reinterpret_cast<uint4*>(g.rows + at) = value;
    }
}

/// The staged tokens, from `first` on, to every rank.
template <plan_config Config>
__device__ void send_stage(const gathered_plan_args& args, const gathered_shared<Config>& shared, const gathering& g,
                           i32 first) {
    const bool flagged = args.flagged != 0;
    const i32 per_vector = gathered_ids_per_vector(flagged);
    const i32 first_vector = flagged ? first * Config.topk / 6 : first * Config.topk / 8;
    const i32 most = flagged ? gathered_pack_tokens * Config.topk / 6 : gathered_pack_tokens * Config.topk / 8;
    const i32 vectors = min_of(most, args.id_vectors - first_vector);
    const i32 ids = (args.bound - first) * Config.topk;
    const i32 copies = flagged ? Config.num_ranks : 1;
#pragma unroll 1
    for (i32 i = static_cast<i32>(threadIdx.x); i < vectors * copies; i += Config.threads) {
        const i32 vector = flagged ? i / Config.num_ranks : i;
        u32 words[4];
#pragma unroll
        for (i32 w = 0; w < 4; ++w) {
            const i32 id = vector * per_vector + 2 * w;
            const bool used = 2 * w < per_vector;
            const u32 low = used && id < ids ? shared.staged[id] : no_slot;
            const u32 high = used && id + 1 < ids ? shared.staged[id + 1] : no_slot;
            words[w] = high << 16 | low;
        }
        store_vector(args, shared, g, i - vector * copies, gathered_header_vectors + first_vector + vector,
                     {words[0], words[1], words[2], words[3]});
    }
}

/// What the others must know beside the ids.
template <plan_config Config>
__device__ void send_header(const gathered_plan_args& args, const gathered_shared<Config>& shared, const gathering& g) {
    const i32 copies = args.flagged != 0 ? Config.num_ranks : 1;
    // From the last thread down: the first ones have ids to send.
    for (i32 i = Config.threads - 1 - static_cast<i32>(threadIdx.x); i < gathered_header_vectors * copies;
         i += Config.threads) {
        const i32 vector = args.flagged != 0 ? i / Config.num_ranks : i;
        uint4 value{static_cast<u32>(args.num_tokens), static_cast<u32>(args.ranks[0].capacity),
                    static_cast<u32>(args.refused_tokens), 0};
        if (vector == 1) {
            value = {shared.problems[0], shared.problems[1], shared.problems[2], 0};
        } else if (vector == 2) {
            value = {static_cast<u32>(args.bound), 0, 0, 0};
        }
        store_vector(args, shared, g, i - vector * copies, vector, value);
    }
}

/// Waits for a vector of `source`, bounded as a flag's wait is. False: the exchange has failed. Any thread.
__device__ inline bool wait_vector(const rank_link& link, const gathering& g, const u8* at, i32 source, uint4& value) {
    constexpr lane_op op = lane_op::plan_rows;
    value = ld_relaxed_sys_128(at);
    if (value.w == g.number) {
        return true;
    }
    const u64 start = global_time_ns();
    for (u32 spin = 1;; ++spin) {
        value = ld_relaxed_sys_128(at);
        if (value.w == g.number) {
            return true;
        }
        if (spin % 16 == 0 && !keep_waiting(link, source, g.step, op, start)) {
            return false;
        }
    }
}

/// A vector of `source`, waited for where it tells its arrival itself.
__device__ __forceinline__ bool take_vector(const gathered_plan_args& args, const gathering& g, i32 source, i32 vector,
                                            uint4& value) {
    const u8* at = g.rows + source * args.row_stride + static_cast<i64>(vector) * gathered_vector_bytes;
    if (args.flagged != 0) {
        return wait_vector(args.link, g, at, source, value);
    }
    value = *reinterpret_cast<const uint4*>(at);
    return true;
}

/// All ranks' headers. False: the exchange has failed.
template <plan_config Config>
__device__ bool take_headers(const gathered_plan_args& args, const gathered_shared<Config>& shared,
                             const gathering& g) {
    bool ok = true;
    // From the last thread down: the first ones have ids to wait for.
    for (i32 i = Config.threads - 1 - static_cast<i32>(threadIdx.x); i < gathered_header_vectors * Config.num_ranks;
         i += Config.threads) {
        const i32 source = i / gathered_header_vectors;
        const i32 vector = i % gathered_header_vectors;
        uint4 value;
        if (!take_vector(args, g, source, vector, value)) {
            ok = false;
            continue;
        }
        u32* to = reinterpret_cast<u32*>(shared.headers + source) + 3 * vector;
        to[0] = value.x;
        to[1] = value.y;
        to[2] = value.z;
        if (vector == 2 && static_cast<i32>(value.x) != args.bound) {
            fail_exchange(args.link, failure_kind::mismatch, lane_op::plan_rows, source, g.step,
                          step_word(g.step, lane_op::plan_rows));
            ok = false;
        }
    }
    return ok;
}

/// Ids of the tiles [first, last) of all ranks' tiles to `shared.slots`, as they come. False: the exchange has failed.
template <plan_config Config>
__device__ bool take_tiles(const gathered_plan_args& args, const gathered_shared<Config>& shared, const gathering& g,
                           i32 first, i32 last) {
    constexpr i32 topk = Config.topk;
    const bool flagged = args.flagged != 0;
    const i32 per_vector = gathered_ids_per_vector(flagged);
    const i32 rank_tiles = args.by_rank_tiles.divisor;
    const i32 first_rank = args.by_rank_tiles.of(first);
    const i32 num_ranks = args.by_rank_tiles.of(last - 1) - first_rank + 1;
    bool ok = true;
#pragma unroll 1
    for (i32 i = static_cast<i32>(threadIdx.x); i < num_ranks * args.by_span.divisor; i += Config.threads) {
        const i32 number = args.by_span.of(i);
        const i32 source = first_rank + number;
        const i32 rank_tile = source * rank_tiles;  // the source's first
        const i32 low = max_of(first - rank_tile, 0) * plan_tile_tokens * topk;
        const i32 high = min_of(args.bound, (last - rank_tile) * plan_tile_tokens) * topk;
        const i32 vector = (flagged ? low / 6 : low / 8) + i - number * args.by_span.divisor;
        if (vector * per_vector >= high) {
            continue;
        }
        u16* const to = shared.slots + (rank_tile - first) * (plan_tile_tokens * topk);
        uint4 value;
        if (!take_vector(args, g, source, gathered_header_vectors + vector, value)) {
            ok = false;
            continue;
        }
        // Two ids at a time: a tile has an even number of them, and so has a vector.
        const u32 words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
        for (i32 j = 0; j < 4; ++j) {
            const i32 at = vector * per_vector + 2 * j;
            if (2 * j < per_vector && at >= low && at < high) {
                *reinterpret_cast<u32*>(to + at) = words[j];
            }
        }
    }
    return ok;
}

/// Ids of the tiles, taken, to slots, and the tiles' masks, which are zero before. An id a thread.
template <plan_config Config>
__device__ void resolve_tiles(const gathered_plan_args& args, const gathered_shared<Config>& shared, i32 first,
                              i32 last) {
    constexpr i32 topk = Config.topk;
    const i32 rank_tiles = args.by_rank_tiles.divisor;
    const i32 tile_tokens = args.by_tile_tokens.divisor;
    const bool by_slot = names_slots<Config>(args);
#pragma unroll 1
    for (i32 n = static_cast<i32>(threadIdx.x); n < (last - first) * tile_tokens * topk; n += Config.threads) {
        const i32 number = n / topk;
        const i32 tile = args.by_tile_tokens.of(number);
        const i32 t = number - tile * tile_tokens;
        const i32 i = (tile * plan_tile_tokens + t) * topk + n - number * topk;
        const i32 source = args.by_rank_tiles.of(first + tile);
        const i32 token = (first + tile - source * rank_tiles) * plan_tile_tokens + t;
        if (token >= args.bound) {
            continue;
        }
        u16 slot = shared.slots[i];
        if constexpr (Config.sparse) {
            shared.ids[i] = slot;
        }
        if (slot != no_slot) {
            slot = slot_of(args, by_slot, slot, source, token);
            u32* masks = reinterpret_cast<u32*>(shared.masks + static_cast<i64>(tile) * shared.keys) + t / 32;
            atomicOr(masks + 2 * slot, 1u << t % 32);
            atomicOr(masks + 2 * (Config.num_slots + shared.slot_rank[slot]), 1u << t % 32);
            shared.slots[i] = slot;
        }
    }
}

#endif

}  // namespace epjit::templates
