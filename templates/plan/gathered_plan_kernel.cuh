// SPDX-License-Identifier: Apache-2.0
// A real rank's plan made by itself from the routing of all ranks: one flight between them.
//
// Cost model, bound B tokens a rank, R ranks, K ids each: 16 bytes of every 6 ids (8 where NCCL moves them) to every
// rank, then R*B tokens are counted and placed on every rank. Launches: 1 where peers' memory can be written, else 2.
// SMs: of few tokens, which is what it is for, a few: every block counts all tokens, so that none waits for another,
// and places its share. Else a block per 64 tokens of a rank, each going through its tiles twice, before and after the
// blocks have told each other their counts.
#pragma once

#include "base/device.cuh"
#include "exchange/channel.cuh"
#include "plan/exchange_plan_kernel.cuh"
#include "plan/gathered_places.cuh"
#include "plan/gathered_report.cuh"
#include "plan/gathered_rows.cuh"
#include "plan/grid_barrier.cuh"
#include "plan/place.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Clears the masks of `tiles` tiles.
template <plan_config Config>
__device__ __forceinline__ void clear_masks(const gathered_shared<Config>& shared, i32 tiles) {
#pragma unroll 1
    for (i32 i = static_cast<i32>(threadIdx.x); i < tiles * shared.keys; i += Config.threads) {
        shared.masks[i] = 0;
    }
}

/// The block's tables, sums and masks. Nothing that is read here is ever written while the exchange lives, so this runs
/// beside the kernel before.
template <plan_config Config>
__device__ void prepare_shared(const gathered_plan_args& args, const gathered_shared<Config>& shared) {
    const i32 thread = static_cast<i32>(threadIdx.x);
#pragma unroll 1
    for (i32 slot = thread; slot < Config.num_slots; slot += Config.threads) {
        shared.slot_rank[slot] = Config.num_ranks == 1 ? 0 : args.slot_rank[slot];
    }
#pragma unroll 1
    for (i32 i = thread; i < shared.sums; i += Config.threads) {
        shared.counts[i] = 0;
    }
    if (thread <= Config.num_ranks) {
        shared.rank_first[thread] = args.rank_first[thread];
        if (thread < Config.num_ranks && args.flagged != 0) {
            shared.windows[thread] = args.link.peers[thread];
        }
    }
    if (thread < 4) {
        shared.problems[thread] = 0;
    }
    clear_masks(shared, args.chunk_tiles);
    __syncthreads();
}

/// Flat: the slots' counts, which grow and shrink while rows are placed. The last block does it.
template <plan_config Config>
__device__ __forceinline__ void clear_slot_counts(const gathered_plan_args& args) {
    if (args.layout == row_layout::flat && blockIdx.x + 1 == gridDim.x) {
#pragma unroll 1
        for (i32 slot = static_cast<i32>(threadIdx.x); slot < Config.num_slots; slot += Config.threads) {
            args.slot_counts[slot] = 0;
        }
    }
}

/// Adds the chunk's rows of every key to the block's, having noted what those were before; `lines`: the sums of lines
/// too. A thread has a key, or a rank, for itself.
template <plan_config Config>
__device__ void count_tiles(const gathered_plan_args& args, const gathered_shared<Config>& shared, i32 first, i32 last,
                            bool lines) {
    const i32 tiles = last - first;
#pragma unroll 1
    for (i32 key = static_cast<i32>(threadIdx.x); key < shared.keys; key += Config.threads) {
        i32 rows = shared.counts[key];
        shared.before[key] = static_cast<u32>(rows);
#pragma unroll 4
        for (i32 tile = 0; tile < tiles; ++tile) {
            rows += __popcll(shared.masks[tile * shared.keys + key]);
        }
        shared.counts[key] = rows;
    }
    // From the last thread down: the first ones have keys.
    const i32 r = Config.threads - 1 - static_cast<i32>(threadIdx.x);
    if (lines && r < Config.num_ranks) {
        const i32 me = args.link.me;
        i32* sums = shared.counts + shared.keys;
#pragma unroll 1
        for (i32 tile = 0; tile < tiles; ++tile) {
            const u64* masks = shared.masks + tile * shared.keys + Config.num_slots;
            const i32 source = args.by_rank_tiles.of(first + tile);
            const i32 count = source <= me ? __popcll(masks[r]) : 0;
            sums[(source < me ? 0 : Config.num_ranks) + r] += count;
            if (source == r) {
                sums[2 * Config.num_ranks + r] += __popcll(masks[me]);
            }
        }
    }
}

/// The blocks' counts become totals, and the rows before each block's tiles. False: the grid did not meet.
template <plan_config Config>
__device__ bool share_counts(const gathered_plan_args& args, const gathered_shared<Config>& shared) {
    const i32 thread = static_cast<i32>(threadIdx.x);
#pragma unroll 1
    for (i32 i = thread; i < shared.sums; i += Config.threads) {
        args.block_counts[static_cast<i64>(blockIdx.x) * shared.sums + i] = static_cast<u32>(shared.counts[i]);
    }
    if (!grid_arrive_and_wait(args.barrier, args.timeout_ns)) {
        if (thread == 0) {
            fail_exchange(args.link, failure_kind::timeout, lane_op::plan_rows, args.link.me, 0, 0);
        }
        return false;
    }
#pragma unroll 1
    for (i32 i = thread; i < shared.sums; i += Config.threads) {
        u32 total = 0;
        u32 before = 0;
#pragma unroll 8
        for (u32 b = 0; b < gridDim.x; ++b) {
            const u32 count = args.block_counts[static_cast<i64>(b) * shared.sums + i];
            total += count;
            before += b < blockIdx.x ? count : 0;
        }
        shared.totals[i] = static_cast<i32>(total);
        shared.counts[i] = static_cast<i32>(before);
    }
    return true;
}

/// From the totals to where segments and sources start.
template <plan_config Config>
__device__ void find_starts(const gathered_plan_args& args, const gathered_shared<Config>& shared) {
    const i32 thread = static_cast<i32>(threadIdx.x);
    if (thread <= Config.num_ranks) {
        i32 lines = 0;
#pragma unroll 1
        for (i32 r = 0; r < thread; ++r) {
            lines += shared.totals[shared.keys + 2 * Config.num_ranks + r];
        }
        shared.line_first[thread] = lines;
    }
    if (args.layout == row_layout::expert_major) {
        scan_segments<Config>(shared.totals, shared.starts, args.alignment);
    } else {
        __syncthreads();
    }
}

/// This rank's header to all ranks, by the block that is done with its rows last. `ok` false: nothing goes out. Called
/// by all blocks when their rows are sent.
template <plan_config Config>
__device__ void leave_rows_sent(const gathered_plan_args& args, const gathered_shared<Config>& shared,
                                const gathering& g, bool ok) {
    bool last = true;
    if (args.at_once == 0) {
        if (threadIdx.x == 0 && (shared.problems[0] | shared.problems[1] | shared.problems[2]) != 0) {
            atomicAdd(&args.device_status->bad_ids, shared.problems[0]);
            atomicAdd(&args.device_status->duplicate_ids, shared.problems[1]);
            atomicAdd(&args.device_status->excess_ids, shared.problems[2]);
        }
        last = grid_leave(args.barrier + 2);
        if (last && threadIdx.x == 0) {
            shared.problems[0] = args.device_status->bad_ids;
            shared.problems[1] = args.device_status->duplicate_ids;
            shared.problems[2] = args.device_status->excess_ids;
            *args.device_status = {};
        }
        __syncthreads();
    }
    if (ok && last) {
        send_header(args, shared, g);
    }
}

/// Takes the tiles [first, last), which are at most a chunk, into slots and masks. Called by all threads.
template <plan_config Config>
__device__ __forceinline__ bool take_chunk(const gathered_plan_args& args, const gathered_shared<Config>& shared,
                                           const gathering& g, i32 first, i32 last, bool ok) {
    ok = ok && take_tiles(args, shared, g, first, last);
    ok = __syncthreads_and(ok ? 1 : 0) != 0;
    if (ok) {
        resolve_tiles(args, shared, first, last);
    }
    __syncthreads();
    return ok;
}

/// By the warp that tells the host.
template <plan_config Config>
__device__ __forceinline__ void tell_host_early(const gathered_plan_args& args, const gathered_shared<Config>& shared) {
    const plan_status sums = sum_headers<Config>(shared);
    if (lane_idx() == 0) {
        publish_to_host(args, sums);
    }
}

/// The plan of the block's tiles. At once: it goes through all of them once, else through its own before and after the
/// blocks have told each other their counts. False: the exchange has failed, `ok` false before it too.
template <plan_config Config>
__device__ bool plan_tiles(const gathered_plan_args& args, gathered_shared<Config>& shared, const gathering& g,
                           bool ok) {
    const bool at_once = args.at_once != 0;
    const bool publishes = blockIdx.x + 1 == gridDim.x;
    const i32 tiles = Config.num_ranks * args.by_rank_tiles.divisor;
    const i32 block_tiles = at_once ? tiles : ceil_div(tiles, static_cast<i32>(gridDim.x));
    const i32 first = at_once ? 0 : min_of(static_cast<i32>(blockIdx.x) * block_tiles, tiles);
    const i32 last = min_of(first + block_tiles, tiles);
    const i32 passes = at_once ? 1 : 2;
    // Then rows follow from the masks, and what is counted is published when they have been told.
    const bool by_masks = at_once && args.layout != row_layout::expert_major;
    if (at_once) {
        shared.totals = shared.counts;
    }
    ok = ok && take_headers(args, shared, g);
#pragma unroll 1
    for (i32 pass = 0; pass < passes; ++pass) {
#pragma unroll 1
        for (i32 chunk = first; chunk < last; chunk += args.chunk_tiles) {
            const i32 end = min_of(chunk + args.chunk_tiles, last);
            ok = take_chunk(args, shared, g, chunk, end, ok);
            if (at_once && !ok) {
                return false;
            }
            if (publishes && tells(args)) {
                tell_lines(args, shared, g);
            }
#pragma unroll 1
            for (i32 part = 0; part < 2; ++part) {
                if (by_masks == (part == 0)) {
                    if (pass + 1 == passes) {
                        place_tiles(args, shared, g, chunk, end);
                    }
                    if (publishes && tells_early(args) && tells_host<Config>()) {
                        tell_host_early(args, shared);
                    }
                } else if (!by_masks || publishes) {
                    count_tiles(args, shared, chunk, end, pass == 0);
                    __syncthreads();
                    if (at_once) {
                        find_starts(args, shared);
                    }
                }
            }
            if (at_once && publishes) {
                publish_plan(args, shared);
                take_back_dropped(args, shared, tiles);
            }
            __syncthreads();
            if (!at_once) {
                clear_masks(shared, end - chunk);
                __syncthreads();
            }
        }
        if (at_once || pass != 0) {
            break;
        }
        // One that has failed comes too: the others would wait for it.
        ok = __syncthreads_and(ok ? 1 : 0) != 0;
        if (!share_counts(args, shared) || !ok ||
            __syncthreads_or(ld_relaxed_gpu(&args.link.control->failed) != 0 ? 1 : 0) != 0) {
            return false;
        }
        find_starts(args, shared);
        if (publishes) {
            publish_plan(args, shared);
        }
    }
    return true;
}

template <plan_config Given>
__global__ void __launch_bounds__(gathered_plan_threads, 1024 / gathered_plan_threads)
    gathered_plan_kernel(const __grid_constant__ gathered_plan_args args) {
    constexpr plan_config Config = gathered_config(Given);
    check_plan_config<Config>();
    static_assert(Config.exchange);
    extern __shared__ __align__(16) u8 memory[];
    gathered_shared<Config> shared(memory, args.chunk_tiles);
    // At once: the first block's ids are all.
    const i32 senders = args.at_once != 0 ? 1 : static_cast<i32>(gridDim.x);
    const bool sends = (args.phases & gathered_phase_send) != 0 && static_cast<i32>(blockIdx.x) < senders;
    const bool tells_rows = sends && tells(args);

    prepare_shared(args, shared);
    wait_for_kernel_before();
    // Loads that do not depend on each other: all are under way, the ids among them, before the first is needed.
    const failure_signs signs = load_failure_signs(args.link);
    u32 steps = 0;
    u32 gatherings = 0;
    if (args.flagged != 0) {
        const auto& lane = args.link.control->lanes[args.link.lane];
        steps = lane.step;
        gatherings = lane.gatherings;
    }
    clear_slot_counts<Config>(args);
    gathering g{};
    bool ok = true;
    i32 token = static_cast<i32>(blockIdx.x) * gathered_pack_tokens;
#pragma unroll 1
    do {
        id_problems problems;
        if (sends) {
            stage_rows(args, shared, token, problems);
        }
        sum_problems(shared, problems);
        ok = __syncthreads_or(!ok || shows_failure(signs, args.link, lane_op::plan_rows) ? 1 : 0) == 0;
        g = gathering_of<Config>(args, steps, gatherings);
        // By a thread that has nothing to send where tokens are few.
        if (tells_rows && token == 0 && threadIdx.x == Config.threads / 4 * 3) {
            tell_begun(args, g);
        }
        if (sends && ok) {
            send_stage(args, shared, g, token);
        }
        token += senders * gathered_pack_tokens;
        if (token < args.bound) {
            if (ok && tells_rows) {
                tell_entries(args, shared, g, token - gathered_pack_tokens);
            }
            __syncthreads();
        }
    } while (sends && token < args.bound);
    if (sends) {
        leave_rows_sent(args, shared, g, ok);
    }
    if (ok && args.flagged != 0 && blockIdx.x == 0 && threadIdx.x / 32 == Config.threads / 64) {
        // What this rank did before is done: whoever sees the step needs no more than that.
        for (i32 p = static_cast<i32>(lane_idx()); p < Config.num_ranks; p += 32) {
            note_step(args.link, p, g.step, lane_op::plan_rows);
        }
    }
    if (ok && tells_rows) {
        tell_entries(args, shared, g, token - gathered_pack_tokens);
    }
    const bool plans = (args.phases & gathered_phase_plan) != 0;
    if (plans) {
        ok = plan_tiles(args, shared, g, ok);
    }
    if (!ok) {
        clear_plan<Config>(args);
        return;
    }
    if (!plans) {
        return;
    }
    report_dropped(args, shared);
    if (gridDim.x == 1 || grid_leave(args.barrier)) {
        finish_gathered(args, shared, g);
    }
}

#endif

}  // namespace epjit::templates
