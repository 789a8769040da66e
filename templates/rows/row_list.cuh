// SPDX-License-Identifier: Apache-2.0
// Which tokens a kernel works on, and how their entries are read: the tokens of a table of ranks, or the lines that
// have reached one rank.
#pragma once

#include "base/device.cuh"
#include "rows/rows_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// True when the exchange has failed: the kernel touches nothing.
template <class Args>
__device__ __forceinline__ bool list_failed(const Args& args) {
    return args.list.failed != nullptr && *args.list.failed != 0;
}

template <class Args>
__device__ __forceinline__ i32 list_size(const Args& args) {
    return args.list.lines != nullptr ? args.list.line_first[args.list.num_ranks] : args.num_tokens;
}

/// Source of the list's n-th token, searched upwards from `rank`.
template <class Args>
__device__ __forceinline__ i32 list_rank_of(const Args& args, i32 n, i32 rank) {
    if (args.list.lines == nullptr) {
        return source_rank_of(args, n, rank);
    }
    while (n >= args.list.line_first[rank + 1]) {
        ++rank;
    }
    return rank;
}

/// Number of the token within its source: the token, or the line's position.
template <class Args>
__device__ __forceinline__ i32 list_local_of(const Args& args, i32 n, i32 rank) {
    if (args.list.lines == nullptr) {
        return n - args.ranks[rank].first_token;
    }
    return n - args.list.line_first[rank] + (args.list.line_skip != nullptr ? args.list.line_skip[rank] : 0);
}

template <i32 TopK, class Args>
__device__ __forceinline__ const u8* line_of(const Args& args, i32 rank, i32 local) {
    return args.list.lines + (static_cast<i64>(rank) * args.list.list_stride + local) * line_bytes(TopK);
}

/// Token of a line, or the local token itself.
template <i32 TopK, class Args>
__device__ __forceinline__ i32 list_token_of(const Args& args, i32 rank, i32 local) {
    return args.list.lines != nullptr ? *reinterpret_cast<const i32*>(line_of<TopK>(args, rank, local)) : local;
}

/// Row of the token in its source's tensor of inputs (or of outputs): see by_token of the per-rank tables.
template <i32 TopK, class Args>
__device__ __forceinline__ i32 list_row_of(const Args& args, i32 rank, i32 local) {
    return args.list.lines != nullptr && args.ranks[rank].by_token != 0 ? list_token_of<TopK>(args, rank, local)
                                                                        : local;
}

struct listed_entry {
    plan_entry entry{-1, no_rank, 0};
    i32 slot = no_slot;  ///< of the whole exchange; read only where asked for
};

/// Lane k's entry of the list's n-th token, which is `local` of `rank`. Called by whole warps.
template <i32 TopK, class Args>
__device__ __forceinline__ listed_entry read_listed_entry(const Args& args, i32 n, i32 rank, i32 local) {
    listed_entry e;
    const i32 lane = static_cast<i32>(lane_idx());
    if (lane >= TopK) {
        return e;
    }
    if (args.list.lines != nullptr) {
        const u8* line = line_of<TopK>(args, rank, local);
        const u16 slot = reinterpret_cast<const u16*>(line + line_slots_offset(TopK))[lane];
        if (slot != no_slot) {
            e.entry = {reinterpret_cast<const i32*>(line)[1 + lane], static_cast<u16>(args.list.me),
                       static_cast<u16>(lane)};
            e.slot = slot;
        }
        return e;
    }
    const i64 index = static_cast<i64>(n) * TopK + lane;
    e.entry = args.entries[index];
    if (e.entry.rank == no_rank || args.list.numbering == row_numbering::plan) {
        return e;
    }
    switch (args.list.numbering) {
        case row_numbering::position: e.entry.row = args.list.positions[index]; break;
        case row_numbering::token: e.entry.row = local; break;
        case row_numbering::entry:
            e.entry.row = e.entry.row < 0 ? -1 : (local - args.list.first_token) * TopK + lane;
            break;
        default: e.entry.row = e.entry.row < 0 ? -1 : args.list.positions[index] * TopK + lane; break;
    }
    if (e.entry.rank == args.list.skip_rank ||
        (args.list.num_holders != 0 &&
         static_cast<u32>(e.entry.rank - args.list.first_holder) >= static_cast<u32>(args.list.num_holders))) {
        e.entry.row = -1;
    }
    if (args.list.merge > 1) {
        e.entry.rank = static_cast<u16>(e.entry.rank / args.list.merge);
    }
    return e;
}

#endif

}  // namespace epjit::templates
