// SPDX-License-Identifier: Apache-2.0
// Combine between ranks that store into each other's windows, in one launch: the first blocks sum this rank's rows of
// the peers' tokens and store the sums at their owners, the others sum this rank's own tokens from its own rows and
// what the peers have sent.
//
// Cost model: reads every row once; a token's partial sums cross the link once a rank. Launches: 1. SMs: `senders`
// blocks first, all resident. Senders wait for nothing that is later in the grid; the others for the peers' senders.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "exchange/dispatch_layout.cuh"
#include "exchange/flags.cuh"
#include "rows/gather_common.cuh"
#include "rows/gather_kernel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

struct combine_phase : gather_head {
    const gather_rank* ranks;
};

/// One token of this rank by one warp: its own rows with the caller's weights, a partial sum of every other rank. Waits
/// for the partial sums. False: the exchange has failed.
template <gather_config Config, class Args>
__device__ inline bool resolve_own_token(const Args& args, const combine_phase& phase, i32 token, u32 step,
                                         row_terms<Config>& out) {
    const i32 lane = static_cast<i32>(lane_idx());
    const gather_rank& own = phase.ranks[args.link.me];
    plan_entry entry{-1, no_rank, 0};
    i32 position = -1;
    if (lane < Config.topk) {
        const i64 index = static_cast<i64>(token) * Config.topk + lane;
        entry = phase.entries[index];
        position = phase.list.positions[index];
    }
    const u32 previous = __shfl_up_sync(full_warp, static_cast<u32>(entry.rank), 1);
    const bool first = lane == 0 || previous != entry.rank;
    const bool here = entry.rank == args.link.me;
    const bool used =
        entry.rank != no_rank && (here ? entry.row >= 0 && (first || phase.layout != row_layout::flat) : first);
    bool ok = true;
    if (row_term* term = order_term<Config>(phase, used, entry.rank, out); term != nullptr) {
        const gather_rank& holder = phase.ranks[entry.rank];
        term->row =
            static_cast<const u8*>(holder.rows) + static_cast<i64>(here ? entry.row : position) * holder.row_stride;
        term->weight = 1.0f;
        if (here && own.weights != nullptr) {
            term->weight = own.weights[static_cast<i64>(token) * args.own_weight_columns + entry.column];
        }
        if (!here) {
            ok = wait_flag(args.flags, args.link, entry.rank, position / args.chunk, step, lane_op::combine);
        }
    }
    if (lane == 0) {
        out.output = static_cast<u8*>(own.output) + static_cast<i64>(token) * own.output_stride;
    }
    return __all_sync(full_warp, ok);
}

template <gather_config Config>
__device__ __forceinline__ void sum_terms(const combine_phase& phase, const row_terms<Config>& terms) {
    constexpr i32 widest = row_packet_bytes(static_cast<i64>(Config.hidden) * element_bytes(Config.type));
    if (phase.vector_bytes >= widest) {
        sum_row<Config, widest, min_of(Config.topk, 4)>(terms, phase.order);
    } else {
        sum_row<Config, element_bytes(Config.type), 1>(terms, phase.order);
    }
}

/// Sums the peers' lines chunk by chunk, every `args.senders`-th, and raises each chunk's flag at its owner.
template <gather_config Config, class Args>
__device__ inline void send_sums(const Args& args, const combine_phase& phase, row_terms<Config> (&terms)[2],
                                 u32 step) {
    const i32 me = args.link.me;
    i32 before = 0;  // chunks of the sources so far
    i32 side = 0;
#pragma unroll 1
    for (i32 r = 1; r < args.link.num_ranks; ++r) {
        // Every rank starts with the one after it, so that no link is wanted by all at once.
        const i32 source = me + r < args.link.num_ranks ? me + r : me + r - args.link.num_ranks;
        const i32 first_line = phase.list.line_first[source];
        const i32 lines = phase.list.line_first[source + 1] - first_line;
        const i32 chunks = ceil_div(lines, args.chunk);
        i32 c = static_cast<i32>(blockIdx.x) - before % args.senders;
        c += c < 0 ? args.senders : 0;
        for (; c < chunks; c += args.senders) {
            const i32 end = min_of(lines, (c + 1) * args.chunk);
            for (i32 line = c * args.chunk - 1; line < end; ++line, side ^= 1) {
                if (threadIdx.x < 32 && line + 1 < end) {
                    resolve_terms<Config>(phase, first_line + line + 1, source, terms[side ^ 1]);
                }
                if (line >= c * args.chunk) {
                    sum_terms<Config>(phase, terms[side]);
                }
                __syncthreads();
            }
            if (threadIdx.x == 0) {
                raise_flag(args.flags, args.link, source, c, step);
            }
        }
        before += chunks;
    }
}

template <gather_config Config, class Args>
__device__ inline void sum_own_tokens(const Args& args, const combine_phase& phase, row_terms<Config> (&terms)[2],
                                      u32 step) {
    const i32 blocks = static_cast<i32>(gridDim.x) - args.senders;
    const i32 first = static_cast<i32>(blockIdx.x) - args.senders;
    i32 side = 0;
    bool ok = true;
#pragma unroll 1
    for (i32 token = first - blocks; token < args.num_tokens; token += blocks, side ^= 1) {
        if (threadIdx.x < 32 && token + blocks < args.num_tokens) {
            ok = resolve_own_token<Config>(args, phase, token + blocks, step, terms[side ^ 1]);
        }
        if (token >= first) {
            sum_terms<Config>(phase, terms[side]);
        }
        if (__syncthreads_and(ok ? 1 : 0) == 0) {
            return;
        }
    }
}

template <gather_config Config>
__global__ void __launch_bounds__(Config.threads, 7)
    combine_kernel(const __grid_constant__ combine_args<Config.num_ranks> args) {
    __shared__ row_terms<Config> terms[2];
    if (__syncthreads_or(exchange_failed(args.link, lane_op::combine) ? 1 : 0) != 0) {
        return;
    }
    auto& lane = args.link.control->lanes[args.link.lane];
    const u32 step = lane.step + 1;
    combine_phase phase;
    static_cast<gather_head&>(phase) = args;
    phase.ranks = args.ranks;
    if (static_cast<i32>(blockIdx.x) < args.senders) {
        const sum_order order = phase.order;
        phase.order = sum_order::per_rank;
        // The owners have read what this rank sent last, and the weights of this call's lines are here.
        bool ok = wait_all(args.link, lane.area_step[static_cast<i32>(lane_area::partials)], lane_op::none, false);
        if (ok && args.wait_weights != 0) {
            ok = wait_all(args.link, lane.step, lane_op::combine_weights, false);
        }
        if (ok) {
            send_sums<Config>(args, phase, terms, step);
        }
        phase.order = order;
    } else {
        sum_own_tokens<Config>(args, phase, terms, step);
    }
    leave_step(args.link, step, lane_op::combine,
               area_bit(lane_area::partials) | (args.wait_weights != 0 ? area_bit(lane_area::weights) : 0));
}

#endif

}  // namespace epjit::templates
