// SPDX-License-Identifier: Apache-2.0
// What both scatter kernels do beside moving the rows: the metadata of each row, and the rows that no token fills.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "rows/row_list.cuh"
#include "rows/rows_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// One token's entries in a warp: lane k holds entry k.
struct token_entries {
    plan_entry entry{-1, no_rank, 0};
    i32 slot = no_slot;
    float weight = 0.0f;
    i32 source_rank = 0;
    i32 source_token = 0;
    i32 source_row = 0;  ///< of the source's input
    bool leads = false;  ///< this lane's row is not that of the lane before (flat: one row for several entries)

    __device__ __forceinline__ bool has_row() const { return entry.row >= 0; }
};

/// The lane's weight in the list's token `token` of `rank`, whose entries are `t`.
template <scatter_config Config, class Args>
__device__ __forceinline__ float read_weight(const Args& args, i32 token, i32 rank, const token_entries& t) {
    const i32 lane = static_cast<i32>(lane_idx());
    const scatter_rank& from = args.ranks[rank];
    if (lane >= Config.topk || from.weights == nullptr || t.entry.rank == no_rank) {
        return 0.0f;
    }
    // Own lines may be given the caller's weights, where the column is the entry's.
    const bool by_token = args.list.lines != nullptr && from.own_weight_columns != 0;
    const i64 row = by_token ? t.source_token : list_local_of(args, token, rank);
    const i32 column = by_token ? args.entries[row * Config.topk + lane].column : static_cast<i32>(t.entry.column);
    return from.weights[row * (by_token ? from.own_weight_columns : args.weight_columns) + column];
}

/// Finds the lanes that lead a row. Called by whole warps.
template <class Args>
__device__ __forceinline__ void find_leaders(const Args& args, token_entries& t) {
    const u32 before = __shfl_up_sync(full_warp, static_cast<u32>(t.entry.rank), 1);
    t.leads = t.has_row() && (args.layout != row_layout::flat || lane_idx() == 0 || before != t.entry.rank);
}

/// Reads a token's entries but for their weights; called by whole warps with a valid token of the list.
template <scatter_config Config, class Args>
__device__ __forceinline__ token_entries read_places(const Args& args, i32 token, i32 rank) {
    token_entries t;
    const i32 lane = static_cast<i32>(lane_idx());
    const bool lines = args.list.lines != nullptr;
    const i32 local = list_local_of(args, token, rank);
    t.source_rank = rank;
    t.source_token = list_token_of<Config.topk>(args, rank, local);
    t.source_row = lines && args.ranks[rank].by_token == 0 ? local : t.source_token;
    const listed_entry e = read_listed_entry<Config.topk>(args, token, rank, local);
    t.entry = e.entry;
    if (lane < Config.topk) {
        t.slot = lines ? e.slot : args.entry_slots[static_cast<i64>(token) * Config.topk + lane];
    }
    find_leaders(args, t);
    return t;
}

/// All of a token's entries.
template <scatter_config Config, class Args>
__device__ __forceinline__ token_entries read_entries(const Args& args, i32 token, i32 rank) {
    token_entries t = read_places<Config>(args, token, rank);
    t.weight = read_weight<Config>(args, token, rank, t);
    return t;
}

/// Whether anything travels beside the rows. Called by whole warps.
template <scatter_config Config, class Args>
__device__ __forceinline__ bool wants_metadata(const Args& args) {
    bool wanted = false;
#pragma unroll 1
    for (i32 r = static_cast<i32>(lane_idx()); r < Config.num_ranks; r += 32) {
        const scatter_rank& to = args.ranks[r];
        wanted = wanted || to.row_source != nullptr || to.row_weights != nullptr || to.local_ids != nullptr ||
                 to.local_weights != nullptr;
    }
    return __any_sync(full_warp, wanted);
}

/// Writes what travels beside a token's rows. Called by whole warps.
template <scatter_config Config, class Args>
__device__ __forceinline__ void write_metadata_inline(const Args& args, const token_entries& t) {
    if (t.leads) {
        const scatter_rank& to = args.ranks[t.entry.rank];
        if (to.row_source != nullptr) {
            reinterpret_cast<int2*>(to.row_source)[t.entry.row] = int2{t.source_rank, t.source_token};
        }
        if (to.row_weights != nullptr && args.layout != row_layout::flat) {
            to.row_weights[t.entry.row] = t.weight;
        }
    }
    if (args.layout != row_layout::flat) {
        return;
    }
    // Flat: the entries of one rank are neighbours; each writes its local slot at its place within them, and the leader
    // closes the row.
    const u32 lane = lane_idx();
    const u32 leaders = __ballot_sync(full_warp, t.leads);
    const u32 members = __match_any_sync(full_warp, t.has_row() ? static_cast<u32>(t.entry.rank) : 0x10000u | lane);
    if (t.has_row()) {
        const scatter_rank& to = args.ranks[t.entry.rank];
        const i32 place = static_cast<i32>(__popc(members & ((1u << lane) - 1)));
        const i64 row = static_cast<i64>(t.entry.row) * Config.topk;
        if (to.local_ids != nullptr) {
            to.local_ids[row + place] = args.list.lines != nullptr ? t.slot : t.slot - args.rank_first[t.entry.rank];
        }
        if (to.local_weights != nullptr) {
            to.local_weights[row + place] = t.weight;
        }
        if ((leaders >> lane & 1) != 0) {
#pragma unroll 1
            for (i32 k = static_cast<i32>(__popc(members)); k < Config.topk; ++k) {
                if (to.local_ids != nullptr) {
                    to.local_ids[row + k] = -1;
                }
                if (to.local_weights != nullptr) {
                    to.local_weights[row + k] = 0.0f;
                }
            }
        }
    }
}

template <scatter_config Config, class Args>
__device__ __noinline__ void write_metadata_shared(const Args& args, token_entries t) {
    write_metadata_inline<Config>(args, t);
}

/// One copy in the program where two kernels need it: compile time counts. Alone, a kernel inlines it.
template <scatter_config Config, class Args>
__device__ __forceinline__ void write_metadata(const Args& args, const token_entries& t) {
    if constexpr (Config.stages > 0) {
        write_metadata_shared<Config>(args, t);
    } else {
        write_metadata_inline<Config>(args, t);
    }
}

/// Copies a pre-quantised token's scales to its rows. Called by whole warps.
template <scatter_config Config, class Args>
__device__ __forceinline__ void copy_scales(const Args& args, const token_entries& t) {
    constexpr i32 groups = ceil_div(Config.hidden, scale_group);
    constexpr i32 size = scale_bytes(Config.scales);
    using scale = typename element_of<Config.scales == group_scale::f32 ? element::f32 : element::fp8_e4m3>::storage;
    static_assert(sizeof(scale) == size);
    const scatter_rank& from = args.ranks[t.source_rank];
    const scale* in = reinterpret_cast<const scale*>(static_cast<const u8*>(from.input_scales) +
                                                     static_cast<i64>(t.source_row) * from.input_scale_stride);
    const u32 leaders = __ballot_sync(full_warp, t.leads);
#pragma unroll 1
    for (i32 g = static_cast<i32>(lane_idx()); g < ceil_div(groups, 32) * 32; g += 32) {
        const scale value = g < groups ? in[g] : scale{};
#pragma unroll 1
        for (u32 rest = leaders; rest != 0; rest &= rest - 1) {
            const i32 source = __ffs(static_cast<i32>(rest)) - 1;
            const i32 row = __shfl_sync(full_warp, t.entry.row, source);
            const scatter_rank& to = args.ranks[__shfl_sync(full_warp, static_cast<u32>(t.entry.rank), source)];
            if (g < groups) {
                u8* out = static_cast<u8*>(to.output_scales) + static_cast<i64>(row) * to.output_scale_stride;
                reinterpret_cast<scale*>(out)[g] = value;
            }
        }
    }
}

/// A row to all its places by one warp, an element at a time: for tensors that no copy of 16 bytes may touch.
template <scatter_config Config>
__device__ __forceinline__ void copy_elements(const scatter_rank* ranks, const token_entries& t, const u8* from) {
    constexpr i32 size = element_bytes(Config.output);
    for (u32 leaders = __ballot_sync(full_warp, t.leads); leaders != 0; leaders &= leaders - 1) {
        const i32 leader = __ffs(static_cast<i32>(leaders)) - 1;
        const i32 row = __shfl_sync(full_warp, t.entry.row, leader);
        const scatter_rank& rank = ranks[__shfl_sync(full_warp, static_cast<u32>(t.entry.rank), leader)];
        u8* to = static_cast<u8*>(rank.output) + static_cast<i64>(row) * rank.output_stride;
#pragma unroll 4
        for (i32 i = static_cast<i32>(lane_idx()); i < Config.hidden; i += 32) {
            store_packet<size>(to + i * size, *reinterpret_cast<const packet<size>*>(from + i * size));
        }
    }
}

/// Clears bytes by a warp, `width` at a time: 16, 4 or 1, of which address and length are multiples.
__device__ __forceinline__ void clear_bytes(u8* p, i32 bytes, i32 width) {
#pragma unroll 1
    for (i32 i = static_cast<i32>(lane_idx()) * width; i < bytes; i += 32 * width) {
        if (width == 16) {
            *reinterpret_cast<uint4*>(p + i) = uint4{0, 0, 0, 0};
        } else if (width == 4) {
            *reinterpret_cast<u32*>(p + i) = 0;
        } else {
            p[i] = 0;
        }
    }
}

/// One row that holds no token: metadata always, data and scales where `clear`.
template <scatter_config Config, class Args>
__device__ __forceinline__ void fill_row(const Args& args, const scatter_rank& to, i64 row, bool clear) {
    constexpr i32 row_bytes = Config.hidden * element_bytes(Config.output);
    const i32 lane = static_cast<i32>(lane_idx());
    const bool flat = args.layout == row_layout::flat;
    if (to.row_source != nullptr && lane < 2) {
        to.row_source[row * 2 + lane] = -1;
    }
    if (to.row_weights != nullptr && !flat && lane == 0) {
        to.row_weights[row] = 0.0f;
    }
    if (flat && lane < Config.topk) {
        if (to.local_ids != nullptr) {
            to.local_ids[row * Config.topk + lane] = -1;
        }
        if (to.local_weights != nullptr) {
            to.local_weights[row * Config.topk + lane] = 0.0f;
        }
    }
    if (clear) {
        clear_bytes(static_cast<u8*>(to.output) + row * to.output_stride, row_bytes,
                    row_bytes % 16 == 0 && args.vector_bytes >= 16 ? 16
                    : row_bytes % 4 == 0 && args.vector_bytes >= 4 ? 4
                                                                   : 1);
        if constexpr (Config.scales != group_scale::none) {
            clear_bytes(static_cast<u8*>(to.output_scales) + row * to.output_scale_stride,
                        ceil_div(Config.hidden, scale_group) * scale_bytes(Config.scales),
                        Config.scales == group_scale::f32 ? 4 : 1);
        }
    }
}

/// The rows that no token fills, shared out over `num_warps` warps of the grid. A slot's are done by as many as there
/// are for each: its segment's padding (expert-major) or the rest of its capacity (masked). Those beyond a rank's last
/// row are done by all.
template <scatter_config Config, class Args>
__device__ __forceinline__ void fill_unused_rows_inline(const Args& args, i32 warp, i32 num_warps) {
    const i32 slots = args.layout == row_layout::flat ? 0 : args.fill_last_slot;
    const i32 tails = args.layout == row_layout::masked ? 0 : args.fill_last_rank;
    const i32 sharers = max_of(1, num_warps / max_of(1, slots - args.fill_first_slot));
    i32 slot = args.fill_first_slot + warp / sharers;
    i32 rank = 0;
    i32 tail = args.fill_first_rank;
#pragma unroll 1
    while (slot < slots || tail < tails) {
        i32 row = 0;
        i32 last = 0;
        i32 step = 1;
        bool clear = args.zero_tail != 0;
        if (slot < slots) {
#pragma unroll 1
            while (slot >= args.rank_first[rank + 1]) {
                ++rank;
            }
            const i32 offset = args.slot_offsets[slot + rank];
            row = offset + args.slot_counts[slot] + warp % sharers;
            step = sharers;
            if (args.layout == row_layout::masked) {
                last = offset + args.ranks[rank].capacity;
            } else {
                last = args.slot_offsets[slot + rank + 1];
                clear = args.zero_padding != 0;
            }
            slot += max_of(1, num_warps / sharers);
        } else {
            rank = tail++;
            row = args.rank_rows[rank] + warp;
            last = args.ranks[rank].capacity;
            step = num_warps;
        }
#pragma unroll 1
        for (; row < last; row += step) {
            fill_row<Config>(args, args.ranks[rank], row, clear);
        }
    }
}

template <scatter_config Config, class Args>
__device__ __noinline__ void fill_unused_rows_shared(const Args& args, i32 warp, i32 num_warps) {
    fill_unused_rows_inline<Config>(args, warp, num_warps);
}

template <scatter_config Config, class Args>
__device__ __forceinline__ void fill_unused_rows(const Args& args, i32 warp, i32 num_warps) {
    if constexpr (Config.stages > 0) {
        fill_unused_rows_shared<Config>(args, warp, num_warps);
    } else {
        fill_unused_rows_inline<Config>(args, warp, num_warps);
    }
}

#endif

}  // namespace epjit::templates
