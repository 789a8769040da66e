// SPDX-License-Identifier: Apache-2.0
// Dispatch between ranks that store into each other's windows, in one launch: the first blocks send this rank's rows,
// the others expand rows, this rank's own at once and the peers' as they arrive.
//
// Cost model: D rows of a token cross to other ranks, once each: row bytes * T * D over the link. Reads every line's
// row once and writes it to its places. Launches: 1. SMs: `senders` blocks drive the link, all others the memory.
// Senders wait for nothing that is later in the grid and come first; the others wait for the peers' senders. A
// dispatch that follows its plan is launched beside it: senders begin when that has placed this rank's tokens and sent
// their lines, the others when it has ended.
#pragma once

#include "exchange/dispatch_expand.cuh"
#include "exchange/dispatch_send.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

template <scatter_config Config>
__global__ void __launch_bounds__(dispatch_threads(Config), 1)
    dispatch_kernel(const __grid_constant__ dispatch_args<Config.num_ranks> args) {
    static_assert(Config.input == Config.output, "bulk copies do not convert");
    __shared__ dispatch_phase<Config> phase;
    extern __shared__ __align__(128) u8 memory[];
    const bool sends = static_cast<i32>(blockIdx.x) < args.senders;
    phase.take(args, sends);
    const u32 step = wait_for_plan(args.link, sends && args.follows != 0) + 1;
    if (!sends) {
        fence_proxy_async();  // lines that the plan's kernel has stored, to be read by copies
        phase.take_lines(args);
    }
    if (__syncthreads_or(exchange_failed(args.link, lane_op::dispatch) ? 1 : 0) != 0) {
        return;
    }
    if (sends) {
        send_part<Config>(args, phase, memory, step);
    } else {
        expand_part<Config>(args, phase, memory, step);
    }
    leave_step(args.link, step, lane_op::dispatch, area_bit(lane_area::rows));
}

#endif
#endif

}  // namespace epjit::templates
