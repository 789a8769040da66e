// SPDX-License-Identifier: Apache-2.0
// Routing to plan in one cooperative launch: count, one grid barrier, place.
//
// Cost model, T tokens over all ranks, K ids each, B blocks, Q keys: reads T*K ids (or T*E bytes), writes and reads
// back T*K entries of 8 + 2 bytes, and every block reads the B*Q counts of all. Launches: 1. SMs: one block per 64
// tokens up to what fits on the device at once.
#pragma once

#include "base/device.cuh"
#include "plan/count.cuh"
#include "plan/grid_barrier.cuh"
#include "plan/place.cuh"
#include "plan/plan_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

template <plan_config Config>
EPJIT_SHARED constexpr void check_plan_config() {
    static_assert(Config.num_experts >= 1 && Config.num_experts <= max_experts);
    static_assert(Config.num_slots >= Config.num_experts && Config.num_slots <= max_slots);
    static_assert(Config.num_ranks >= 1 && Config.num_ranks <= max_driven_ranks);
    static_assert(Config.topk >= 1 && Config.topk <= max_topk);
    static_assert(Config.threads >= 128 && Config.threads <= 1024 && (Config.threads & (Config.threads - 1)) == 0,
                  "lanes of a token and tokens of a tile are powers of two");
    static_assert(Config.threads % token_lanes<Config>::value == 0);
    static_assert(plan_tile_tokens % token_lanes<Config>::tokens_per_pass == 0);
}

/// Sums a warp's input problems and adds them to the plan's status. Called by whole warps.
__device__ inline void report(plan_status* status, const id_problems& problems) {
    const u32 bad = __reduce_add_sync(full_warp, problems.bad);
    const u32 duplicate = __reduce_add_sync(full_warp, problems.duplicate);
    const u32 excess = __reduce_add_sync(full_warp, problems.excess);
    if (lane_idx() == 0 && (bad | duplicate | excess) != 0) {
        atomicAdd(&status->bad_ids, bad);
        atomicAdd(&status->duplicate_ids, duplicate);
        atomicAdd(&status->excess_ids, excess);
    }
}

/// One thread of the block that leaves last hands the sums to the host and clears them for the next launch. Where no
/// host waits, the kernel's end is soon enough to make them visible: a system-wide release takes over a microsecond.
__device__ inline void publish_status(plan_status* device, plan_status* host, u32 sequence, bool host_waits) {
    const plan_status sums = *device;
    *device = plan_status{};
    host->bad_ids = sums.bad_ids;
    host->duplicate_ids = sums.duplicate_ids;
    host->excess_ids = sums.excess_ids;
    host->dropped_rows = sums.dropped_rows;
    host->timed_out = 0;
    if (host_waits) {
        st_release_sys(&host->ready, sequence);
    } else {
        host->ready = sequence;
    }
}

template <plan_config Config>
__global__ void __launch_bounds__(Config.threads, 1)
    plan_kernel(const __grid_constant__ plan_args<Config.num_ranks> args) {
    check_plan_config<Config>();
    extern __shared__ __align__(16) u8 memory[];
    plan_shared<Config> shared(memory);
    const i32 thread = static_cast<i32>(threadIdx.x);
#pragma unroll 1
    for (i32 key = thread; key < plan_shared<Config>::keys; key += Config.threads) {
        shared.masks[key] = 0;
        shared.counts[key] = 0;
        shared.bases[key] = 0;
    }
    if (blockIdx.x + 1 == gridDim.x && args.layout == row_layout::flat) {
#pragma unroll 1
        for (i32 slot = thread; slot < Config.num_slots; slot += Config.threads) {
            args.slot_counts[slot] = 0;
        }
    }
    __syncthreads();

    const i32 tiles = ceil_div(args.num_tokens, plan_tile_tokens);
    const i32 block_tokens = ceil_div(tiles, static_cast<i32>(gridDim.x)) * plan_tile_tokens;
    const i32 first = min_of(static_cast<i32>(blockIdx.x) * block_tokens, args.num_tokens);
    const i32 last = min_of(first + block_tokens, args.num_tokens);
    id_problems problems;
    count_tokens(args, shared, first, last, problems);
    report(args.device_status, problems);

    const i32 used_keys = Config.num_slots + (args.layout == row_layout::flat ? Config.num_ranks : 0);
#pragma unroll 1
    for (i32 key = thread; key < used_keys; key += Config.threads) {
        args.block_counts[static_cast<i32>(blockIdx.x) * plan_shared<Config>::keys + key] = shared.counts[key];
        shared.counts[key] = 0;
    }
    if (!grid_arrive_and_wait(args.barrier, args.timeout_ns)) {
        if (thread == 0) {
            args.host_status->timed_out = 1;
            st_release_sys(&args.host_status->ready, args.sequence);
        }
        return;
    }

    sum_block_counts(args, shared, used_keys);
    if (args.layout == row_layout::expert_major) {
        scan_segments(args, shared);
    }
    if (blockIdx.x + 1 == gridDim.x) {
        publish_counts(args, shared);
        if (args.host_counts != nullptr) {
            fence_sys();
        }
    }
    place_tokens(args, shared, first, last);
    if (grid_leave(args.barrier)) {
        if (args.layout == row_layout::flat && args.host_counts != nullptr) {
#pragma unroll 1
            for (i32 slot = thread; slot < Config.num_slots; slot += Config.threads) {
                args.host_counts[slot] = args.slot_counts[slot];
            }
            fence_sys();
            __syncthreads();
        }
        if (thread == 0) {
            publish_status(args.device_status, args.host_status, args.sequence, args.host_counts != nullptr);
        }
    }
}

#endif

}  // namespace epjit::templates
