// SPDX-License-Identifier: Apache-2.0
// Dispatch between ranks that store into each other's windows, in one launch: the first blocks send this rank's rows,
// the others expand rows, this rank's own at once and the peers' as they arrive.
//
// Cost model: D rows of a token cross to other ranks, once each: row bytes * T * D over the link. Reads every line's
// row once and writes it to its places. Launches: 1. SMs: `senders` blocks drive the link, all others the memory.
// Senders wait for nothing that is later in the grid and come first; the others wait for the peers' senders.
#pragma once

#include "base/device.cuh"
#include "exchange/dispatch_layout.cuh"
#include "exchange/flags.cuh"
#include "exchange/window_lines.cuh"
#include "rows/scatter_bulk_kernel.cuh"
#include "rows/scatter_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// One half of the dispatch as the row functions take it.
struct dispatch_phase : scatter_head {
    const scatter_rank* ranks;
};

/// Chunks of tokens that one warp sends: every `warps`-th, from `warp` on. Token number j of the warp.
struct chunk_walk {
    i32 chunk;  ///< tokens of a chunk
    i32 warp;   ///< the first chunk, where there is a window from the window's on
    i32 warps;

    __device__ __forceinline__ i32 chunk_of(i32 j) const { return warp + j / chunk * warps; }
    __device__ __forceinline__ i32 token_of(i32 j) const { return chunk_of(j) * chunk + j % chunk; }
};

/// Weights of a line, in the order of its entries, to where its rank reads them.
template <scatter_config Config>
__device__ __forceinline__ void send_line_weights(const dispatch_phase& phase, const token_entries& t) {
    if (t.has_row()) {
        float* to = phase.ranks[t.entry.rank].local_weights;
        if (to != nullptr) {
            const i32 lane = static_cast<i32>(lane_idx());
            const i32 line = sent_position<Config.topk>(phase, t.source_token, lane, t.entry.row);
            to[static_cast<i64>(line) * Config.topk + lane] = t.weight;
        }
    }
}

/// Raises the flag of the warp's k-th chunk at every peer, once its rows are stored; called by whole warps.
template <class Args>
__device__ __forceinline__ void raise_chunk(const Args& args, const chunk_walk& walk, i32 k, u32 step) {
    __syncwarp();
    for (i32 p = static_cast<i32>(lane_idx()); p < args.link.num_ranks; p += 32) {
        if (p != args.link.me) {
            raise_flag(args.flags, args.link, p, walk.chunk_of(k * walk.chunk), step);
        }
    }
}

/// Sends the rows of one warp's chunks, loads ahead of stores, and raises a chunk's flag when the rows after it are
/// under way, so that the link never drains in between.
template <scatter_config Config, class Args>
__device__ void send_rows(const Args& args, const dispatch_phase& phase, u8* rows, u64* barriers, chunk_walk walk,
                          u32 step) {
    using mover_type = row_mover<Config>;
    constexpr i32 behind = mover_type::stages > 2 ? mover_type::stages - 2 : 1;
    const i32 me = args.link.me;
    mover_type mover(rows, barriers);
    i32 to_load = 0;
    i32 loading = 0;
    i32 raised = 0;
    i32 j = 0;
#pragma unroll 1
    for (; walk.token_of(j) < args.num_tokens; ++j) {
#pragma unroll 1
        for (; loading < mover_type::stages - 1 && walk.token_of(to_load) < args.num_tokens; ++loading, ++to_load) {
            bulk_wait_read<1>();  // the stage to be loaded was stored in the round before the last
            __syncwarp();
            mover.load_row(static_cast<const u8*>(phase.ranks[me].input) +
                           static_cast<i64>(walk.token_of(to_load)) * phase.ranks[me].input_stride);
        }
        const token_entries t = read_entries<Config>(phase, walk.token_of(j), me);
        mover.store(phase, t);
        --loading;
        send_line_weights<Config>(phase, t);
        if constexpr (Config.scales != group_scale::none) {
            copy_scales<Config>(phase, t);
        }
        if (j + 1 - behind >= (raised + 1) * walk.chunk) {
            bulk_wait<behind>();
            raise_chunk(args, walk, raised++, step);
        }
    }
    bulk_wait<0>();
    for (; raised * walk.chunk < j; ++raised) {
        raise_chunk(args, walk, raised, step);
    }
}

/// A row by one warp, an element at a time: for tensors that no copy of 16 bytes may touch.
template <scatter_config Config>
__device__ __forceinline__ void copy_elements(const dispatch_phase& phase, const token_entries& t, const u8* from) {
    constexpr i32 size = element_bytes(Config.output);
    for (u32 leaders = __ballot_sync(full_warp, t.leads); leaders != 0; leaders &= leaders - 1) {
        const i32 leader = __ffs(static_cast<i32>(leaders)) - 1;
        const i32 row = __shfl_sync(full_warp, t.entry.row, leader);
        const scatter_rank& rank = phase.ranks[__shfl_sync(full_warp, static_cast<u32>(t.entry.rank), leader)];
        u8* to = static_cast<u8*>(rank.output) + static_cast<i64>(row) * rank.output_stride;
#pragma unroll 4
        for (i32 i = static_cast<i32>(lane_idx()); i < Config.hidden; i += 32) {
            store_packet<size>(to + i * size, *reinterpret_cast<const packet<size>*>(from + i * size));
        }
    }
}

/// send_rows without bulk copies.
template <scatter_config Config, class Args>
__device__ __noinline__ void send_elements(const Args& args, const dispatch_phase& phase, chunk_walk walk, u32 step) {
    const scatter_rank& own = phase.ranks[args.link.me];
    i32 j = 0;
    i32 raised = 0;
#pragma unroll 1
    for (; walk.token_of(j) < args.num_tokens; ++j) {
        const i32 token = walk.token_of(j);
        const token_entries t = read_entries<Config>(phase, token, args.link.me);
        copy_elements<Config>(phase, t, static_cast<const u8*>(own.input) + static_cast<i64>(token) * own.input_stride);
        send_line_weights<Config>(phase, t);
        if constexpr (Config.scales != group_scale::none) {
            copy_scales<Config>(phase, t);
        }
        if ((j + 1) % walk.chunk == 0) {
            raise_chunk(args, walk, raised++, step);
        }
    }
    if (raised * walk.chunk < j) {
        raise_chunk(args, walk, raised, step);
    }
}

/// Where the n-th line lies when this rank's own come first.
struct line_place {
    i32 n = 0;  ///< in the list
    i32 rank = 0;
    i32 token = 0;
};

template <scatter_config Config>
__device__ __forceinline__ line_place place_line(const dispatch_phase& phase, i32 n, i32 total) {
    line_place place;
    place.n = n + phase.list.line_first[phase.list.me];
    place.n -= place.n >= total ? total : 0;
    place.rank = list_rank_of(phase, place.n, 0);
    place.token = list_token_of<Config.topk>(phase, place.rank, list_local_of(phase, place.n, place.rank));
    return place;
}

/// Expands the lines `first`, `first + step`, ... in one warp, each as soon as it is there.
template <scatter_config Config, class Args>
__device__ void expand_lines(const Args& args, const dispatch_phase& phase, u8* rows, u64* barriers, i32 first,
                             i32 lines_step, u32 step) {
    using mover_type = row_mover<Config>;
    mover_type mover(rows, barriers);
    const i32 me = args.link.me;
    const i32 total = list_size(phase);
    i32 to_load = first;
    i32 loading = 0;
    i32 rank = me;
    i32 chunk = -1;
#pragma unroll 1
    for (i32 n = first; n < total; n += lines_step) {
#pragma unroll 1
        for (; loading < mover_type::stages - 1 && to_load < total; ++loading, to_load += lines_step) {
            const line_place place = place_line<Config>(phase, to_load, total);
            if (place.rank != me && (place.rank != rank || place.token / args.chunk != chunk)) {
                rank = place.rank;
                chunk = place.token / args.chunk;
                // What has arrived is worked on before more is waited for.
                if (loading > 0 && !flag_is_up(args.flags, rank, chunk, step)) {
                    chunk = -1;
                    break;
                }
                if (!wait_flag(args.flags, args.link, rank, chunk, step, lane_op::dispatch)) {
                    bulk_wait<0>();
                    return;
                }
                fence_proxy_async();  // stored by the peer's copies, to be read by ours
            }
            bulk_wait_read<1>();
            __syncwarp();
            const scatter_rank& from = phase.ranks[place.rank];
            const i32 row = from.by_token != 0 ? place.token : list_local_of(phase, place.n, place.rank);
            mover.load_row(static_cast<const u8*>(from.input) + static_cast<i64>(row) * from.input_stride);
        }
        const line_place place = place_line<Config>(phase, n, total);
        const token_entries t = read_entries<Config>(phase, place.n, place.rank);
        mover.store(phase, t);
        --loading;
        write_metadata<Config>(phase, t);
        if constexpr (Config.scales != group_scale::none) {
            copy_scales<Config>(phase, t);
        }
    }
    bulk_wait<0>();
}

/// expand_lines without bulk copies.
template <scatter_config Config, class Args>
__device__ __noinline__ void expand_elements(const Args& args, const dispatch_phase& phase, i32 first, i32 lines_step,
                                             u32 step) {
    const i32 total = list_size(phase);
#pragma unroll 1
    for (i32 n = first; n < total; n += lines_step) {
        const line_place place = place_line<Config>(phase, n, total);
        if (place.rank != args.link.me &&
            !wait_flag(args.flags, args.link, place.rank, place.token / args.chunk, step, lane_op::dispatch)) {
            return;
        }
        const token_entries t = read_entries<Config>(phase, place.n, place.rank);
        const scatter_rank& from = phase.ranks[place.rank];
        copy_elements<Config>(phase, t,
                              static_cast<const u8*>(from.input) + static_cast<i64>(t.source_row) * from.input_stride);
        write_metadata<Config>(phase, t);
        if constexpr (Config.scales != group_scale::none) {
            copy_scales<Config>(phase, t);
        }
    }
}

template <scatter_config Config>
__global__ void __launch_bounds__(scatter_bulk_threads(Config), 1)
    dispatch_kernel(const __grid_constant__ dispatch_args<Config.num_ranks> args) {
    static_assert(Config.input == Config.output, "bulk copies do not convert");
    constexpr i32 movers = scatter_movers(Config);
    constexpr i32 stages = row_mover<Config>::stages;
    extern __shared__ __align__(128) u8 memory[];
    __shared__ i32 window[window_numbers(Config.num_ranks)];
    u64* barriers = reinterpret_cast<u64*>(memory + movers * stages * row_mover<Config>::row_bytes);
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    const i32 block = static_cast<i32>(blockIdx.x);
    wait_for_kernel_before();
    if (__syncthreads_or(exchange_failed(args.link, lane_op::dispatch) ? 1 : 0) != 0) {
        return;
    }
    auto& lane = args.link.control->lanes[args.link.lane];
    const u32 step = lane.step + 1;
    dispatch_phase phase;
    static_cast<scatter_head&>(phase) = args;
    phase.ranks = args.ranks;
    if (block >= args.senders && args.list.window != 0) {
        find_window_lines<Config.topk>(args, window);
        use_window_lines(phase.list, window);
    }
    if (warp < movers) {
        u64* own = barriers + warp * stages;
        u8* rows = memory + warp * stages * row_mover<Config>::row_bytes;
        if (lane_idx() == 0) {
#pragma unroll 1
            for (i32 s = 0; s < stages; ++s) {
                mbarrier_init(&own[s], 1);
            }
            fence_barrier_init();
        }
        __syncwarp();
        if (block < args.senders) {
            phase.list.lines = nullptr;
            phase.list.numbering = window_numbering(args);
            phase.list.skip_rank = args.link.me;
            phase.layout = row_layout::flat;  // a row a rank
            phase.weight_columns = args.own_weight_columns;
            bool free = true;
            for (i32 p = static_cast<i32>(lane_idx()); p < args.link.num_ranks; p += 32) {
                if (p != args.link.me) {
                    free = wait_step(args.link, p, lane.area_step[static_cast<i32>(lane_area::rows)], lane_op::none) &&
                           free;
                }
            }
            const chunk_walk walk{args.chunk, args.list.first_token / args.chunk + block * movers + warp,
                                  args.senders * movers};
            if (!__all_sync(full_warp, free)) {
                // The exchange has failed.
            } else if (args.send_bytes == 16) {
                send_rows<Config>(args, phase, rows, own, walk, step);
            } else {
                send_elements<Config>(args, phase, walk, step);
            }
        } else {
            const i32 first = (block - args.senders) * movers + warp;
            const i32 lines_step = (static_cast<i32>(gridDim.x) - args.senders) * movers;
            if (args.vector_bytes == 16) {
                expand_lines<Config>(args, phase, rows, own, first, lines_step, step);
            } else {
                expand_elements<Config>(args, phase, first, lines_step, step);
            }
        }
    } else if (block >= args.senders) {
        fill_unused_rows<Config>(args, block - args.senders, static_cast<i32>(gridDim.x) - args.senders);
    }
    leave_step(args.link, step, lane_op::dispatch, area_bit(lane_area::rows));
}

#endif
#endif

}  // namespace epjit::templates
