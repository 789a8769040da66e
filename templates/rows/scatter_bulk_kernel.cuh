// SPDX-License-Identifier: Apache-2.0
// Copies each token's row to the places its experts want, through shared memory with bulk copies (sm_90 and later).
// Rows pass through untouched; every row, stride and address is a multiple of 16 bytes.
//
// Cost model: reads T*row bytes once, writes T*D*row bytes (D rows a token), nothing else of weight. Launches: 1. SMs:
// any number; one block a SM fills shared memory with `stages` rows in flight. Each mover warp owns a ring of stages
// and never waits for another warp.
#pragma once

#include "base/device.cuh"
#include "rows/rows_layout.cuh"
#include "rows/scatter_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// One mover warp: its ring of stages in shared memory. A stage holds a row, and what travels beside it: `ScaleBytes`
/// of its scales, `NoteBytes` of what says where it goes. A stage is loaded, its row stored to every place it goes, and
/// loaded again when the stores have read it.
template <scatter_config Config, i32 Stages = Config.stages / scatter_movers(Config), i32 ScaleBytes = 0,
          i32 NoteBytes = 0>
class row_mover {
   public:
    static constexpr i32 stages = Stages;
    static constexpr i32 row_bytes = Config.hidden * element_bytes(Config.output);
    static constexpr i32 stage_bytes = row_bytes + ScaleBytes + NoteBytes;
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

    /// Starts the load of the next token's row into the stage that follows.
    template <class Args>
    __device__ __forceinline__ void load(const Args& args, i32 token) {
        load_rank_ = list_rank_of(args, token, load_rank_);
        const scatter_rank& from = args.ranks[load_rank_];
        const i32 source = list_row_of<Config.topk>(args, load_rank_, list_local_of(args, token, load_rank_));
        if (lane_idx() == 0) {
            start_load(load_stage_, static_cast<const u8*>(from.input) + static_cast<i64>(source) * from.input_stride,
                       nullptr, nullptr, 0);
        }
        loaded(1);
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
                                          bool read_soon = false) {
        const u8* row = rows_ + stage_ * stage_bytes;
        if (t.leads) {
            const scatter_rank& to = args.ranks[t.entry.rank];
            u8* place = static_cast<u8*>(to.output) + static_cast<i64>(t.entry.row) * to.output_stride;
            if (read_soon) {
                bulk_store_kept(place, row, row_bytes);
            } else {
                bulk_store(place, row, row_bytes);
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

/// Moves tokens `first`, `first + step`, ... in one warp, `stages - 1` loads ahead of the stores. The entries of a
/// token are read one round early. The first round has nothing to store yet.
template <scatter_config Config, class Args>
__device__ inline void move_rows(const Args& args, u8* rows, u64* barriers, i32 first, i32 step) {
    using mover_type = row_mover<Config>;
    mover_type mover(rows, barriers);
    mover.init(1);
    const i32 tokens = list_size(args);
    i32 to_load = first;
    i32 loading = 0;
    i32 rank = 0;
    token_entries current;
#pragma unroll 1
    for (i32 token = first - step; token < tokens; token += step) {
#pragma unroll 1
        for (; loading < mover_type::stages - 1 && to_load < tokens; ++loading, to_load += step) {
            bulk_wait_read<1>();  // the stage to be loaded was stored in the round before the last
            __syncwarp();
            mover.load(args, to_load);
        }
        token_entries ahead;
        if (token + step < tokens) {
            rank = list_rank_of(args, token + step, rank);
            ahead = read_entries<Config>(args, token + step, rank);
        }
        if (token >= first) {
            mover.wait();
            mover.store(args, current);
            --loading;
            write_metadata<Config>(args, current);
            if constexpr (Config.scales != group_scale::none) {
                copy_scales<Config>(args, current);
            }
        }
        current = ahead;
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
    if (list_failed(args)) {
        return;
    }
    if (warp < movers) {
        move_rows<Config>(args, memory + warp * row_mover<Config>::ring_bytes, barriers + warp * stages,
                          static_cast<i32>(blockIdx.x) * movers + warp, static_cast<i32>(gridDim.x) * movers);
    } else {
        fill_unused_rows<Config>(args, static_cast<i32>(blockIdx.x), static_cast<i32>(gridDim.x));
    }
}

#endif
#endif

}  // namespace epjit::templates
