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
    __device__ __forceinline__ chunk_taker(u32* taken, i32 size, i32 tokens)
        : taken_(taken), size_(size), tokens_(tokens), chunks_(size == 1 ? tokens : ceil_div(tokens, size)) {
        fetch();
    }

    /// The next token, or -1: none is left. `chunk`: its number.
    __device__ __forceinline__ i32 next(i32& chunk) {
        if (token_ == end_) {
            chunk_ = __shfl_sync(full_warp, next_, 0);
            if (chunk_ >= chunks_) {
                return -1;
            }
            fetch();
            token_ = chunk_ * size_;
            end_ = min_of(token_ + size_, tokens_);
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
    i32 tokens_;
    i32 chunks_;
    i32 next_ = 0;
    i32 chunk_ = 0;
    i32 token_ = 0;
    i32 end_ = 0;
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

/// A mover's side of its list of chunks. Called by whole warps.
class chunk_notes {
   public:
    __device__ __forceinline__ explicit chunk_notes(sent_chunks& list) : list_(list) {}

    /// One more chunk is being sent.
    __device__ __forceinline__ void begin(i32 chunk) {
        while (begun_ - ld_acquire_block(&list_.told) >= sent_chunks::most) {
            sleep_ns(40);  // the telling warp waits for nobody
        }
        if (lane_idx() == 0) {
            list_.chunk[begun_ % sent_chunks::most] = chunk;
        }
        ++begun_;
    }
    /// The rows of the `count` first chunks are there: what all lanes have written.
    __device__ __forceinline__ void arrived(i32 count) {
        __syncwarp();
        if (lane_idx() == 0) {
            st_release_block(&list_.arrived, count);
        }
    }
    __device__ __forceinline__ void end() {
        arrived(begun_);
        if (lane_idx() == 0) {
            st_release_block(&list_.ended, 1);
        }
    }
    [[nodiscard]] __device__ __forceinline__ i32 begun() const { return begun_; }

   private:
    sent_chunks& list_;
    i32 begun_ = 0;
};

/// Sends the rows of one warp's chunks, loads ahead of stores.
template <scatter_config Config, class Args>
__device__ void send_rows(const Args& args, const dispatch_phase<Config>& phase, u8* rows, u64* barriers,
                          line_place* queue, chunk_taker& work, sent_chunks& list) {
    using mover_type = dispatch_mover<Config, dispatch_send_movers(Config)>;
    // As many stages hold rows that stores still read as hold rows to come.
    constexpr i32 storing = mover_type::stages / 2;
    constexpr i32 most_loading = mover_type::stages - storing;
    constexpr i32 behind = max_of(6, mover_type::stages);  // rows whose stores may be under way
    static_assert(behind + 2 <= sent_chunks::most, "chunks that have not arrived yet have their place in the list");
    const scatter_rank& from = phase.ranks[args.link.me];
    const i32 lane = static_cast<i32>(lane_idx());
    const bool scales = scales_move_along<Config>(phase);
    mover_type mover(rows, barriers);
    mover.init(33);
    weights_sender<Config> weights;
    chunk_notes notes(list);
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
            notes.begin(last_chunk);
        }
        const token_entries t = sent_entries<Config>(args, place.n, entry, position);
        mover.store(phase, t, scales);
        weights.send();
        weights.take(args, phase, t);
        copy_other_scales<Config>(phase, t, scales);
        if (j + 1 - behind >= (told + 1) * args.chunk) {
            bulk_wait<behind>();
            notes.arrived(++told);
        }
    }
    weights.send();
    bulk_wait<0>();
    notes.end();
}

/// send_rows without bulk copies.
template <scatter_config Config, class Args>
__device__ __noinline__ void send_elements(const Args& args, const dispatch_phase<Config>& phase, chunk_taker& work,
                                           sent_chunks& list) {
    const scatter_rank& own = phase.ranks[args.link.me];
    const i32 lane = static_cast<i32>(lane_idx());
    weights_sender<Config> weights;
    chunk_notes notes(list);
    i32 chunk = -1;
    i32 last_chunk = -1;
#pragma unroll 1
    for (i32 token = work.next(chunk); token >= 0; token = work.next(chunk)) {
        if (chunk != last_chunk) {
            notes.arrived(notes.begun());
            notes.begin(chunk);
            last_chunk = chunk;
        }
        const i64 index = static_cast<i64>(token) * Config.topk + lane;
        const bool used = lane < Config.topk;
        const token_entries t = sent_entries<Config>(args, token, used ? args.entries[index] : plan_entry{-1, no_rank, 0},
                                                     used ? args.list.positions[index] : -1);
        copy_elements<Config>(phase, t, row_source(own, t.source_row, false).row);
        weights.take(args, phase, t);
        weights.send();
        copy_other_scales<Config>(phase, t, false);
    }
    notes.end();
}

/// Raises the flags of the chunks of a block's movers as they arrive, one lane a mover: whoever sees a flag sees what
/// its mover had stored. One warp; ends when the movers have.
template <class Args>
__device__ void tell_peers(const Args& args, i32 movers, sent_chunks* lists, u32 step) {
    const i32 lane = static_cast<i32>(lane_idx());
    sent_chunks& list = lists[min_of(lane, movers - 1)];
    bool works = lane < movers;
    i32 told = 0;
#pragma unroll 1
    while (__any_sync(full_warp, works)) {
        const bool ended = works && ld_acquire_block(&list.ended) != 0;
        const i32 arrived = works ? ld_acquire_block(&list.arrived) : 0;
        if (__any_sync(full_warp, arrived > told)) {
            fence_sys();
#pragma unroll 1
            for (; told < arrived; ++told) {
                const i32 chunk = list.chunk[told % sent_chunks::most];
#pragma unroll 1
                for (i32 p = 0; p < args.link.num_ranks; ++p) {
                    if (p != args.link.me) {
                        st_relaxed_sys(flag_at(args.flags, args.link, p, chunk), step);
                    }
                }
            }
            if (works) {
                st_release_block(&list.told, told);
            }
        } else {
            sleep_ns(40);
        }
        works = works && !(ended && told == arrived);
    }
}

/// The whole part of a sending block.
template <scatter_config Config, class Args>
__device__ __forceinline__ void send_part(const Args& args, dispatch_phase<Config>& phase, u8* memory, u32 step) {
    constexpr i32 movers = dispatch_send_movers(Config);
    using mover_type = dispatch_mover<Config, movers>;
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    if (warp == movers) {
        tell_peers(args, movers, phase.sent, step);
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
        chunk_notes(phase.sent[warp]).end();  // the exchange has failed
        return;
    }
    chunk_taker work(&lane.taken, args.chunk, args.num_tokens);
    if (args.send_bytes == 16) {
        u64* barriers = reinterpret_cast<u64*>(memory + movers * mover_type::ring_bytes);
        line_place* queues = reinterpret_cast<line_place*>(barriers + movers * mover_type::stages);
        send_rows<Config>(args, phase, memory + warp * mover_type::ring_bytes, barriers + warp * mover_type::stages,
                          queues + warp * mover_type::stages, work, phase.sent[warp]);
    } else {
        send_elements<Config>(args, phase, work, phase.sent[warp]);
    }
}

#endif
#endif

}  // namespace epjit::templates
