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
#include "exchange/line_terms.cuh"
#include "exchange/window_lines.cuh"
#include "rows/gather_common.cuh"
#include "rows/gather_kernel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

struct combine_phase : gather_head {
    const gather_rank* ranks;
};

template <gather_config Config>
__device__ __forceinline__ void sum_terms(const combine_phase& phase, const row_terms<Config>& terms) {
    constexpr i32 widest = row_packet_bytes(static_cast<i64>(Config.hidden) * element_bytes(Config.type));
    if (phase.vector_bytes >= widest) {
        sum_row<Config, widest, min_of(Config.topk, 4)>(terms, phase.order);
    } else {
        sum_row<Config, element_bytes(Config.type), 1>(terms, phase.order);
    }
}

/// Sums on their way to the peers: in place where memory is stored to, else from two rows of shared memory by bulk
/// copies, whose lines are told of when the copy is done. One thread sends and tells.
template <gather_config Config>
class sum_sender {
   public:
    static constexpr i32 row_bytes = Config.hidden * element_bytes(Config.type);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    static constexpr bool bulk = false;
#else
    static constexpr bool bulk = combine_shared_bytes(Config) != 0;
#endif

    /// Where the sum of a line of `owner` is made.
    __device__ static __forceinline__ u8* place(const gather_rank& owner, i32 line, u8* rows, i32 side) {
        return bulk ? rows + side * row_bytes : there(owner, line);
    }

    /// The sum is made, all threads have met since.
    template <class Args>
    __device__ __forceinline__ void send(const Args& args, u8* rows, i32 side, i32 owner, i32 line, u32 step) {
        if constexpr (bulk) {
            bulk_store(there(args.ranks[owner], line), rows + side * row_bytes, row_bytes);
            bulk_commit();
            owner_ = owner;
            line_ = line;
        } else {
            raise_flag(args.flags, args.link, owner, line, step);
        }
    }

    /// Tells the owner of the last line, once it is there.
    template <class Args>
    __device__ __forceinline__ void tell(const Args& args, u32 step) {
        if constexpr (bulk) {
            if (line_ >= 0) {
                bulk_wait<0>();
                raise_flag(args.flags, args.link, owner_, line_, step);
                line_ = -1;
            }
        }
    }

   private:
    __device__ static __forceinline__ u8* there(const gather_rank& owner, i32 line) {
        return static_cast<u8*>(owner.output) + static_cast<i64>(line) * owner.output_stride;
    }

    i32 owner_ = 0;
    i32 line_ = -1;
};

/// Lines of the peers, every `step`-th from `first` on, in the order in which they are summed: every rank starts with
/// the rank after it, so that no link is wanted by all at once.
struct line_walk {
    i32 source = 0;
    i32 line = 0;  ///< of those of the source that are listed

    __device__ __forceinline__ line_walk(const combine_phase& phase, i32 first) : line(first) { turn(phase); }
    /// False: no line is left.
    __device__ __forceinline__ bool has_line(const combine_phase& phase) {
        while (distance_ < phase.list.num_ranks) {
            const i32 lines = lines_of(phase, source);
            if (line < lines) {
                return true;
            }
            line -= lines;
            ++distance_;
            turn(phase);
        }
        return false;
    }

   private:
    __device__ __forceinline__ void turn(const combine_phase& phase) {
        source = phase.list.me + distance_;
        source -= source >= phase.list.num_ranks ? phase.list.num_ranks : 0;
    }
    i32 distance_ = 1;
};

/// What the two parts of a block share: the terms of the sum that is made and of the one that is being resolved. A
/// count below 0 ends the block's work.
template <gather_config Config>
struct sums_in_turn {
    row_terms<Config> terms[2];

    /// Called by one lane.
    __device__ __forceinline__ void end(i32 side) { terms[side].count = -1; }
};

/// The warps that sum: what the last warp has resolved, side by side with it.
template <gather_config Config>
__device__ inline void make_sums(const combine_phase& phase, const sums_in_turn<Config>& work) {
#pragma unroll 1
    for (i32 side = 0;; side ^= 1) {
        meet_block(combine_threads(Config));
        if (work.terms[side].count < 0) {
            return;
        }
        sum_terms<Config>(phase, work.terms[side]);
        if constexpr (sum_sender<Config>::bulk) {
            fence_proxy_async();  // stored by all threads, to be read by the copy of what is sent
        }
    }
}

/// The last warp of a block that sends: resolves every `args.senders`-th of the peers' lines, sends each sum when it is
/// made, and raises its flag at the owner.
template <gather_config Config, class Args>
__device__ inline void feed_lines(const Args& args, const combine_phase& phase, sums_in_turn<Config>& work, u8* rows,
                                  u32 step) {
    const gather_rank& own = phase.ranks[args.link.me];
    const bool leads = lane_idx() == 0;
    sum_sender<Config> sender;
    line_walk next(phase, static_cast<i32>(blockIdx.x));
    i32 summed = -1;  // its place
    i32 summed_source = 0;
#pragma unroll 1
    for (i32 side = 0;; side ^= 1) {
        bool more = next.has_line(phase);
        i32 place = 0;
        if (more) {
            bool ok = true;
            const i32 position = line_position(phase, next.source, next.line);
            place = place_of_line<Config.topk>(phase, next.source, position);
            resolve_line<Config>(args, args.line_weights, phase, own, next.source, position, step, work.terms[side],
                                 ok);
            more = __all_sync(full_warp, ok);
        }
        if (leads) {
            if (more) {
                work.terms[side].output = sum_sender<Config>::place(phase.ranks[next.source], place, rows, side);
            } else {
                work.end(side);
            }
            sender.tell(args, step);
        }
        // The sum before is made, this one begins.
        meet_block(combine_threads(Config));
        if (leads && summed >= 0) {
            sender.send(args, rows, side ^ 1, summed_source, summed, step);
        }
        if (!more) {
            break;
        }
        summed = place;
        summed_source = next.source;
        next.line += args.senders;
    }
    if (leads) {
        sender.tell(args, step);
    }
}

/// The last warp of a block that finishes: resolves every `blocks`-th of this rank's tokens and waits for what is
/// missing of it.
template <gather_config Config, class Args>
__device__ inline void feed_tokens(const Args& args, const combine_phase& phase, sums_in_turn<Config>& work, u32 step) {
    const i32 blocks = static_cast<i32>(gridDim.x) - args.senders;
    const gather_rank& own = phase.ranks[args.link.me];
    i32 token = phase.list.first_token + static_cast<i32>(blockIdx.x) - args.senders;
#pragma unroll 1
    for (i32 side = 0;; side ^= 1, token += blocks) {
        bool more = token < args.num_tokens;
        if (more) {
            awaited_sum awaited;
            resolve_token<Config>(
                args, phase, own, token, work.terms[side], awaited, [&phase](i32 source, i32 position) {
                    const gather_rank& holder = phase.ranks[source];
                    return static_cast<const u8*>(holder.rows) + static_cast<i64>(position) * holder.row_stride;
                });
            more = __all_sync(full_warp, awaited.source < 0 || wait_flag(args.flags, args.link, awaited.source,
                                                                         awaited.position, step, lane_op::combine));
        }
        if (lane_idx() == 0) {
            if (more) {
                work.terms[side].output = static_cast<u8*>(own.output) + static_cast<i64>(token) * own.output_stride;
            } else {
                work.end(side);
            }
        }
        meet_block(combine_threads(Config));
        if (!more) {
            return;
        }
    }
}

template <gather_config Config>
__global__ void __launch_bounds__(combine_threads(Config), combine_blocks(Config))
    combine_kernel(const __grid_constant__ combine_args<Config.num_ranks> args) {
    __shared__ sums_in_turn<Config> work;
    __shared__ i32 window[window_numbers(Config.num_ranks)];
    extern __shared__ __align__(128) u8 rows[];
    wait_for_kernel_before();
    if (__syncthreads_or(exchange_failed(args.link, lane_op::combine) ? 1 : 0) != 0) {
        return;
    }
    auto& lane = args.link.control->lanes[args.link.lane];
    const u32 step = lane.step + 1;
    combine_phase phase;
    static_cast<gather_head&>(phase) = args;
    phase.ranks = args.ranks;
    const i32 block = static_cast<i32>(blockIdx.x);
    const bool sends = block < args.senders;
    phase.order = sends ? sum_order::per_rank : phase.order;
    if (sends && args.list.window != 0) {
        find_window_lines<Config.topk>(args, window);
        use_window_lines(phase.list, window);
    }
    bool ok = true;
    if (block < args.weight_senders) {
        ok = wait_all(args.link, lane.area_step[static_cast<i32>(lane_area::weights)], lane_op::none, false);
        if (ok) {
            send_line_weights<Config.topk>(args, args.line_weights, phase.ranks[args.link.me], step,
                                           block * combine_threads(Config) + static_cast<i32>(threadIdx.x),
                                           args.weight_senders * combine_threads(Config));
        }
    }
    if (ok && sends) {
        // The owners have read what this rank sent last.
        ok = wait_all(args.link, lane.area_step[static_cast<i32>(lane_area::partials)], lane_op::none, false);
    }
    if (ok) {
        if (static_cast<i32>(threadIdx.x) < Config.threads) {
            make_sums<Config>(phase, work);
        } else if (sends) {
            feed_lines<Config>(args, phase, work, rows, step);
        } else {
            feed_tokens<Config>(args, phase, work, step);
        }
    }
    leave_step(args.link, step, lane_op::combine,
               area_bit(lane_area::partials) | (args.weighted != 0 ? area_bit(lane_area::weights) : 0));
}

#endif

}  // namespace epjit::templates
