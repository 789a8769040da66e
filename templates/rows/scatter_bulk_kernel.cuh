// SPDX-License-Identifier: Apache-2.0
// Copies each token's row to the places its experts want, through shared memory with bulk copies (sm_90 and later).
// Rows pass through untouched; every row, stride and address is a multiple of 16 bytes.
//
// Cost model: reads T*row bytes once, writes T*D*row bytes (D rows a token), nothing else of weight. Launches: 1. SMs:
// any number; one block a SM fills shared memory with `stages` rows in flight. Each mover warp owns a ring of stages
// and never waits for another warp. It refills the ring when most of it is free: memory that turns between reads and
// writes less often carries more.
#pragma once

#include "base/device.cuh"
#include "rows/rows_layout.cuh"
#include "rows/scatter_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// A row of the list's token `token`, or a part of one.
struct row_part {
    i32 token;
    i32 offset;
    i32 bytes;
};

/// One mover warp: its ring of stages in shared memory. A stage holds a row, and what travels beside it: `ScaleBytes`
/// of its scales, `NoteBytes` of what says where it goes. A stage is loaded, its row stored to every place it goes, and
/// loaded again when the stores have read it.
template <scatter_config Config, i32 Stages = Config.stages / scatter_movers(Config), i32 ScaleBytes = 0,
          i32 NoteBytes = 0>
class row_mover {
   public:
    static constexpr i32 stages = Stages;
    static constexpr i32 row_bytes = Config.hidden * element_bytes(Config.output);
    static constexpr i32 stage_bytes = bulk_stage_bytes(row_bytes + ScaleBytes + NoteBytes);
    static constexpr i32 ring_bytes = stages * stage_bytes;

    __device__ row_mover(u8* rows, u64* barriers) : rows_(rows), barriers_(barriers) {}

    /// Makes the ring's barriers, `arrivals` for each load; called by the warp.
    __device__ __forceinline__ void init(u32 arrivals) {
        if (lane_idx() == 0) {
#pragma unroll 1
            for (i32 s = 0; s < stages; ++s) {
                mbarrier_init(&barriers_[s], arrivals);
            }
            fence_barrier_init();
        }
        __syncwarp();
    }

    /// Starts the loads of the next rows or parts, `count` of them and 32 at most, by all lanes: lane n brings number
    /// n.
    template <class Args>
    __device__ __forceinline__ void load_some(const Args& args, const row_part& part, i32 count) {
        const i32 lane = static_cast<i32>(lane_idx());
        if (lane < count) {
            load_rank_ = list_rank_of(args, part.token, load_rank_);
            const scatter_rank& from = args.ranks[load_rank_];
            const i32 source = list_row_of<Config.topk>(args, load_rank_, list_local_of(args, part.token, load_rank_));
            const u8* row = static_cast<const u8*>(from.input) + static_cast<i64>(source) * from.input_stride;
            const i32 stage = after(load_stage_, lane);
            mbarrier_arrive_expect(&barriers_[stage], part.bytes);
            bulk_load(rows_ + stage * stage_bytes, row + part.offset, part.bytes, &barriers_[stage]);
        }
        loaded(count);
    }

    /// Starts the load of row number `turn` of the next ones, with its scales and its note or null.
    __device__ __forceinline__ void load_row(i32 turn, const u8* row, const u8* scales, const u8* note,
                                             i32 note_bytes) {
        start_load(after(load_stage_, turn), row, scales, note, note_bytes);
    }
    /// By all lanes: the loads of `count` rows have been started.
    __device__ __forceinline__ void loaded(i32 count) {
        load_stage_ = after(load_stage_, count);
    }

    /// Where the note of row number `turn` of the next ones to be loaded goes, and its barrier.
    __device__ __forceinline__ u8* note_to_load(i32 turn) {
        return rows_ + after(load_stage_, turn) * stage_bytes + row_bytes + ScaleBytes;
    }
    __device__ __forceinline__ u64* barrier_to_load(i32 turn) {
        return &barriers_[after(load_stage_, turn)];
    }

    /// Waits for the oldest stage.
    __device__ __forceinline__ void wait() {
        mbarrier_wait(&barriers_[stage_], parity_);
    }
    /// The note of the oldest stage.
    __device__ __forceinline__ const u8* note() const {
        return rows_ + stage_ * stage_bytes + row_bytes + ScaleBytes;
    }

    /// Starts the stores of the oldest stage's row to every place it goes, and of its scales where they were loaded.
    /// `read_soon`: it is read again before long.
    template <class Args>
    __device__ __forceinline__ void store(const Args& args, const token_entries& t, bool scales = false,
                                          bool read_soon = false, const row_part& part = {0, 0, row_bytes}) {
        const u8* row = rows_ + stage_ * stage_bytes;
        if (t.leads) {
            const scatter_rank& to = args.ranks[t.entry.rank];
            u8* place = static_cast<u8*>(to.output) + static_cast<i64>(t.entry.row) * to.output_stride + part.offset;
            if (read_soon) {
                bulk_store_kept(place, row, part.bytes);
            } else {
                bulk_store(place, row, part.bytes);
            }
            if (ScaleBytes != 0 && scales) {
                bulk_store(static_cast<u8*>(to.output_scales) + static_cast<i64>(t.entry.row) * to.output_scale_stride,
                           row + row_bytes, ScaleBytes);
            }
        }
        bulk_commit();
        ++stage_;
        if (stage_ == stages) {
            stage_ = 0;
            parity_ ^= 1;
        }
    }

   private:
    __device__ __forceinline__ static i32 after(i32 stage, i32 count) {
        return stage + count < stages ? stage + count : stage + count - stages;
    }

    __device__ __forceinline__ void start_load(i32 stage, const u8* row, const u8* scales, const u8* note,
                                               i32 note_bytes) {
        u8* to = rows_ + stage * stage_bytes;
        u64* barrier = &barriers_[stage];
        const bool with_scales = ScaleBytes != 0 && scales != nullptr;
        mbarrier_arrive_expect(barrier, row_bytes + (with_scales ? ScaleBytes : 0) + note_bytes);
        bulk_load(to, row, row_bytes, barrier);
        if (with_scales) {
            bulk_load(to + row_bytes, scales, ScaleBytes, barrier);
        }
        if (NoteBytes != 0 && note_bytes != 0) {
            bulk_load(to + row_bytes + ScaleBytes, note, note_bytes, barrier);
        }
    }

    u8* rows_;
    u64* barriers_;
    i32 stage_ = 0;
    i32 load_stage_ = 0;
    i32 load_rank_ = 0;
    u32 parity_ = 0;
};

/// The rows of a warp out of `step`: every `step`-th, and of the last that do not go round parts, so that all end
/// together. Warps count on through both.
template <i32 RowBytes>
class row_shares {
   public:
    static constexpr i32 part_bytes = max_of(2048, bulk_stage_bytes(ceil_div(RowBytes, 4)));
    static constexpr i32 parts = ceil_div(RowBytes, part_bytes);

    __device__ __forceinline__ row_shares(i32 tokens, i32 step) : whole_(tokens / step * step), tokens_(tokens) {}
    __device__ __forceinline__ i32 count() const { return whole_ + (tokens_ - whole_) * parts; }
    __device__ __forceinline__ i32 token(i32 n) const { return n < whole_ ? n : whole_ + (n - whole_) / parts; }
    __device__ __forceinline__ row_part part(i32 n) const {
        const i32 offset = n < whole_ ? 0 : (n - whole_) % parts * part_bytes;
        return {token(n), offset, n < whole_ ? RowBytes : min_of(part_bytes, RowBytes - offset)};
    }

   private:
    i32 whole_;
    i32 tokens_;
};

/// A token's entries on their way. Those of the plan are kept as they are loaded: whoever looks at them waits for them.
/// Called by whole warps.
template <scatter_config Config>
class entries_ahead {
   public:
    template <class Args>
    __device__ __forceinline__ void load(const Args& args, i32 token, i32 rank) {
        plain_ = args.list.lines == nullptr && args.list.numbering == row_numbering::plan;
        if (!plain_) {
            t_ = read_places<Config>(args, token, rank);
            return;
        }
        t_.source_rank = rank;
        t_.source_token = list_local_of(args, token, rank);
        t_.source_row = t_.source_token;
        if (static_cast<i32>(lane_idx()) < Config.topk) {
            entry_ = reinterpret_cast<const u64*>(args.entries)[static_cast<i64>(token) * Config.topk + lane_idx()];
        }
    }
    template <class Args>
    __device__ __forceinline__ token_entries take(const Args& args) {
        if (plain_) {
            if (static_cast<i32>(lane_idx()) < Config.topk) {
                t_.entry = __builtin_bit_cast(plan_entry, entry_);
            }
            find_leaders(args, t_);
        }
        return t_;
    }
    /// What is written beside the row but not needed to store it. `t`: as taken.
    template <class Args>
    __device__ __forceinline__ void load_rest(const Args& args, i32 token, token_entries& t) const {
        t.weight = read_weight<Config>(args, token, t.source_rank, t);
        if (plain_ && args.layout == row_layout::flat && static_cast<i32>(lane_idx()) < Config.topk) {
            t.slot = args.entry_slots[static_cast<i64>(token) * Config.topk + lane_idx()];
        }
    }

   private:
    token_entries t_;
    u64 entry_ = 0;
    bool plain_ = false;
};

/// Moves tokens `first`, `first + step`, ... in one warp, loads far ahead of stores. Nothing is waited for where it is
/// asked for: the entries of a token are read one round before its row is stored, its weights beside that, and what
/// travels beside the row is written a round later.
template <scatter_config Config, class Args>
__device__ inline void move_rows(const Args& args, u8* rows, u64* barriers, i32 first, i32 step) {
    using mover_type = row_mover<Config>;
    constexpr i32 most_loading = mover_type::stages - 1;
    constexpr i32 fewest_loading = most_loading / 4;
    mover_type mover(rows, barriers);
    mover.init(1);
    const row_shares<mover_type::row_bytes> shares(list_size(args), step);
    const i32 end = shares.count();
    const bool metadata = wants_metadata<Config>(args);
    i32 to_load = first;
    i32 loading = 0;
    i32 rank = 0;
    entries_ahead<Config> ahead;
    token_entries stored;
#pragma unroll 1
    for (i32 n = first - step; n < end + step; n += step) {
        const bool stores = n >= first && n < end;
        token_entries current;
        if (stores) {
            current = ahead.take(args);
        }
        if (n + step < end) {
            rank = list_rank_of(args, shares.token(n + step), rank);
            ahead.load(args, shares.token(n + step), rank);
        }
        if (loading <= fewest_loading && to_load < end) {
            bulk_wait_read<1>();  // the stages to be loaded were stored in the round before the last or earlier
            __syncwarp();
            const i32 count = min_of(min_of(most_loading - loading, 32), ceil_div(end - to_load, step));
            mover.load_some(args, shares.part(min_of(to_load + static_cast<i32>(lane_idx()) * step, end - 1)), count);
            loading += count;
            to_load += count * step;
        }
        if (stores) {
            mover.wait();
            mover.store(args, current, false, false, shares.part(n));
            --loading;
            if (metadata) {
                ahead.load_rest(args, shares.token(n), current);
            }
        }
        if (n - step >= first) {
            if (metadata) {
                write_metadata<Config>(args, stored);
            }
            if constexpr (Config.scales != group_scale::none) {
                copy_scales<Config>(args, stored);
            }
        }
        stored = current;
    }
    bulk_wait<0>();
}

template <scatter_config Config>
__global__ void __launch_bounds__(scatter_bulk_threads(Config), 1)
    scatter_bulk_kernel(const __grid_constant__ scatter_args<Config.num_ranks> args) {
    static_assert(Config.input == Config.output, "bulk copies do not convert");
    static_assert(row_mover<Config>::row_bytes % 16 == 0, "bulk copies move multiples of 16 bytes");
    constexpr i32 movers = scatter_movers(Config);
    constexpr i32 stages = row_mover<Config>::stages;
    static_assert(stages >= 2, "a ring needs a row to load while another is stored");
    extern __shared__ __align__(128) u8 memory[];
    u64* barriers = reinterpret_cast<u64*>(memory + movers * row_mover<Config>::ring_bytes);
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    const i32 block = static_cast<i32>(blockIdx.x);
    const i32 blocks = static_cast<i32>(gridDim.x);
    if (list_failed(args)) {
        return;
    }
    if (warp < movers) {
        move_rows<Config>(args, memory + warp * row_mover<Config>::ring_bytes, barriers + warp * stages,
                          warp * blocks + block, blocks * movers);
    } else {
        fill_unused_rows<Config>(args, block, blocks);
    }
}

#endif
#endif

}  // namespace epjit::templates
