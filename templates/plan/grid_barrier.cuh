// SPDX-License-Identifier: Apache-2.0
// A barrier over the blocks of a cooperative grid, bounded in time, that leaves its two words zero for the next launch.
#pragma once

#include "base/device.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Waits until every block has come; called by all threads. False when `timeout_ns` passed first: the caller returns.
/// Writes of any block before the barrier are visible to all blocks after it.
__device__ inline bool grid_arrive_and_wait(u32* words, u64 timeout_ns) {
    __shared__ u32 arrived;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 seen = add_acq_rel_gpu(words, 1) + 1;
        if (seen < gridDim.x) {
            const u64 start = global_time_ns();
            do {
                seen = ld_acquire_gpu(words);
            } while (seen < gridDim.x && global_time_ns() - start < timeout_ns);
        }
        arrived = seen;
    }
    __syncthreads();
    return arrived >= gridDim.x;
}

/// Called by all threads as their last step. True in the one block that leaves last, after which every write of every
/// block is visible to it and both words are zero again.
__device__ inline bool grid_leave(u32* words) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        last = add_acq_rel_gpu(words + 1, 1) + 1 == gridDim.x;
        if (last) {
            words[0] = 0;
            words[1] = 0;
        }
    }
    __syncthreads();
    return last;
}

#endif

}  // namespace epjit::templates
