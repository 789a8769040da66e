// SPDX-License-Identifier: Apache-2.0
// How a token's rows are found for a sum: resolved once per token by one warp, in the order of the declared reduction.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "rows/row_list.cuh"
#include "rows/rows_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// One row of a token's sum.
struct row_term {
    const u8* row;
    float weight;
    u32 boundary;  ///< 0: within a rank, 1: the first row of a rank, 2: of a host (per_rank: of any rank)
};

/// A token's rows in summing order, and where the sum goes.
template <gather_config Config>
struct row_terms {
    row_term term[Config.topk];
    i32 count;
    u8* output;
};

/// Where a row comes in its token's sum.
struct term_place {
    i32 place;     ///< in summing order; only of a lane with a row
    i32 count;     ///< rows of the token
    u32 boundary;  ///< see row_term
    u32 closing;   ///< the last row of a rank: 1, of a host (per_rank: of any rank): 2; else 0, with per_row always
};

/// Orders a token's rows and finds where sums close; called by one whole warp. Lane k has entry k, in ascending (rank,
/// slot) order; `used` says which lanes have a row.
template <i32 TopK, class Args>
__device__ __forceinline__ term_place place_term(const Args& args, bool used, u16 entry_rank) {
    const i32 lane = static_cast<i32>(lane_idx());
    const i32 host = used && args.order == sum_order::per_host ? args.ranks[entry_rank].host : 0;
    const i32 order_key = used ? host : 0x7fffffff;
    const u32 below = (1u << lane) - 1;
    const u32 above = ~below << 1;
    const u32 all = __ballot_sync(full_warp, used);
    term_place at;
    at.place = 0;
    at.count = __popc(all);
    if (args.order == sum_order::per_host) {
#pragma unroll 1
        for (i32 j = 0; j < TopK; ++j) {
            const i32 other = __shfl_sync(full_warp, order_key, j);
            at.place += other < order_key || (other == order_key && j < lane) ? 1 : 0;
        }
    } else {
        at.place = __popc(all & below);
    }
    // Is there another used row of the same rank, of the same host, before or after it?
    const u32 same_rank = __match_any_sync(full_warp, used ? static_cast<u32>(entry_rank) : 0x10000u | lane);
    const u32 same_host = __match_any_sync(full_warp, used ? static_cast<u32>(host) : 0x80000000u | lane);
    const bool per_rank = args.order == sum_order::per_rank;
    const bool sums_ranks = args.order != sum_order::per_row;
    const bool host_starts = (same_host & below) == 0 || per_rank;
    const bool host_ends = (same_host & above) == 0 || per_rank;
    at.boundary = !sums_ranks || (same_rank & below) != 0 ? 0 : host_starts ? 2 : 1;
    at.closing = !sums_ranks || (same_rank & above) != 0 ? 0 : host_ends ? 2 : 1;
    return at;
}

/// The same for terms in memory. Each used lane fills in row and weight of the term it is given.
template <gather_config Config, class Args>
__device__ __forceinline__ row_term* order_term(const Args& args, bool used, u16 entry_rank, row_terms<Config>& out) {
    const term_place at = place_term<Config.topk>(args, used, entry_rank);
    if (lane_idx() == 0) {
        out.count = at.count;
    }
    if (!used) {
        return nullptr;
    }
    row_term& term = out.term[at.place];
    term.boundary = at.boundary;
    return &term;
}

/// Called by one whole warp for the list's token `token`; lane k resolves entry k.
template <gather_config Config, class Args>
__device__ inline void resolve_terms(const Args& args, i32 token, i32 rank, row_terms<Config>& out) {
    const i32 lane = static_cast<i32>(lane_idx());
    const gather_rank& owner = args.ranks[rank];
    const i32 in_source = list_local_of(args, token, rank);
    const i64 local = in_source;
    const plan_entry entry = read_listed_entry<Config.topk>(args, token, rank, in_source).entry;
    const u32 previous = __shfl_up_sync(full_warp, static_cast<u32>(entry.rank), 1);
    // On the flat layout a rank has one row of the token, which several entries name.
    const bool used = entry.row >= 0 && (args.layout != row_layout::flat || lane == 0 || previous != entry.rank);
    if (row_term* term = order_term<Config>(args, used, entry.rank, out); term != nullptr) {
        const gather_rank& holder = args.ranks[entry.rank];
        term->row = static_cast<const u8*>(holder.rows) + entry.row * holder.row_stride;
        term->weight = owner.weights != nullptr ? owner.weights[local * args.weight_columns + entry.column] : 1.0f;
    }
    if (lane == 0) {
        out.output = static_cast<u8*>(owner.output) +
                     static_cast<i64>(list_row_of<Config.topk>(args, rank, in_source)) * owner.output_stride;
    }
}

#endif

}  // namespace epjit::templates
