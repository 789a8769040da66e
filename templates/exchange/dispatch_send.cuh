// SPDX-License-Identifier: Apache-2.0
// The blocks of a dispatch that send: a few warps move rows to the peers' windows, one tells the peers what is there.
// The tellings take a release each, of a microsecond or more: the movers never wait for one.
#pragma once

#include "exchange/dispatch_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// Chunks of tokens that one warp sends: every `warps`-th, from `warp` on. Token number j of the warp.
struct chunk_walk {
    i32 chunk;  ///< tokens of a chunk
    i32 warp;
    i32 warps;

    __device__ __forceinline__ i32 chunk_of(i32 j) const { return warp + (chunk == 1 ? j : j / chunk) * warps; }
    __device__ __forceinline__ i32 token_of(i32 j) const {
        return chunk == 1 ? warp + j * warps : chunk_of(j) * chunk + j % chunk;
    }
};

/// A token's rows as its rank sends them: one to each other rank, at the line's position there. Called by whole warps;
/// lane k brings entry k and its position.
template <scatter_config Config, class Args>
__device__ __forceinline__ token_entries sent_entries(const Args& args, i32 token, const plan_entry& entry,
                                                      i32 position) {
    token_entries t;
    const i32 lane = static_cast<i32>(lane_idx());
    t.source_rank = args.link.me;
    t.source_token = token;
    t.source_row = token;
    if (lane < Config.topk) {
        t.entry = entry;
        t.entry.row = entry.rank == args.link.me ? -1 : position;
    }
    const u32 before = __shfl_up_sync(full_warp, static_cast<u32>(t.entry.rank), 1);
    t.leads = t.has_row() && (lane == 0 || before != t.entry.rank);
    return t;
}

/// Weights of a line on their way, in the order of its entries, to where its rank reads them: loaded with one row and
/// stored with the next, so that nobody waits for the load.
template <scatter_config Config>
class weights_sender {
   public:
    template <class Args>
    __device__ __forceinline__ void take(const Args& args, const dispatch_phase<Config>& phase, const token_entries& t) {
        const float* weights = phase.ranks[args.link.me].weights;
        to_ = nullptr;
        if (weights != nullptr && t.has_row() && phase.ranks[t.entry.rank].local_weights != nullptr) {
            to_ = phase.ranks[t.entry.rank].local_weights + static_cast<i64>(t.entry.row) * Config.topk +
                  static_cast<i32>(lane_idx());
            weight_ = weights[static_cast<i64>(t.source_token) * args.own_weight_columns + t.entry.column];
        }
    }
    __device__ __forceinline__ void send() {
        if (to_ != nullptr) {
            *to_ = weight_;
        }
        to_ = nullptr;
    }

   private:
    float* to_ = nullptr;
    float weight_ = 0.0f;
};

/// Sends the rows of one warp's chunks, loads ahead of stores. `sent` counts the chunks whose rows have arrived.
template <scatter_config Config, class Args>
__device__ void send_rows(const Args& args, const dispatch_phase<Config>& phase, u8* rows, u64* barriers,
                          const chunk_walk& walk, i32* sent) {
    using mover_type = dispatch_mover<Config, dispatch_send_movers(Config)>;
    // As many stages hold rows that stores still read as hold rows to come.
    constexpr i32 storing = mover_type::stages / 2;
    constexpr i32 most_loading = mover_type::stages - storing;
    constexpr i32 behind = max_of(6, mover_type::stages);  // rows whose stores may be under way
    const scatter_rank& from = phase.ranks[args.link.me];
    const i32 lane = static_cast<i32>(lane_idx());
    const bool scales = scales_move_along<Config>(phase);
    mover_type mover(rows, barriers);
    mover.init(33);
    weights_sender<Config> weights;
    i32 to_load = 0;
    i32 told = 0;
    i32 j = 0;
#pragma unroll 1
    for (; walk.token_of(j) < args.num_tokens; ++j) {
        const i32 token_to_load = walk.token_of(to_load + lane);
        const i32 there = __popc(
            __ballot_sync(full_warp, lane < j + most_loading - to_load && token_to_load < args.num_tokens));
        if (there != 0) {
            bulk_wait_read<storing>();
            __syncwarp();
            if (lane < there) {
                const row_source source(from, token_to_load, scales);
                mover.load_row(lane, source.row, source.scales, nullptr, 0);
            }
#pragma unroll 1
            for (i32 i = 0; i < there; ++i) {
                if (lane < Config.topk) {
                    const i64 index = static_cast<i64>(walk.token_of(to_load + i)) * Config.topk + lane;
                    u8* note = mover.note_to_load(i);
                    copy_async<8>(note + lane * 8, args.entries + index);
                    copy_async<4>(note + Config.topk * 8 + lane * 4, args.list.positions + index);
                }
                copy_async_arrive(mover.barrier_to_load(i));
            }
            mover.loaded(there);
            to_load += there;
        }
        mover.wait();
        plan_entry entry{-1, no_rank, 0};
        i32 position = -1;
        if (lane < Config.topk) {
            entry = reinterpret_cast<const plan_entry*>(mover.note())[lane];
            position = reinterpret_cast<const i32*>(mover.note() + Config.topk * 8)[lane];
        }
        const token_entries t = sent_entries<Config>(args, walk.token_of(j), entry, position);
        mover.store(phase, t, scales);
        weights.send();
        weights.take(args, phase, t);
        copy_other_scales<Config>(phase, t, scales);
        if (j + 1 - behind >= (told + 1) * walk.chunk) {
            bulk_wait<behind>();
            __syncwarp();
            ++told;
            if (lane == 0) {
                st_release_block(sent, told);
            }
        }
    }
    weights.send();
    bulk_wait<0>();
    __syncwarp();
    if (lane == 0) {
        st_release_block(sent, (j + walk.chunk - 1) / walk.chunk);
    }
}

/// send_rows without bulk copies.
template <scatter_config Config, class Args>
__device__ __noinline__ void send_elements(const Args& args, const dispatch_phase<Config>& phase, const chunk_walk& walk,
                                           i32* sent) {
    const scatter_rank& own = phase.ranks[args.link.me];
    const i32 lane = static_cast<i32>(lane_idx());
    weights_sender<Config> weights;
    i32 j = 0;
#pragma unroll 1
    for (; walk.token_of(j) < args.num_tokens; ++j) {
        const i64 index = static_cast<i64>(walk.token_of(j)) * Config.topk + lane;
        const bool used = lane < Config.topk;
        const token_entries t =
            sent_entries<Config>(args, walk.token_of(j), used ? args.entries[index] : plan_entry{-1, no_rank, 0},
                                 used ? args.list.positions[index] : -1);
        copy_elements<Config>(phase, t, row_source(own, t.source_row, false).row);
        weights.take(args, phase, t);
        weights.send();
        copy_other_scales<Config>(phase, t, false);
        __syncwarp();
        if (lane_idx() == 0) {
            st_release_block(sent, (j + 1) / walk.chunk);
        }
    }
    __syncwarp();
    if (lane_idx() == 0) {
        st_release_block(sent, (j + walk.chunk - 1) / walk.chunk);
    }
}

/// Raises the flags of the chunks of a block's movers as they are counted in `sent`, one lane a mover: whoever sees a
/// flag sees what its mover had stored. One warp; ends with the movers' work. A count below 0: the mover has given up.
template <class Args>
__device__ void tell_peers(const Args& args, const chunk_walk& first, i32 movers, const i32* sent, u32 step) {
    const i32 lane = static_cast<i32>(lane_idx());
    const chunk_walk walk{first.chunk, first.warp + lane, first.warps};
    const i32 all = ceil_div(args.num_tokens, walk.chunk);
    i32 left = lane < movers && all > walk.warp ? ceil_div(all - walk.warp, walk.warps) : 0;
    i32 told = 0;
#pragma unroll 1
    while (__any_sync(full_warp, left > 0)) {
        const i32 done = left > 0 ? ld_acquire_block(sent + lane) : 0;
        if (done < 0) {
            left = 0;
        }
        if (!__any_sync(full_warp, left > 0 && done > told)) {
            sleep_ns(40);
            continue;
        }
        fence_sys();
#pragma unroll 1
        for (; left > 0 && told < done; ++told, --left) {
            const i32 chunk = walk.chunk_of(told * walk.chunk);
#pragma unroll 1
            for (i32 p = 0; p < args.link.num_ranks; ++p) {
                if (p != args.link.me) {
                    st_relaxed_sys(flag_at(args.flags, args.link, p, chunk), step);
                }
            }
        }
    }
}

/// The whole part of a sending block.
template <scatter_config Config, class Args>
__device__ __forceinline__ void send_part(const Args& args, dispatch_phase<Config>& phase, u8* memory, u32 step) {
    constexpr i32 movers = dispatch_send_movers(Config);
    using mover_type = dispatch_mover<Config, movers>;
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    const i32 first = static_cast<i32>(blockIdx.x) * movers;
    const i32 warps = args.senders * movers;
    i32* sent = phase.sent;
    if (warp == movers) {
        tell_peers(args, chunk_walk{args.chunk, first, warps}, movers, sent, step);
        return;
    }
    if (warp > movers) {
        return;
    }
    const auto& lane = args.link.control->lanes[args.link.lane];
    bool free = true;
    for (i32 p = static_cast<i32>(lane_idx()); p < args.link.num_ranks; p += 32) {
        if (p != args.link.me) {
            free = wait_step(args.link, p, lane.area_step[static_cast<i32>(lane_area::rows)], lane_op::none) && free;
        }
    }
    const chunk_walk walk{args.chunk, first + warp, warps};
    if (!__all_sync(full_warp, free)) {
        if (lane_idx() == 0) {
            st_release_block(sent + warp, -1);  // the exchange has failed
        }
    } else if (args.send_bytes == 16) {
        u64* barriers = reinterpret_cast<u64*>(memory + movers * mover_type::ring_bytes) + warp * mover_type::stages;
        send_rows<Config>(args, phase, memory + warp * mover_type::ring_bytes, barriers, walk, sent + warp);
    } else {
        send_elements<Config>(args, phase, walk, sent + warp);
    }
}

#endif
#endif

}  // namespace epjit::templates
