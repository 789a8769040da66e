// SPDX-License-Identifier: Apache-2.0
// The blocks of a dispatch that send: a few warps move rows to the peers' windows, one tells the peers what is there.
// The tellings take a release each, of a microsecond or more: the movers never wait for one.
#pragma once

#include "exchange/dispatch_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The tokens that a warp sends: chunks of `size`, each taken by the warp that wants work next, so that all end at the
/// same time. The next chunk is on its way while one is worked on. Called by whole warps.
class chunk_taker {
   public:
    /// Tokens [first, last), the first of a chunk. `taken`: chunks that are no longer to be had.
    __device__ __forceinline__ chunk_taker(u32* taken, i32 size, i32 first, i32 last)
        : taken_(taken), size_(size), last_(last), first_chunk_(first / size), chunks_(ceil_div(last, size)) {
        fetch();
    }

    /// The next token, or -1: none is left. `chunk`: its number.
    __device__ __forceinline__ i32 next(i32& chunk) {
        if (token_ == end_) {
            chunk_ = first_chunk_ + __shfl_sync(full_warp, next_, 0);
            if (chunk_ >= chunks_) {
                return -1;
            }
            fetch();
            token_ = chunk_ * size_;
            end_ = min_of(token_ + size_, last_);
        }
        chunk = chunk_;
        return token_++;
    }

   private:
    __device__ __forceinline__ void fetch() {
        if (lane_idx() == 0) {
            next_ = static_cast<i32>(add_relaxed_gpu(taken_, 1));
        }
    }

    u32* taken_;
    i32 size_;
    i32 last_;
    i32 first_chunk_;
    i32 chunks_;
    i32 next_ = 0;
    i32 chunk_ = 0;
    i32 token_ = 0;
    i32 end_ = 0;
};

/// A token's rows as its rank sends them: one to each other rank, at the line's position there, in a window at the
/// token. Called by whole warps; lane k brings entry k and its position.
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
        t.entry.row = entry.rank == args.link.me ? -1 : args.list.window != 0 && position >= 0 ? token : position;
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
    __device__ __forceinline__ void take(const Args& args, const dispatch_phase<Config>& phase, const token_entries& t,
                                         i32 position) {
        const float* weights = phase.ranks[args.link.me].weights;
        to_ = nullptr;
        if (weights != nullptr && t.has_row() && phase.ranks[t.entry.rank].local_weights != nullptr) {
            to_ = phase.ranks[t.entry.rank].local_weights + static_cast<i64>(position) * Config.topk +
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

/// Sends the rows of one warp's chunks, loads ahead of stores.
template <scatter_config Config, class Args>
__device__ void send_rows(const Args& args, const dispatch_phase<Config>& phase, u8* rows, u64* barriers,
                          line_place* queue, chunk_taker& work, sent_list& list, u32 step) {
    using mover_type = dispatch_mover<Config, dispatch_send_movers(Config)>;
    // As many stages hold rows that stores still read as hold rows to come.
    constexpr i32 storing = mover_type::stages / 2;
    constexpr i32 most_loading = mover_type::stages - storing;
    constexpr i32 behind = max_of(6, mover_type::stages);  // rows whose stores may be under way
    static_assert(behind + 2 <= sent_list::most, "what has not arrived yet has its place in the list");
    const scatter_rank& from = phase.ranks[args.link.me];
    const i32 lane = static_cast<i32>(lane_idx());
    const bool scales = scales_move_along<Config>(phase);
    mover_type mover(rows, barriers);
    mover.init(33);
    weights_sender<Config> weights;
    sent_notes notes(list);
    i32 loaded = 0;
    i32 last_chunk = -1;
    i32 told = 0;
    bool more = true;
    i32 j = 0;
#pragma unroll 1
    for (;; ++j) {
#pragma unroll 1
        while (more && loaded < j + most_loading) {
            line_place place;
            place.n = work.next(place.rank);
            more = place.n >= 0;
            if (!more) {
                break;
            }
            bulk_wait_read<storing>();
            __syncwarp();
            if (lane == 0) {
                const row_source source(from, place.n, scales);
                queue[loaded % mover_type::stages] = place;
                mover.load_row(0, source.row, source.scales, nullptr, 0);
            }
            if (lane < Config.topk) {
                const i64 index = static_cast<i64>(place.n) * Config.topk + lane;
                u8* note = mover.note_to_load(0);
                copy_async<8>(note + lane * 8, args.entries + index);
                copy_async<4>(note + Config.topk * 8 + lane * 4, args.list.positions + index);
            }
            copy_async_arrive(mover.barrier_to_load(0));
            mover.loaded(1);
            ++loaded;
        }
        if (j == loaded) {
            break;
        }
        __syncwarp();
        mover.wait();
        plan_entry entry{-1, no_rank, 0};
        i32 position = -1;
        if (lane < Config.topk) {
            entry = reinterpret_cast<const plan_entry*>(mover.note())[lane];
            position = reinterpret_cast<const i32*>(mover.note() + Config.topk * 8)[lane];
        }
        const line_place place = queue[j % mover_type::stages];
        if (place.rank != last_chunk) {
            last_chunk = place.rank;
            if (lane == 0) {
                notes.begin(sent_list::all_peers, last_chunk);
            }
        }
        const token_entries t = sent_entries<Config>(args, place.n, entry, position);
        mover.store(phase, t, scales, true);
        weights.send();
        weights.take(args, phase, t, position);
        copy_other_scales<Config>(phase, t, scales);
        if (j + 1 - behind >= (told + 1) * args.chunk) {
            bulk_wait<behind>();
            __syncwarp();
            ++told;
            if (lane == 0) {
                notes.arrived(told);
            }
        }
    }
    weights.send();
    bulk_wait<0>();
    __syncwarp();
    if (lane == 0) {
        notes.end(args.link, args.flags, step);
    }
}

/// send_rows without bulk copies.
template <scatter_config Config, class Args>
__device__ __noinline__ void send_elements(const Args& args, const dispatch_phase<Config>& phase, chunk_taker& work,
                                           sent_list& list, u32 step) {
    const scatter_rank& own = phase.ranks[args.link.me];
    const i32 lane = static_cast<i32>(lane_idx());
    weights_sender<Config> weights;
    sent_notes notes(list);
    i32 chunk = -1;
    i32 last_chunk = -1;
#pragma unroll 1
    for (i32 token = work.next(chunk); token >= 0; token = work.next(chunk)) {
        __syncwarp();
        if (chunk != last_chunk && lane == 0) {
            notes.all_arrived();
            notes.begin(sent_list::all_peers, chunk);
        }
        last_chunk = chunk;
        const i64 index = static_cast<i64>(token) * Config.topk + lane;
        const bool used = lane < Config.topk;
        const i32 position = used ? args.list.positions[index] : -1;
        const token_entries t =
            sent_entries<Config>(args, token, used ? args.entries[index] : plan_entry{-1, no_rank, 0}, position);
        copy_elements<Config>(phase.ranks, t, row_source(own, t.source_row, false).row);
        weights.take(args, phase, t, position);
        weights.send();
        copy_other_scales<Config>(phase, t, false);
    }
    __syncwarp();
    if (lane == 0) {
        notes.end(args.link, args.flags, step);
    }
}

/// The whole part of a sending block.
template <scatter_config Config, class Args>
__device__ __forceinline__ void send_part(const Args& args, dispatch_phase<Config>& phase, u8* memory, u32 step) {
    constexpr i32 movers = dispatch_send_movers(Config);
    using mover_type = dispatch_mover<Config, movers>;
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    if (warp == movers) {
        tell_peers(args.link, args.flags, phase.sent, movers, step);
        return;
    }
    if (warp > movers) {
        return;
    }
    auto& lane = args.link.control->lanes[args.link.lane];
    bool free = true;
    for (i32 p = static_cast<i32>(lane_idx()); p < args.link.num_ranks; p += 32) {
        if (p != args.link.me) {
            free = wait_step(args.link, p, lane.area_step[static_cast<i32>(lane_area::rows)], lane_op::none) && free;
        }
    }
    if (!__all_sync(full_warp, free)) {
        if (lane_idx() == 0) {
            sent_notes(phase.sent[warp]).abandon();  // the exchange has failed
        }
        return;
    }
    chunk_taker work(&lane.taken, args.chunk, args.list.first_token, args.num_tokens);
    if (args.send_bytes == 16) {
        u64* barriers = reinterpret_cast<u64*>(memory + movers * mover_type::ring_bytes);
        line_place* queues = reinterpret_cast<line_place*>(barriers + movers * mover_type::stages);
        send_rows<Config>(args, phase, memory + warp * mover_type::ring_bytes, barriers + warp * mover_type::stages,
                          queues + warp * mover_type::stages, work, phase.sent[warp], step);
    } else {
        send_elements<Config>(args, phase, work, phase.sent[warp], step);
    }
}

#endif
#endif

}  // namespace epjit::templates
