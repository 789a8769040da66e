// SPDX-License-Identifier: Apache-2.0
// How kernels of packets take the lane's steps: one warp of a block learns the step while the others load.
#pragma once

#include "base/device.cuh"
#include "exchange/channel.cuh"
#include "low_latency/packet_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// The step of a kernel that sends packets, in a block's shared memory.
struct packet_step {
    u32 step;
    u32 lives;      ///< nothing says that the exchange has failed
    u32 may_write;  ///< so do all ranks' areas: every rank has read what lay where this step's packets go

    __device__ __forceinline__ i32 parity() const { return static_cast<i32>(step & 1); }
};

/// What a kernel of packets does before it waits for the kernel in front of it. Where windows lie never changes.
__device__ __forceinline__ void prefetch_link(const rank_link& link) {
    if (threadIdx.x < static_cast<u32>(link.num_ranks)) {
        prefetch_l1(link.peers + threadIdx.x);
    }
}

/// By the last block: the step for the kernels that follow, and what they may take for read.
__device__ __forceinline__ void keep_step(const rank_link& link, lane_area area, u32 step) {
    auto& lane = link.control->lanes[link.lane];
    lane.leaving = 0;
    lane.step = step;
    lane.area_step[static_cast<i32>(area) + static_cast<i32>(step & 1)] = step + 1;
}

/// By a warp: tells the peers that the step has begun.
__device__ __forceinline__ void note_step_everywhere(const rank_link& link, u32 step, lane_op op) {
#pragma unroll 1
    for (i32 p = static_cast<i32>(lane_idx()); p < link.num_ranks; p += 32) {
        if (p != link.me && link.peers[p] != nullptr) {
            note_step(link, p, step, op);
        }
    }
}

/// Learns the step, by the block's last warp; the others load meanwhile what they need and then meet_step. All loads
/// are under way at once.
///
/// The last block that has learned it keeps the step for the kernels that follow: they start when this one has ended,
/// and then what lies at `area` has been read. The first block tells the peers that the step has begun, and so all
/// before it have ended. `writes`: the block sends packets or weights.
__device__ inline void learn_step(const rank_link& link, lane_area area, lane_op op, bool writes, packet_step& shared) {
    if (threadIdx.x / 32 != blockDim.x / 32 - 1) {
        return;
    }
    const i32 thread = static_cast<i32>(lane_idx());
    auto& lane = link.control->lanes[link.lane];
    const failure_signs signs = load_failure_signs(link);
    const u32 step = ld_relaxed_gpu(&lane.step) + 1;
    const u32 read_step[2] = {ld_relaxed_gpu(&lane.area_step[static_cast<i32>(area)]),
                              ld_relaxed_gpu(&lane.area_step[static_cast<i32>(area) + 1])};
    u64 word = ld_relaxed_sys_64(link.words + min_of(thread, link.num_ranks - 1));
    const bool lives = __all_sync(full_warp, !shows_failure(signs, link, op)) != 0;
    const u32 read = (step & 1) != 0 ? read_step[1] : read_step[0];
    bool may_write = lives;
    if (writes && lives) {
#pragma unroll 1
        for (i32 p = thread; p < link.num_ranks; p += 32) {
            word = p == thread ? word : ld_relaxed_sys_64(link.words + p);
            // Most often it has. What is read from then on does not depend on it, so a relaxed look is enough.
            may_write = may_write && (p == link.me || static_cast<i32>(static_cast<u32>(word >> 32) - read) >= 0 ||
                                      wait_step(link, p, read, lane_op::none));
        }
    }
    may_write = __all_sync(full_warp, may_write);
    if (blockIdx.x == 0 && lives) {
        note_step_everywhere(link, step, op);
    }
    if (thread == 0) {
        shared.step = step;
        shared.lives = lives ? 1 : 0;
        shared.may_write = may_write ? 1 : 0;
        if (add_relaxed_gpu(&lane.leaving, 1) + 1 == gridDim.x) {
            keep_step(link, area, step);
        }
    }
}

/// How long a dispatch looks for its plan to be under way. The kernel in front of it lets it in when it has begun, so
/// this passes only where another kernel is in front.
inline constexpr u64 early_begin_ns = 50'000;

/// The same beside the plan in front, from what that tells, and lets the kernel behind in. Nothing is noted yet: see
/// leave_early_step. The step lives where the plan is under way. What was there before the plan may be read when the
/// block has met the step, not before: a kernel that is launched early finds in its SM's L1 what earlier ones left.
__device__ inline void learn_early_step(const rank_link& link, lane_area area, const early_plan& early, u32 sequence,
                                        bool writes, packet_step& shared) {
    let_kernel_behind_in();
    if (threadIdx.x / 32 != blockDim.x / 32 - 1) {
        return;
    }
    const i32 thread = static_cast<i32>(lane_idx());
    const auto& lane = link.control->lanes[link.lane];
    u32 step = 0;
    bool lives = true;
    if (thread == 0) {
        lives = await_plan(link, early_begin_ns, [&] {
            const u32 tag = static_cast<u32>(ld_acquire_gpu_64(early.state) >> 32);
            const u32 last = ld_relaxed_gpu(&lane.step);  // the plan's, or the one before it
            step = last + (tag == early_tag(last, sequence) ? 1 : 2);
            return tag == early_tag(step - 1, sequence);
        });
    }
    lives = __all_sync(full_warp, lives) != 0;
    step = __shfl_sync(full_warp, step, 0);
    bool may_write = lives;
    if (writes && lives) {
        const u32 read = ld_relaxed_gpu(&lane.area_step[static_cast<i32>(area) + static_cast<i32>(step & 1)]);
#pragma unroll 1
        for (i32 p = thread; p < link.num_ranks; p += 32) {
            may_write = may_write && (p == link.me || wait_step(link, p, read, lane_op::none));
        }
        may_write = __all_sync(full_warp, may_write) != 0;
    }
    if (thread == 0) {
        shared.step = step;
        shared.lives = lives ? 1 : 0;
        shared.may_write = may_write ? 1 : 0;
    }
}

/// At the end of a block that has learned the step early and has met: what learn_step would have noted, once the plan
/// has ended. So this kernel does not end before that.
__device__ inline void leave_early_step(const rank_link& link, lane_area area, lane_op op, const packet_step& shared) {
    if (threadIdx.x / 32 != blockDim.x / 32 - 1) {
        return;
    }
    const bool last = lane_idx() == 0 && add_relaxed_gpu(&link.control->lanes[link.lane].leaving, 1) + 1 == gridDim.x;
    wait_for_kernel_before_alone();
    if (last) {
        keep_step(link, area, shared.step);
    }
    if (blockIdx.x == 0) {
        note_step_everywhere(link, shared.step, op);
    }
}

/// The step, when the last warp knows it. Called by all threads of the block, once for each time it is learned.
__device__ __forceinline__ packet_step meet_step(const packet_step& shared) {
    __syncthreads();
    return shared;
}

#endif

}  // namespace epjit::templates
