// SPDX-License-Identifier: Apache-2.0
// Combine between ranks that store into each other's windows, in one launch: blocks that sum this rank's rows of the
// peers' tokens and store the sums at their owners, and blocks that sum this rank's own tokens from its own rows and
// what the peers have sent. Before both a few blocks send the weights of tokens whose rows lie on other ranks.
//
// Cost model: reads every row once; a token's partial sums cross the link once a rank. Launches: 1. SMs: all, one block
// each where rows pass through shared memory. Blocks that send weights wait for nothing of this step and leave; those
// that send sums wait for the peers' weights, those that finish for the peers' sums: nothing later in a grid.
#pragma once

#include "base/device.cuh"
#include "exchange/combine_common.cuh"
#include "exchange/combine_loads.cuh"
#include "exchange/combine_ring.cuh"
#include "exchange/dispatch_layout.cuh"
#include "exchange/flags.cuh"
#include "exchange/line_terms.cuh"
#include "exchange/telling.cuh"
#include "exchange/window_lines.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

template <gather_config Config>
__global__ void __launch_bounds__(combine_threads(Config), combine_blocks(Config))
    combine_kernel(const __grid_constant__ combine_args<Config.num_ranks> args) {
    static_assert(Config.type != element::fp8_e4m3, "fp8 rows are not summed");
    extern __shared__ __align__(128) u8 memory[];
    __shared__ i32 lines[window_numbers(Config.num_ranks)];
    // What loops read over and over would come from the L2 time and again, since each acquire empties the L1.
    constexpr bool near = Config.num_ranks <= 8;
    __shared__ gather_rank ranks[near ? Config.num_ranks : 1];
    __shared__ sent_list sent[combine_teams(Config)];
    if (near && static_cast<i32>(threadIdx.x) < Config.num_ranks) {
        ranks[threadIdx.x] = args.ranks[threadIdx.x];
    }
    if (static_cast<i32>(threadIdx.x) < combine_teams(Config)) {
        sent[threadIdx.x].begin();
    }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if constexpr (Config.stages != 0) {
        if (static_cast<i32>(threadIdx.x) < Config.teams) {
            combine_team<Config>(memory, static_cast<i32>(threadIdx.x)).init();
        }
    }
#else
    static_assert(Config.stages == 0, "bulk copies come with sm_90");
#endif
    wait_for_kernel_before();
    auto& lane = args.link.control->lanes[args.link.lane];
    const u32 step = lane.step + 1;
    const u32 partials_step = lane.area_step[static_cast<i32>(lane_area::partials)];
    if (__syncthreads_or(exchange_failed(args.link, lane_op::combine) ? 1 : 0) != 0) {
        return;
    }
    combine_phase phase;
    static_cast<gather_head&>(phase) = args;
    phase.ranks = near ? ranks : args.ranks;
    const i32 block = static_cast<i32>(blockIdx.x);
    if (block < args.weight_blocks) {
        if (wait_all(args.link, lane.area_step[static_cast<i32>(lane_area::weights)], lane_op::none, false)) {
            send_line_weights<Config.topk>(args, args.line_weights, phase.ranks[args.link.me], step,
                                           block * combine_threads(Config) + static_cast<i32>(threadIdx.x),
                                           args.weight_blocks * combine_threads(Config));
        }
    } else {
        const combine_part part(args);
        phase.order = part.sends ? sum_order::per_rank : phase.order;
        if (part.sends && args.list.window != 0) {
            find_window_lines<Config.topk>(args, lines);
            use_window_lines(phase.list, lines);
        } else if (part.sends) {
            if (static_cast<i32>(threadIdx.x) <= args.link.num_ranks) {
                lines[threadIdx.x] = args.list.line_first[threadIdx.x];
            }
            __syncthreads();
            phase.list.line_first = lines;
        }
        if constexpr (Config.stages == 0) {
            combine_by_loads<Config>(args, phase, part, step, partials_step);
        } else {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
            combine_by_ring<Config>(args, phase, part, memory, sent, step, partials_step);
#endif
        }
    }
    leave_step(args.link, step, lane_op::combine,
               area_bit(lane_area::partials) | (args.weighted != 0 ? area_bit(lane_area::weights) : 0));
}

#endif

}  // namespace epjit::templates
