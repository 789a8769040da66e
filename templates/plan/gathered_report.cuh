// SPDX-License-Identifier: Apache-2.0
// What a plan made of all ranks' routing leaves beside the rows' places: counts, offsets, the lane's step, and what the
// host is told.
#pragma once

#include "base/device.cuh"
#include "plan/exchange_plan_kernel.cuh"
#include "plan/gathered_rows.cuh"
#include "plan/place.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// The last block's part: counts and offsets, what the host wants to know of lines and tokens.
template <plan_config Config>
__device__ void publish_plan(const gathered_plan_args& args, const gathered_shared<Config>& shared) {
    const u32 dropped =
        write_counts<Config>(args, {shared.slot_rank, shared.rank_first}, shared.totals, shared.starts,
                             [&shared](i32 rank) { return static_cast<i32>(shared.headers[rank].capacity); });
    if (dropped != 0) {
        atomicAdd(&shared.problems[3], dropped);
    }
    add_slot_tokens<Config>(args, shared.totals);
    const i32 r = static_cast<i32>(threadIdx.x);
    if (r <= Config.num_ranks) {
        args.line_first[r] = shared.line_first[r];
    }
    if (r < Config.num_ranks && args.host_counts != nullptr) {
        i32* lines = args.host_counts + Config.num_slots + Config.num_ranks;
        lines[r] = shared.totals[shared.keys + Config.num_ranks + r];
        lines[Config.num_ranks + r] = shared.totals[shared.keys + 2 * Config.num_ranks + r];
        lines[2 * Config.num_ranks + r] = static_cast<i32>(shared.headers[r].num_tokens);
    }
}

/// Whether the host is told of a static plan right behind its places, before the kernel's last part: memory of the host
/// takes its time, which a kernel that follows would wait for. What is dropped it may not know by then.
__device__ __forceinline__ bool tells_early(const gathered_plan_args& args) {
    return args.at_once != 0 && args.host_counts == nullptr;
}

/// What the headers say of all ranks' ids; called by a whole warp.
template <plan_config Config>
__device__ plan_status sum_headers(const gathered_shared<Config>& shared) {
    plan_status sums{};
    u32 refusing = 0xffffffffu;
#pragma unroll 1
    for (i32 r = static_cast<i32>(lane_idx()); r < Config.num_ranks; r += 32) {
        const gathered_header& header = shared.headers[r];
        sums.bad_ids += header.bad_ids;
        sums.duplicate_ids += header.duplicate_ids;
        sums.excess_ids += header.excess_ids;
        refusing = header.refused_tokens != 0 ? min_of(refusing, static_cast<u32>(r)) : refusing;
    }
    sums.bad_ids = __reduce_add_sync(full_warp, sums.bad_ids);
    sums.duplicate_ids = __reduce_add_sync(full_warp, sums.duplicate_ids);
    sums.excess_ids = __reduce_add_sync(full_warp, sums.excess_ids);
    refusing = __reduce_min_sync(full_warp, refusing);
    if (refusing != 0xffffffffu) {
        sums.refusing_rank = refusing + 1;
        sums.refused_tokens = shared.headers[refusing].refused_tokens;
    }
    return sums;
}

/// The warp that tells the host.
template <plan_config Config>
__device__ __forceinline__ bool tells_host() {
    return static_cast<i32>(threadIdx.x) / 32 == Config.threads / 32 - 1;
}

/// What the block that publishes has found to be dropped, to the host where that has been told all else, or to the
/// block that leaves last.
template <plan_config Config>
__device__ __forceinline__ void report_dropped(const gathered_plan_args& args, const gathered_shared<Config>& shared) {
    if (args.at_once == 0) {
        __syncthreads();
    }
    if (blockIdx.x + 1 != gridDim.x || !tells_host<Config>() || lane_idx() != 0) {
        return;
    }
    if (const u32 dropped = shared.problems[3]; dropped != 0) {
        (tells_early(args) ? args.host_status : args.device_status)->dropped_rows = dropped;
    }
}

/// The end, in the block that leaves last: the lane's step, and the host. Called by all its threads.
template <plan_config Config>
__device__ void finish_gathered(const gathered_plan_args& args, const gathered_shared<Config>& shared,
                                const gathering& g) {
    if (args.layout == row_layout::flat && args.host_counts != nullptr) {
#pragma unroll 1
        for (i32 slot = static_cast<i32>(threadIdx.x); slot < Config.num_slots; slot += Config.threads) {
            args.host_counts[slot] = ld_relaxed_gpu(reinterpret_cast<const u32*>(args.slot_counts + slot));
        }
    }
    if (args.host_counts != nullptr) {
        fence_sys();
        __syncthreads();
    }
    if (!tells_host<Config>()) {
        return;
    }
    const bool first = lane_idx() == 0;
    if (args.flagged != 0 && first) {
        auto& lane = args.link.control->lanes[args.link.lane];
        lane.step = g.step;
        lane.gatherings = g.number;
    }
    if (tells_early(args)) {
        return;
    }
    plan_status sums = sum_headers<Config>(shared);
    if (first) {
        sums.dropped_rows = args.device_status->dropped_rows;
        *args.device_status = {};
        publish_to_host(args, sums);
    }
}

#endif

}  // namespace epjit::templates
