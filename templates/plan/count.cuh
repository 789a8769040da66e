// SPDX-License-Identifier: Apache-2.0
// First half of a plan: ids become entries in ascending slot order, and every entry learns its place among its block's
// rows of the same key. Places come from bit masks and population counts, so no atomic decides an order.
#pragma once

#include "base/device.cuh"
#include "plan/plan_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// A block's shared memory; see plan_shared_bytes.
template <plan_config Config>
struct plan_shared {
    static constexpr i32 keys = plan_keys(Config);
    u64* masks;   ///< [keys] tokens of the current tile that have the key
    u32* counts;  ///< [keys] rows of the key in this block's tokens before the tile; later the rows before this block
    i32* bases;   ///< [keys] first row of the key; before that, the totals over all blocks
    i32* lines_before;  ///< exchange: [R] lines that the ranks before this one send to each rank
    u16* tile_ids;      ///< sparse: [plan_tile_tokens, K] experts, no_slot filled

    __device__ explicit plan_shared(u8* memory)
        : masks(reinterpret_cast<u64*>(memory)),
          counts(reinterpret_cast<u32*>(memory + keys * 8)),
          bases(reinterpret_cast<i32*>(memory + keys * 12)),
          lines_before(reinterpret_cast<i32*>(memory + keys * 16)),
          tile_ids(reinterpret_cast<u16*>(memory + keys * 16 + (Config.exchange ? Config.num_ranks * 4 : 0))) {}

    /// Notes that the tile's token `t` has the key; shared memory has 32-bit atomics only.
    __device__ __forceinline__ void mark(i32 key, i32 t) {
        atomicOr(reinterpret_cast<u32*>(masks) + key * 2 + t / 32, 1u << t % 32);
    }
};

/// The rank whose tokens lie at place `place` of the arguments' table.
template <plan_config Config, class Args>
__device__ __forceinline__ i32 rank_number(const Args& args, i32 place) {
    if constexpr (Config.exchange) {
        return args.link.me;
    } else {
        return place;
    }
}

__device__ __forceinline__ i64 load_id(const void* ids, i64 index, id_width width) {
    switch (width) {
        case id_width::i16: return static_cast<const i16*>(ids)[index];
        case id_width::i32: return static_cast<const i32*>(ids)[index];
        case id_width::u32: return static_cast<const u32*>(ids)[index];
        default: return static_cast<const i64*>(ids)[index];
    }
}

/// Input problems one thread met.
struct id_problems {
    u32 bad = 0;
    u32 duplicate = 0;
    u32 excess = 0;
};

/// One lane's choice for its token.
struct choice {
    u16 slot = no_slot;
    u16 rank = no_rank;
    u16 column = 0;
};

template <plan_config Config>
struct token_lanes {
    static constexpr i32 value = lanes_of_token(Config.topk);
    static constexpr i32 tokens_per_pass = min_of(plan_tile_tokens, Config.threads / value);
    static constexpr i32 passes = plan_tile_tokens / tokens_per_pass;
};

/// Sparse: the first K set bytes of a map's row as ids, no_slot after them. The lanes of a warp share the row, 32
/// experts a step. A null row is empty.
template <plan_config Config>
__device__ void compact_map_row(const u8* row, u16* ids, id_problems& problems) {
    const i32 lane = static_cast<i32>(lane_idx());
    i32 found = 0;
    if (row != nullptr) {
#pragma unroll 4
        for (i32 first = 0; first < Config.num_experts; first += 32) {
            const i32 expert = first + lane;
            const bool set = expert < Config.num_experts && row[expert] != 0;
            const u32 sets = __ballot_sync(full_warp, set);
            const i32 place = found + __popc(sets & ((1u << lane) - 1));
            if (set && place < Config.topk) {
                ids[place] = static_cast<u16>(expert);
            }
            found += __popc(sets);
        }
    }
    if (lane >= found && lane < Config.topk) {
        ids[lane] = no_slot;
    }
    if (lane == 0 && found > Config.topk) {
        problems.excess += static_cast<u32>(found - Config.topk);
    }
}

/// Sparse: compacts each of the tile's map rows into K ids. A warp per token.
template <plan_config Config, class Args>
__device__ void stage_sparse_tile(const Args& args, plan_shared<Config>& shared, i32 first_token, i32 last_token,
                                  id_problems& problems) {
    i32 rank = 0;
#pragma unroll 1
    for (i32 t = static_cast<i32>(threadIdx.x) / 32; t < plan_tile_tokens; t += Config.threads / 32) {
        const i32 token = first_token + t;
        const u8* row = nullptr;
        if (token < last_token) {
            rank = source_rank_of(args, token, rank);
            row = static_cast<const u8*>(args.ranks[rank].routing) +
                  static_cast<i64>(token - args.ranks[rank].first_token) * Config.num_experts;
        }
        compact_map_row<Config>(row, shared.tile_ids + t * Config.topk, problems);
    }
}

/// Whether ids name slots directly.
template <plan_config Config, class Args>
__device__ __forceinline__ bool names_slots(const Args& args) {
    return !Config.sparse && args.ids_are_slots != 0;
}

/// The lane's id when it is in range and the first of its kind in its token, else -1. All lanes of the warp call it,
/// those of a token with that token's ids.
template <plan_config Config, class Args>
__device__ i64 valid_id(const Args& args, i64 id, id_problems& problems) {
    const i64 limit = names_slots<Config>(args) ? Config.num_slots : Config.num_experts;
    // An unsigned id has no -1 of its own: its all-ones value is taken for it.
    const bool dropped = id == -1 || (args.width == id_width::u32 && id == 0xffffffffLL);
    if (!dropped && (id < 0 || id >= limit)) {
        ++problems.bad;
    }
    bool valid = !dropped && id >= 0 && id < limit;

    // The first of equal ids in a token stays. Lanes without one compare under numbers of their own.
    const u32 lane = lane_idx();
    const u32 same_token = lane / token_lanes<Config>::value;
    const u32 value = valid ? same_token << 16 | static_cast<u32>(id) : 0x80000000u | lane;
    const u32 equals = __match_any_sync(full_warp, value);
    if (valid && (equals & ((1u << lane) - 1)) != 0) {
        ++problems.duplicate;
        valid = false;
    }
    return valid ? id : -1;
}

/// The slot of one of an expert's copies, taken in turn. Not inline: most placements have no copies.
__device__ __noinline__ inline u16 slot_of_copy(const i32* expert_first, const u16* expert_slots, i32 id, i32 turn) {
    const i32 first = expert_first[id];
    const i32 copies = expert_first[id + 1] - first;
    return expert_slots[first + (copies == 1 ? 0 : turn % copies)];
}

/// The slot that a valid id of token `local` of rank `rank` means.
template <class Args>
__device__ __forceinline__ u16 slot_of(const Args& args, bool by_slot, i32 id, i32 rank, i32 local) {
    return by_slot || args.expert_slots == nullptr
               ? static_cast<u16>(id)
               : slot_of_copy(args.expert_first, args.expert_slots, id, rank + local);
}

/// Validates lane k's id of a token and resolves it to a slot. All lanes of the warp call it; `active` lanes have a
/// token and k < K.
template <plan_config Config, class Args>
__device__ choice choose(const Args& args, const plan_shared<Config>& shared, bool active, i32 tile_token, i32 token,
                         i32 rank, i32 k, id_problems& problems) {
    i64 id = -1;
    const i32 local = active ? token - args.ranks[rank].first_token : 0;
    if (active) {
        if constexpr (Config.sparse) {
            const u16 staged = shared.tile_ids[tile_token * Config.topk + k];
            id = staged == no_slot ? -1 : staged;
        } else {
            id = load_id(args.ranks[rank].routing, static_cast<i64>(local) * Config.topk + k, args.width);
        }
    }
    id = valid_id<Config>(args, id, problems);

    choice c;
    if (id >= 0) {
        const u16 slot =
            slot_of(args, names_slots<Config>(args), static_cast<i32>(id), rank_number<Config>(args, rank), local);
        c.slot = slot;
        c.rank = Config.num_ranks == 1 ? 0 : args.slot_rank[slot];
        c.column = static_cast<u16>(Config.sparse ? static_cast<i32>(id) : k);
    }
    return c;
}

/// Place of a lane's choice among its token's K entries: ascending slot, unused ones last. `AtOnce`: shuffles under
/// way at a time; more of them take longer to compile.
template <plan_config Config, i32 AtOnce = 1>
__device__ __forceinline__ i32 entry_place(u16 slot, i32 k) {
    constexpr i32 group = token_lanes<Config>::value;
    const u32 own = static_cast<u32>(slot) * group + static_cast<u32>(k);  // no two lanes have the same
    i32 place = 0;
#pragma unroll AtOnce
    for (i32 j = 0; j < group; ++j) {
        place += __shfl_sync(full_warp, own, j, group) < own ? 1 : 0;
    }
    return place;
}

/// Counts the block's tokens [first, last) tile by tile and writes their entries, `row` being the place among the
/// block's rows of the same key.
template <plan_config Config, class Args>
__device__ void count_tokens(const Args& args, plan_shared<Config>& shared, i32 first, i32 last,
                             id_problems& problems) {
    using lanes = token_lanes<Config>;
    constexpr i32 group = lanes::value;
    const i32 thread = static_cast<i32>(threadIdx.x);
    const i32 k = thread % group;
    const bool flat = args.layout == row_layout::flat;
    i32 rank = 0;
#pragma unroll 1
    for (i32 tile = first; tile < last; tile += plan_tile_tokens) {
        if constexpr (Config.sparse) {
            stage_sparse_tile(args, shared, tile, last, problems);
            __syncthreads();
        }
        choice choices[lanes::passes];
        i32 places[lanes::passes];
#pragma unroll
        for (i32 p = 0; p < lanes::passes; ++p) {
            const i32 t = p * lanes::tokens_per_pass + thread / group;
            const i32 token = tile + t;
            const bool has_token = thread / group < lanes::tokens_per_pass && token < last;
            const bool active = has_token && k < Config.topk;
            if (has_token) {
                rank = source_rank_of(args, token, rank);
            }
            choices[p] = choose(args, shared, active, t, token, rank, k, problems);
            places[p] = entry_place<Config>(choices[p].slot, k);
            if (choices[p].slot != no_slot) {
                shared.mark(choices[p].slot, t);
                if (flat || Config.exchange) {
                    shared.mark(Config.num_slots + choices[p].rank, t);
                }
            }
        }
        __syncthreads();
#pragma unroll
        for (i32 p = 0; p < lanes::passes; ++p) {
            const i32 t = p * lanes::tokens_per_pass + thread / group;
            const i32 token = tile + t;
            if (thread / group < lanes::tokens_per_pass && token < last && places[p] < Config.topk) {
                const choice& c = choices[p];
                plan_entry entry{-1, c.rank, c.column};
                const u64 before = (1ull << t) - 1;
                const i64 index = static_cast<i64>(token) * Config.topk + places[p];
                if (c.slot != no_slot) {
                    const i32 key = flat ? Config.num_slots + c.rank : c.slot;
                    entry.row = static_cast<i32>(shared.counts[key]) + __popcll(shared.masks[key] & before);
                }
                if constexpr (Config.exchange) {
                    const i32 key = Config.num_slots + c.rank;
                    args.positions[index] =
                        c.slot == no_slot ? -1
                                          : static_cast<i32>(shared.counts[key]) + __popcll(shared.masks[key] & before);
                }
                args.entries[index] = entry;
                args.entry_slots[index] = c.slot;
            }
        }
        __syncthreads();
#pragma unroll 1
        for (i32 key = thread; key < plan_shared<Config>::keys; key += Config.threads) {
            shared.counts[key] += static_cast<u32>(__popcll(shared.masks[key]));
            shared.masks[key] = 0;
        }
        __syncthreads();
    }
}

#endif

}  // namespace epjit::templates
