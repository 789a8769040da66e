// SPDX-License-Identifier: Apache-2.0
// One real rank's part of a plan: its tokens are counted, the counts of all ranks exchanged, its tokens placed, and
// each destination told of the lines it will get.
//
// Cost model, T tokens on this rank, R ranks, Q keys: the counts' flight (4*(Q+8) bytes to every rank) and the lines'
// (line_bytes a token and rank) beside plan_kernel's own work on T tokens, not R*T. Launches: 1 where peers' memory can
// be written. SMs: a block per 64 tokens up to what fits on the device at once.
#pragma once

#include "base/device.cuh"
#include "exchange/channel.cuh"
#include "plan/count.cuh"
#include "plan/grid_barrier.cuh"
#include "plan/place.cuh"
#include "plan/plan_kernel.cuh"
#include "plan/plan_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

template <plan_config Config>
__device__ __forceinline__ plan_message_tail* message_tail(u32* message) {
    return reinterpret_cast<plan_message_tail*>(message + plan_shared<Config>::keys);
}

/// This rank's counts, summed over its blocks in `shared.bases`, to every rank; the blocks share the destinations. A
/// block that has served a peer takes the step towards it.
template <plan_config Config, class Args>
__device__ void send_counts(const Args& args, const plan_shared<Config>& shared, u32 step) {
    constexpr i32 words = plan_message_words(plan_shared<Config>::keys);
    const i64 own = static_cast<i64>(args.link.me) * words;
    for (i32 p = static_cast<i32>(blockIdx.x); p < Config.num_ranks; p += static_cast<i32>(gridDim.x)) {
        const bool away = p != args.link.me;
        if (away && args.peers_written == 0) {
            continue;
        }
        u32* to = away ? reinterpret_cast<u32*>(args.link.peers[p] + args.counts_offset) + own : args.counts + own;
        for (i32 key = static_cast<i32>(threadIdx.x); key < plan_shared<Config>::keys; key += Config.threads) {
            to[key] = static_cast<u32>(shared.bases[key]);
        }
        if (threadIdx.x == 0) {
            const plan_status& sums = *args.device_status;
            *message_tail<Config>(to) = {static_cast<u32>(args.num_tokens),
                                         static_cast<u32>(args.ranks[0].capacity),
                                         sums.bad_ids,
                                         sums.duplicate_ids,
                                         sums.excess_ids,
                                         static_cast<u32>(args.refused_tokens),
                                         {0, 0}};
        }
        __syncthreads();
        if (args.peers_written != 0 && threadIdx.x == 0) {
            signal_step(args.link, p, step, lane_op::plan_counts);
        }
    }
}

/// All ranks' counts: totals to `shared.bases`, rows of slots before this rank's to `shared.counts`, lines before this
/// rank's to `shared.lines_before`. `shared.counts` holds the rows of the blocks before.
template <plan_config Config, class Args>
__device__ void sum_rank_counts(const Args& args, plan_shared<Config>& shared) {
    constexpr i32 words = plan_message_words(plan_shared<Config>::keys);
#pragma unroll 1
    for (i32 key = static_cast<i32>(threadIdx.x); key < plan_shared<Config>::keys; key += Config.threads) {
        u32 total = 0;
        u32 before = 0;
#pragma unroll 4
        for (i32 r = 0; r < Config.num_ranks; ++r) {
            const u32 count = args.counts[static_cast<i64>(r) * words + key];
            total += count;
            before += r < args.link.me ? count : 0;
        }
        shared.bases[key] = static_cast<i32>(total);
        if (key < Config.num_slots) {
            shared.counts[key] += before;
        } else {
            shared.lines_before[key - Config.num_slots] = static_cast<i32>(before);
        }
    }
    __syncthreads();
}

/// One block: where each source's lines start, and the input problems of all ranks.
template <plan_config Config, class Args>
__device__ void publish_sources(const Args& args) {
    constexpr i32 words = plan_message_words(plan_shared<Config>::keys);
    if (threadIdx.x != 0) {
        return;
    }
    plan_status& sums = args.device_status[1];
    sums = {};
    i32 lines = 0;
#pragma unroll 1
    for (i32 r = 0; r < Config.num_ranks; ++r) {
        u32* message = args.counts + static_cast<i64>(r) * words;
        const plan_message_tail& tail = *message_tail<Config>(message);
        args.line_first[r] = lines;
        const i32 received = static_cast<i32>(message[Config.num_slots + args.link.me]);
        lines += received;
        if (args.host_counts != nullptr) {
            const u32* own = args.counts + static_cast<i64>(args.link.me) * words;
            args.host_counts[Config.num_slots + Config.num_ranks + r] = static_cast<i32>(own[Config.num_slots + r]);
            args.host_counts[Config.num_slots + 2 * Config.num_ranks + r] = received;
            args.host_counts[Config.num_slots + 3 * Config.num_ranks + r] = static_cast<i32>(tail.num_tokens);
        }
        sums.bad_ids += tail.bad_ids;
        sums.duplicate_ids += tail.duplicate_ids;
        sums.excess_ids += tail.excess_ids;
        if (tail.refused_tokens != 0 && sums.refusing_rank == 0) {
            sums.refusing_rank = static_cast<u32>(r) + 1;
            sums.refused_tokens = tail.refused_tokens;
        }
    }
    args.line_first[Config.num_ranks] = lines;
}

/// Places the block's tokens [first, last) and writes their lines to their destinations. Lanes share a token as in
/// counting.
template <plan_config Config, class Args>
__device__ void place_lines(const Args& args, const plan_shared<Config>& shared, i32 first, i32 last) {
    using lanes = token_lanes<Config>;
    constexpr i32 group = lanes::value;
    const i32 k = static_cast<i32>(threadIdx.x) % group;
    constexpr i32 step = Config.threads / group;
#pragma unroll 1
    for (i32 base = first; base < last; base += step) {
        const i32 token = base + static_cast<i32>(threadIdx.x) / group;
        const bool active = token < last && k < Config.topk;
        plan_entry entry{-1, no_rank, 0};
        i32 position = -1;
        u16 slot = no_slot;
        if (active) {
            const i64 index = static_cast<i64>(token) * Config.topk + k;
            entry = args.entries[index];
            position = args.positions[index];
            slot = args.entry_slots[index];
            if (entry.rank != no_rank) {
                place_entry(args, shared, entry, slot, position);
                args.entries[index].row = entry.row;
                args.positions[index] = position;
            }
        }
        u32 previous = no_rank;
#pragma unroll 1
        for (i32 j = 0; j < Config.topk; ++j) {
            const u32 rank = __shfl_sync(full_warp, static_cast<u32>(entry.rank), j, group);
            const i32 line = __shfl_sync(full_warp, position, j, group);
            if (active && rank != no_rank && rank != previous) {
                u8* list = args.peers_written != 0
                               ? args.link.peers[rank] + args.lines_offset
                               : args.lines_out + static_cast<i64>(rank) * args.list_stride * line_bytes(Config.topk);
                u8* to = list + static_cast<i64>(line) * line_bytes(Config.topk);
                const bool here = entry.rank == rank;
                reinterpret_cast<i32*>(to)[1 + k] = here ? entry.row : -1;
                reinterpret_cast<u16*>(to + line_slots_offset(Config.topk))[k] =
                    here ? static_cast<u16>(slot - args.rank_first[rank]) : no_slot;
                if (k == 0) {
                    *reinterpret_cast<i32*>(to) = token;
                }
            }
            previous = rank;
        }
    }
}

/// Copies the lines that have arrived into the plan, shared out over the grid; flat: takes back from the slots' counts
/// what was dropped.
template <plan_config Config, class Args>
__device__ void take_lines(const Args& args) {
    constexpr i32 vectors = line_bytes(Config.topk) / 16;
    const i32 thread = static_cast<i32>(blockIdx.x) * Config.threads + static_cast<i32>(threadIdx.x);
    const i32 threads = static_cast<i32>(gridDim.x) * Config.threads;
#pragma unroll 1
    for (i32 r = 0; r < Config.num_ranks; ++r) {
        const i32 lines = args.line_first[r + 1] - args.line_first[r];
        const i64 base = static_cast<i64>(r) * args.list_stride * line_bytes(Config.topk);
        if (args.arrived != args.lines) {
            const uint4* from = reinterpret_cast<const uint4*>(args.arrived + base);
            uint4* to = reinterpret_cast<uint4*>(args.lines + base);
#pragma unroll 2
            for (i32 i = thread; i < lines * vectors; i += threads) {
                to[i] = from[i];
            }
        }
        if (args.layout == row_layout::flat) {
#pragma unroll 1
            for (i32 i = thread; i < lines * Config.topk; i += threads) {
                const u8* line = args.arrived + base + static_cast<i64>(i / Config.topk) * line_bytes(Config.topk);
                const i32 k = i % Config.topk;
                const u16 slot = reinterpret_cast<const u16*>(line + line_slots_offset(Config.topk))[k];
                if (slot != no_slot && reinterpret_cast<const i32*>(line)[1 + k] < 0) {
                    atomicAdd(&args.slot_counts[args.rank_first[args.link.me] + slot], -1);
                }
            }
        }
    }
}

/// A plan with no rows: what a failed exchange leaves, so that whatever follows finds nothing to do.
template <plan_config Config, class Args>
__device__ void clear_plan(const Args& args) {
#pragma unroll 1
    for (i32 i = static_cast<i32>(threadIdx.x); i <= Config.num_slots + Config.num_ranks; i += Config.threads) {
        if (i < Config.num_slots + Config.num_ranks) {
            args.slot_offsets[i] = 0;
        }
        if (i < Config.num_slots) {
            args.slot_counts[i] = 0;
        }
        if (i < Config.num_ranks) {
            args.rank_rows[i] = 0;
        }
        if (i <= Config.num_ranks) {
            args.line_first[i] = 0;
        }
    }
}

/// Tells the host what the plan came to; called by one thread, with `ready` as the last word.
__device__ inline void publish_to_host(const plan_head& args, const plan_status& sums) {
    plan_status* host = args.host_status;
    if (args.host_counts == nullptr) {
        // No host waits: whenever it comes is soon enough. Two accesses over the bus instead of eight.
        static_assert(sizeof(plan_status) == 2 * sizeof(uint4));
        uint4* halves = reinterpret_cast<uint4*>(host);
        halves[0] = {sums.bad_ids, sums.duplicate_ids, sums.excess_ids, sums.dropped_rows};
        halves[1] = {0, sums.refusing_rank, sums.refused_tokens, args.sequence};
        return;
    }
    host->bad_ids = sums.bad_ids;
    host->duplicate_ids = sums.duplicate_ids;
    host->excess_ids = sums.excess_ids;
    host->dropped_rows = sums.dropped_rows;
    host->refusing_rank = sums.refusing_rank;
    host->refused_tokens = sums.refused_tokens;
    host->timed_out = 0;
    st_release_sys(&host->ready, args.sequence);
}

/// The last part, when every block has taken its lines: the counts that only now are final, and the host.
template <plan_config Config, class Args>
__device__ void finish_plan(const Args& args, u32 step) {
    if (args.layout == row_layout::flat && args.host_counts != nullptr) {
        for (i32 slot = static_cast<i32>(threadIdx.x); slot < Config.num_slots; slot += Config.threads) {
            args.host_counts[slot] = args.slot_counts[slot];
        }
    }
    if (args.host_counts != nullptr) {
        fence_sys();
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        if (args.peers_written != 0) {
            args.link.control->lanes[args.link.lane].step = step;
        }
        plan_status sums = args.device_status[1];
        sums.dropped_rows = args.device_status[0].dropped_rows;
        args.device_status[0] = {};
        publish_to_host(args, sums);
    }
}

template <plan_config Config, class Args>
__device__ bool meet_grid(const Args& args) {
    if (grid_arrive_and_wait(args.barrier, args.timeout_ns)) {
        return true;
    }
    if (threadIdx.x == 0) {
        fail_exchange(args.link, failure_kind::timeout, lane_op::plan_counts, args.link.me, 0, 0);
    }
    return false;
}

template <plan_config Config>
__global__ void __launch_bounds__(Config.threads, 1)
    exchange_plan_kernel(const __grid_constant__ exchange_plan_args args) {
    check_plan_config<Config>();
    static_assert(Config.exchange);
    extern __shared__ __align__(16) u8 memory[];
    plan_shared<Config> shared(memory);
    const i32 thread = static_cast<i32>(threadIdx.x);
    wait_for_kernel_before_alone();
    if (args.peers_written == 0) {
        let_kernel_behind_in();
    } else if (blockIdx.x == 0 && thread == 0) {
        forget_told(args.link);
    }
    if (__syncthreads_or(exchange_failed(args.link, lane_op::plan_counts) ? 1 : 0) != 0) {
        clear_plan<Config>(args);
        return;
    }
    const u32 step = args.link.control->lanes[args.link.lane].step;
#pragma unroll 1
    for (i32 key = thread; key < plan_shared<Config>::keys; key += Config.threads) {
        shared.masks[key] = 0;
        shared.counts[key] = 0;
        shared.bases[key] = 0;
    }
    const i32 tiles = ceil_div(args.num_tokens, plan_tile_tokens);
    const i32 block_tokens = ceil_div(tiles, static_cast<i32>(gridDim.x)) * plan_tile_tokens;
    const i32 first = min_of(static_cast<i32>(blockIdx.x) * block_tokens, args.num_tokens);
    const i32 last = min_of(first + block_tokens, args.num_tokens);
    __syncthreads();

    if ((args.phases & plan_phase_count) != 0) {
        id_problems problems;
        count_tokens(args, shared, first, last, problems);
        report(args.device_status, problems);
#pragma unroll 1
        for (i32 key = thread; key < plan_shared<Config>::keys; key += Config.threads) {
            args.block_counts[static_cast<i32>(blockIdx.x) * plan_shared<Config>::keys + key] = shared.counts[key];
            shared.counts[key] = 0;
        }
        if (!meet_grid<Config>(args)) {
            return;
        }
        let_kernel_behind_in();
    }
    if ((args.phases & (plan_phase_count | plan_phase_place)) != 0) {
        sum_block_counts(args, shared, plan_shared<Config>::keys);
    }
    if ((args.phases & plan_phase_count) != 0) {
        send_counts(args, shared, step + 1);
    }
    if ((args.phases & plan_phase_place) != 0) {
        if (args.peers_written != 0 && !wait_all(args.link, step + 1, lane_op::plan_counts, true)) {
            clear_plan<Config>(args);
            return;
        }
        __syncthreads();
        sum_rank_counts(args, shared);
        if (args.layout == row_layout::expert_major) {
            scan_segments(args, shared);
        }
        if (blockIdx.x + 1 == gridDim.x) {
            if (args.layout == row_layout::flat) {
                for (i32 slot = thread; slot < Config.num_slots; slot += Config.threads) {
                    args.slot_counts[slot] = 0;
                }
                __syncthreads();
            }
            publish_counts(args, shared);
            publish_sources<Config>(args);
        }
        place_lines(args, shared, first, last);
    }
    // The block that leaves last has seen every block's writes.
    if (grid_leave(args.barrier)) {
        if (args.peers_written != 0) {
#pragma unroll 1
            for (i32 p = thread; p < Config.num_ranks; p += Config.threads) {
                signal_step(args.link, p, step + 2, lane_op::plan_lines);
            }
            // Rows that leave from here on do not hold the lines up.
            __syncthreads();
            if (thread == 0) {
                tell(args.link, step + 2);
            }
        }
    }
    if ((args.phases & plan_phase_finish) != 0) {
        if (args.peers_written != 0 && !wait_all(args.link, step + 2, lane_op::plan_lines, true)) {
            clear_plan<Config>(args);
            return;
        }
        take_lines<Config>(args);
        if (grid_leave(args.barrier + 2)) {
            finish_plan<Config>(args, step + 2);
        }
    }
}

#endif

}  // namespace epjit::templates
