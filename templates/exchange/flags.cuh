// SPDX-License-Identifier: Apache-2.0
// Flags of chunks: a source raises one for every few rows it has stored into a peer's window, so that the peer works on
// what has arrived while the rest still travels.
#pragma once

#include "base/device.cuh"
#include "exchange/channel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// The flag of a chunk of this rank at one peer.
__device__ __forceinline__ u32* flag_at(const chunk_flags& flags, const rank_link& link, i32 peer, i32 chunk) {
    return reinterpret_cast<u32*>(link.peers[peer] + flags.offset) + static_cast<i64>(link.me) * flags.stride + chunk;
}

/// Raises it: what this thread has seen or written is visible to whoever sees it.
__device__ __forceinline__ void raise_flag(const chunk_flags& flags, const rank_link& link, i32 peer, i32 chunk,
                                           u32 step) {
    st_release_sys(flag_at(flags, link, peer, chunk), step);
}

/// Whether the flag of a chunk of `source` is up already.
__device__ __forceinline__ bool flag_is_seen(const chunk_flags& flags, i32 source, i32 chunk, u32 step) {
    return ld_acquire_sys(flags.own + static_cast<i64>(source) * flags.stride + chunk) == step;
}

/// Asked now and then while what `source` sends in this step does not come, since `start`. False: the exchange has
/// failed.
__device__ __noinline__ bool keep_waiting(const rank_link& link, i32 source, u32 step, lane_op op, u64 start) {
    const failure_signs signs = load_failure_signs(link);
    const u64 word = ld_relaxed_sys_64(link.words + source);
    const u64 limit = step <= 4 ? link.control->first_limit_ns : link.control->limit_ns;
    if (signs.failed != 0) {
        return false;
    }
    failure_kind kind = failure_kind::none;
    if (signs.poison != 0) {
        kind = failure_kind::peer;
        source = static_cast<i32>(signs.poison) - 1;
    } else if (static_cast<u32>(word >> 32) == step && static_cast<u32>(word) != static_cast<u32>(op)) {
        kind = failure_kind::mismatch;
    } else if (global_time_ns() - start > limit) {
        kind = failure_kind::timeout;
    } else {
        return true;
    }
    fail_exchange(link, kind, op, source, step, word);
    return false;
}

/// Waits until `source` has raised the flag of its chunk for this step. False: the exchange has failed. Any thread.
__device__ inline bool wait_flag(const chunk_flags& flags, const rank_link& link, i32 source, i32 chunk, u32 step,
                                 lane_op op) {
    const u32* flag = flags.own + static_cast<i64>(source) * flags.stride + chunk;
    if (ld_acquire_sys(flag) == step) {
        return true;
    }
    const u64 start = global_time_ns();
    for (u32 spin = 1;; ++spin) {
        if (ld_acquire_sys(flag) == step) {
            return true;
        }
        if (spin % 16 == 0 && !keep_waiting(link, source, step, op, start)) {
            return false;
        }
    }
}

/// Called by all threads of every block as their last step, when the block's reads and writes are done. The block that
/// leaves last takes the lane's step: every rank then knows that this one has read the `areas` (area_bit).
__device__ inline void leave_step(const rank_link& link, u32 step, lane_op op, u32 areas) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        auto& lane = link.control->lanes[link.lane];
        last = add_acq_rel_gpu(&lane.leaving, 1) + 1 == gridDim.x;
        if (last) {
            lane.leaving = 0;
            lane.taken = 0;
            lane.step = step;
#pragma unroll
            for (i32 area = 0; area < lane_areas; ++area) {
                if ((areas >> area & 1) != 0) {
                    lane.area_step[area] = step;
                }
            }
        }
    }
    __syncthreads();
    if (last) {
        for (i32 p = static_cast<i32>(threadIdx.x); p < link.num_ranks; p += static_cast<i32>(blockDim.x)) {
            if (p != link.me && link.peers[p] != nullptr) {
                signal_step(link, p, step, op);
            }
        }
    }
}

#endif

}  // namespace epjit::templates
