// SPDX-License-Identifier: Apache-2.0
// Dispatch of few tokens between ranks that store into each other's windows: rows travel as packets that announce
// themselves, straight from the caller's input and straight to their places.
//
// Cost model: a row crosses once a rank in 16/15 of its bytes; one flight over the link, no flag and no round of steps.
// Launches: 1. SMs: a block for each part of a token's row and of an arriving line's, up to what fits: an SM stores 46
// GB/s into a peer's memory, so a row of 14 KiB leaves one in 0.4 us and four in 0.1. Senders come first in the grid
// and wait for nothing in it; receivers wait for the peers' senders. A dispatch that follows its plan goes by what that
// tells while it is made, and ends after it.
#pragma once

#include "low_latency/ll_dispatch_receive.cuh"
#include "low_latency/ll_dispatch_send.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Of a block that fills rows that no token has.
template <scatter_config Config>
__device__ inline void fill_part(const ll_dispatch_args& args, const own_rank_phase& phase, packet_step& shared,
                                 i32 block) {
    wait_for_kernel_before();
    learn_step(args.link, lane_area::row_packets, lane_op::dispatch, false, shared);
    meet_step(shared);
    constexpr i32 warps = Config.threads / 32;
    fill_unused_rows_inline<Config>(phase, block * warps + static_cast<i32>(threadIdx.x) / 32,
                                    (static_cast<i32>(gridDim.x) - args.senders - args.receivers) * warps);
}

template <scatter_config Config>
__global__ void __launch_bounds__(Config.threads, max_of(1, 1024 / Config.threads))
    ll_dispatch_kernel(const __grid_constant__ ll_dispatch_args args) {
    static_assert(Config.input == Config.output, "packets do not convert");
    __shared__ packet_step step;
    const own_rank_phase phase(args);
    const i32 block = static_cast<i32>(blockIdx.x);
    prefetch_link(args.link);
    if (block < args.senders) {
        send_part<Config>(args, phase, step, block);
    } else if (block < args.senders + args.receivers) {
        receive_part<Config>(args, phase, step, block - args.senders);
    } else {
        fill_part<Config>(args, phase, step, block - args.senders - args.receivers);
    }
}

#endif

}  // namespace epjit::templates
