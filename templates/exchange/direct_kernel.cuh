// SPDX-License-Identifier: Apache-2.0
// Dispatch straight into the peers' windows, in one launch: this rank stores each of its rows to every place that the
// plan gives it, in outputs that the exchange lends on every rank. Nothing is staged and nothing is expanded; the
// first blocks send, the others write what travels beside rows that come, a thread a line of the plan.
//
// Cost model: a token's row is read once and written to each of its P places, those of other ranks over the link: row
// bytes * T * P, of which row bytes * T * (places on other ranks) cross. On flat a rank has one place of a token, so
// that no more crosses than with staging, and a pass over all rows is saved. Launches: 1. SMs: half of the GPU at most:
// so many fill both the links and the memory, and a launch of another lane, which may be the one that the peers are at,
// has room beside it.
//
// A place may be stored once its owner has read what lay there: the owner's first block says so as the first thing it
// does (lane_op::window_open), waiting for nobody. Senders wait for that; the others wait for the peers' senders.
#pragma once

#include "base/device.cuh"
#include "exchange/dispatch_layout.cuh"
#include "exchange/flags.cuh"
#include "rows/scatter_bulk_kernel.cuh"
#include "rows/scatter_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The arguments as the functions of rows take them, for what this rank sends.
struct direct_phase : scatter_head {
    const scatter_rank* ranks;
};

/// What a source announces, each by one flag once all its senders have done their part. The same words of the source's
/// own row of flags, which no peer writes, count those senders.
inline constexpr i32 direct_rows_flag = 0;
inline constexpr i32 direct_weights_flag = 1;

/// Counts this sender in. True for the last one: what all of them wrote is then seen by whoever sees its release.
template <class Args>
__device__ __forceinline__ bool last_sender(const Args& args, i32 flag) {
    u32* arrived = args.flags.own + static_cast<i64>(args.link.me) * args.flags.stride + flag;
    if (add_acq_rel_gpu(arrived, 1) + 1 != static_cast<u32>(args.senders)) {
        return false;
    }
    *arrived = 0;
    return true;
}

/// Raises the flag at every peer; thread `thread` of `threads`.
template <class Args>
__device__ __forceinline__ void raise_everywhere(const Args& args, i32 flag, u32 step, i32 thread, i32 threads) {
    for (i32 p = thread; p < args.link.num_ranks; p += threads) {
        if (p != args.link.me) {
            raise_flag(args.flags, args.link, p, flag, step);
        }
    }
}

/// Whether every peer is at this dispatch, so that its window may be written. Called by whole warps.
template <class Args>
__device__ __noinline__ bool await_windows(const Args& args, u32 open_step) {
    bool open = true;
    for (i32 p = static_cast<i32>(lane_idx()); p < args.link.num_ranks; p += 32) {
        if (p != args.link.me) {
            open = wait_step(args.link, p, open_step, lane_op::window_open) && open;
        }
    }
    fence_proxy_async();  // the copies that follow write what the peers have read
    return __all_sync(full_warp, open);
}

/// Moves the rows of tokens `first`, `first + step`, ... to all their places, loads ahead of stores; entries are read
/// one round early. The first rows are loaded while the peers are awaited. False: the exchange has failed.
template <scatter_config Config, class Args>
__device__ bool place_rows(const Args& args, const direct_phase& phase, u8* rows, u64* barriers, i32 first,
                           i32 tokens_step, u32 open_step) {
    using mover_type = row_mover<Config>;
    mover_type mover(rows, barriers);
    mover.init(1);
    const i32 me = args.link.me;
    const scatter_rank& own = phase.ranks[me];
    i32 to_load = first;
    i32 loading = 0;
    bool open = true;
    token_entries current;
#pragma unroll 1
    for (i32 token = first - tokens_step; token < args.num_tokens; token += tokens_step) {
#pragma unroll 1
        for (; loading < mover_type::stages - 1 && to_load < args.num_tokens; ++loading, to_load += tokens_step) {
            bulk_wait_read<1>();  // the stage to be loaded was stored in the round before the last
            __syncwarp();
            if (lane_idx() == 0) {
                mover.load_row(0, static_cast<const u8*>(own.input) + static_cast<i64>(to_load) * own.input_stride,
                               nullptr, nullptr, 0);
            }
            mover.loaded(1);
        }
        token_entries ahead;
        if (token + tokens_step < args.num_tokens) {
            ahead = read_places<Config>(phase, token + tokens_step, me);
        }
        if (token >= first) {
            mover.wait();
            mover.store(phase, current);
            --loading;
            if constexpr (Config.scales != group_scale::none) {
                copy_scales<Config>(phase, current);
            }
        } else {
            open = await_windows(args, open_step);
        }
        if (!open) {
            break;
        }
        current = ahead;
    }
    // A copy must not land in shared memory that the block has left.
    for (const token_entries none; loading > 0; --loading) {
        mover.wait();
        mover.store(phase, none);
    }
    bulk_wait<0>();
    return open;
}

/// place_rows without bulk copies.
template <scatter_config Config, class Args>
__device__ __noinline__ bool place_elements(const Args& args, const direct_phase& phase, i32 first, i32 tokens_step,
                                            u32 open_step) {
    if (!await_windows(args, open_step)) {
        return false;
    }
    const scatter_rank& own = phase.ranks[args.link.me];
#pragma unroll 1
    for (i32 token = first; token < args.num_tokens; token += tokens_step) {
        const token_entries t = read_places<Config>(phase, token, args.link.me);
        copy_elements<Config>(phase.ranks, t,
                              static_cast<const u8*>(own.input) + static_cast<i64>(token) * own.input_stride);
        if constexpr (Config.scales != group_scale::none) {
            copy_scales<Config>(phase, t);
        }
    }
    return true;
}

/// The weights of lines to the ranks that hold their rows, by the one warp of a sender that moves no rows, and their
/// flag. They are few and go first, so that nobody waits for them after the rows.
template <scatter_config Config, class Args>
__device__ void send_all_weights(const Args& args, i32 sender, u32 step) {
    const i32 me = args.link.me;
    const float* weights = args.ranks[me].weights;
    const i32 size = weights != nullptr ? args.num_tokens * Config.topk : 0;
#pragma unroll 2
    for (i32 i = sender * 32 + static_cast<i32>(lane_idx()); i < size; i += args.senders * 32) {
        const plan_entry entry = args.entries[i];
        const i32 position = args.list.positions[i];
        if (entry.rank != no_rank && entry.rank != me) {
            args.ranks[entry.rank].local_weights[static_cast<i64>(position) * Config.topk + i % Config.topk] =
                weights[static_cast<i64>(i / Config.topk) * args.own_weight_columns + entry.column];
        }
    }
    __syncwarp();
    bool last = false;
    if (lane_idx() == 0) {
        last = last_sender(args, direct_weights_flag);
    }
    __syncwarp();
    if (__any_sync(full_warp, last)) {
        raise_everywhere(args, direct_weights_flag, step, static_cast<i32>(lane_idx()), 32);
    }
}

/// What travels beside the rows of one line, by one thread: as scatter_common's write_metadata, which takes a warp.
template <scatter_config Config, class Args>
__device__ void write_line(const Args& args, i32 rank, i32 local) {
    constexpr i32 topk = Config.topk;
    const bool flat = args.layout == row_layout::flat;
    const u8* line = line_of<topk>(args, rank, local);
    const i32 token = *reinterpret_cast<const i32*>(line);
    const i32* rows = reinterpret_cast<const i32*>(line) + 1;
    const u16* slots = reinterpret_cast<const u16*>(line + line_slots_offset(topk));
    const scatter_rank& from = args.ranks[rank];
    const scatter_rank& to = args.ranks[args.link.me];
    i64 row = -1;
    i32 place = 0;  // of the entry among those that share the row
#pragma unroll 4
    for (i32 k = 0; k < topk; ++k) {
        const u16 slot = slots[k];
        if (slot == no_slot || rows[k] < 0) {
            continue;
        }
        row = rows[k];
        float weight = 0.0f;
        if (from.weights != nullptr) {
            // Own lines are given the caller's weights, where the column is the entry's.
            const i64 entry = static_cast<i64>(token) * topk + k;
            weight = from.own_weight_columns != 0
                         ? from.weights[static_cast<i64>(token) * from.own_weight_columns + args.entries[entry].column]
                         : from.weights[static_cast<i64>(local) * topk + k];
        }
        if (to.row_source != nullptr && (place == 0 || !flat)) {
            reinterpret_cast<int2*>(to.row_source)[row] = int2{rank, token};
        }
        if (to.row_weights != nullptr && !flat) {
            to.row_weights[row] = weight;
        }
        if (to.local_ids != nullptr && flat) {
            to.local_ids[row * topk + place] = slot;
        }
        if (to.local_weights != nullptr && flat) {
            to.local_weights[row * topk + place] = weight;
        }
        ++place;
    }
#pragma unroll 1
    for (; flat && row >= 0 && place < topk; ++place) {
        if (to.local_ids != nullptr) {
            to.local_ids[row * topk + place] = -1;
        }
        if (to.local_weights != nullptr) {
            to.local_weights[row * topk + place] = 0.0f;
        }
    }
}

/// The lines `first`, `first + step`, ... of one thread, this rank's own first: a peer's wait for its weights, where
/// they are wanted.
template <scatter_config Config, class Args>
__device__ void write_lines(const Args& args, i32 first, i32 lines_step, u32 step) {
    const i32 me = args.link.me;
    const scatter_rank& own = args.ranks[me];
    if (own.row_source == nullptr && own.row_weights == nullptr && own.local_ids == nullptr &&
        own.local_weights == nullptr) {
        return;
    }
    const i32 total = list_size(args);
#pragma unroll 1
    for (i32 i = first; i < total; i += lines_step) {
        i32 n = i + args.list.line_first[me];
        n -= n >= total ? total : 0;
        const i32 rank = list_rank_of(args, n, 0);
        if (rank != me && args.ranks[rank].weights != nullptr &&
            !wait_flag(args.flags, args.link, rank, direct_weights_flag, step, lane_op::dispatch)) {
            return;
        }
        write_line<Config>(args, rank, list_local_of(args, n, rank));
    }
}

/// A block that sends: all warps but the last move rows, the last sends weights and fills the rows that no token has.
template <scatter_config Config, class Args>
__device__ void send_directly(const Args& args, u8* memory, u64* barriers, u32 step) {
    constexpr i32 movers = scatter_movers(Config);
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    const i32 block = static_cast<i32>(blockIdx.x);
    const u32 open_step = step - 1;
    bool open = true;
    if (warp == movers) {
        open = await_windows(args, open_step);
        if (open) {
            send_all_weights<Config>(args, block, step);
        }
        fill_unused_rows<Config>(args, block, args.senders);
    } else {
        direct_phase phase;
        static_cast<scatter_head&>(phase) = args;
        phase.ranks = args.ranks;
        phase.list.lines = nullptr;
        phase.list.numbering = row_numbering::plan;
        const i32 first = warp * args.senders + block;  // what does not go round falls to one warp a block
        const i32 tokens_step = args.senders * movers;
        if (args.send_bytes == 16) {
            open = place_rows<Config>(args, phase, memory + warp * row_mover<Config>::ring_bytes,
                                      barriers + warp * row_mover<Config>::stages, first, tokens_step, open_step);
        } else {
            open = place_elements<Config>(args, phase, first, tokens_step, open_step);
        }
    }
    // Also where there was no row: a flag of an earlier step may be replaced only now.
    __shared__ bool last;
    const bool stored = __syncthreads_and(open ? 1 : 0) != 0;
    if (threadIdx.x == 0) {
        last = stored && last_sender(args, direct_rows_flag);
    }
    __syncthreads();
    if (last) {
        raise_everywhere(args, direct_rows_flag, step, static_cast<i32>(threadIdx.x), static_cast<i32>(blockDim.x));
    }
}

template <scatter_config Config>
__global__ void __launch_bounds__(scatter_bulk_threads(Config), 1)
    direct_dispatch_kernel(const __grid_constant__ dispatch_args<Config.num_ranks> args) {
    static_assert(Config.input == Config.output, "bulk copies do not convert");
    constexpr i32 movers = scatter_movers(Config);
    extern __shared__ __align__(128) u8 memory[];
    const i32 thread = static_cast<i32>(threadIdx.x);
    const i32 block = static_cast<i32>(blockIdx.x);
    // The kernel behind this one is not let in before the end: while senders wait for a peer, its blocks would stand
    // where another lane's call has to run.
    wait_for_kernel_before_alone();
    if (__syncthreads_or(exchange_failed(args.link, lane_op::dispatch) ? 1 : 0) != 0) {
        return;
    }
    // Two steps: the window is open, everything is done.
    const u32 step = args.link.control->lanes[args.link.lane].step + 2;
    if (block == 0) {
        for (i32 p = thread; p < args.link.num_ranks; p += static_cast<i32>(blockDim.x)) {
            if (p != args.link.me && args.link.peers[p] != nullptr) {
                signal_step(args.link, p, step - 1, lane_op::window_open);
            }
        }
    }
    if (block < args.senders) {
        u64* barriers = reinterpret_cast<u64*>(memory + movers * row_mover<Config>::ring_bytes);
        send_directly<Config>(args, memory, barriers, step);
    } else {
        const i32 threads = static_cast<i32>(blockDim.x);
        const i32 receivers = static_cast<i32>(gridDim.x) - args.senders;
        write_lines<Config>(args, (block - args.senders) * threads + thread, receivers * threads, step);
        if (block == args.senders) {
            // The rows: what follows on the stream reads them.
            for (i32 p = thread; p < args.link.num_ranks; p += static_cast<i32>(blockDim.x)) {
                if (p != args.link.me) {
                    wait_flag(args.flags, args.link, p, direct_rows_flag, step, lane_op::dispatch);
                }
            }
        }
    }
    leave_step(args.link, step, lane_op::dispatch, area_bit(lane_area::rows));
}

#endif
#endif

}  // namespace epjit::templates
