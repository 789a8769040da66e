// SPDX-License-Identifier: Apache-2.0
// One step of a lane by one small block: signal, wait, or both.
//
// Cost model: 8 bytes to and from every rank, one flight over the link. Launches: 1. SMs: 1.
#pragma once

#include "base/device.cuh"
#include "exchange/channel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

template <exchange_kernels_config Config>
__global__ void __launch_bounds__(64) sync_kernel(const __grid_constant__ sync_args args) {
    const rank_link& link = args.link;
    if (__syncthreads_or(exchange_failed(link, args.op) ? 1 : 0) != 0) {
        return;
    }
    auto& lane = link.control->lanes[link.lane];
    u32 step = lane.step;
    if (args.wait_area >= 0) {
        // Any step may follow the one that is waited for: only its number counts.
        if (!wait_all(link, lane.area_step[args.wait_area], lane_op::none, false)) {
            return;
        }
    }
    __syncthreads();
    if (args.signal != 0) {
        ++step;
        if (threadIdx.x == 0) {
            lane.step = step;
            if (args.read_area >= 0) {
                lane.area_step[args.read_area] = step;
            }
        }
#pragma unroll 1
        for (i32 p = static_cast<i32>(threadIdx.x); p < link.num_ranks; p += 64) {
            if (p != link.me && link.peers[p] != nullptr) {
                signal_step(link, p, step, args.op);
            }
        }
    }
    if (args.wait != 0) {
        wait_all(link, step, args.op, false);
    }
}

#endif

}  // namespace epjit::templates
