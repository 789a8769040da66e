// SPDX-License-Identifier: Apache-2.0
// The shared memory of a team of combine_kernel: its ring of rows, what is said of each, its sums on their way out.
#pragma once

#include "base/device.cuh"
#include "exchange/dispatch_layout.cuh"
#include "rows/gather_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// What a stage means to the sum.
inline constexpr u32 ends_rank = 1;  ///< the partial sum of a rank, after this row
inline constexpr u32 ends_host = 2;  ///< and of a host
inline constexpr u32 ends_sum = 4;
inline constexpr u32 has_no_row = 8;      ///< of a sum of nothing
inline constexpr u32 stays_outside = 16;  ///< the row is at `row`, no copy may touch it
inline constexpr u32 ends_work = 32;
inline constexpr u32 is_spent = 64;  ///< the row at `row` is written before it is read again

/// What is beside the row of a stage.
struct alignas(16) ring_term {
    float weight;
    u32 marks;
    i32 owner;  ///< rank of the token
    i32 item;   ///< row of the owner's output
    const u8* row;
    u64 reserved;
};
static_assert(sizeof(ring_term) + 16 == combine_stage_extra);

/// Where a sum goes. An owner below 0 ends the work.
struct alignas(16) sum_place {
    i32 owner;
    i32 item;
};
static_assert(sizeof(sum_place) + 16 == combine_sum_extra);

/// Shared memory of a team. A stage goes round: `empty` (all warps that sum have arrived), loaded, `full` (announced
/// by the feeder, its bytes there); so does a sum on its way out.
template <gather_config Config>
struct combine_team {
    static constexpr combine_team_shape shape = combine_team_of(Config);
    static constexpr i32 stages = shape.stages;
    static constexpr i32 row_bytes = shape.row_bytes;
    static constexpr i32 sum_warps = shape.summers / 32;
    static_assert(row_bytes % 16 == 0 && stages >= 2, "bulk copies move multiples of 16 bytes");
    static_assert(shape.summers % 32 == 0 && Config.teams >= 1);

    u8* rows;  ///< the stages', then those of the sums
    ring_term* terms;
    u64* full;
    u64* empty;
    u64* sum_full;
    u64* sum_empty;
    sum_place* places;

    __device__ __forceinline__ combine_team(u8* memory, i32 team) {
        rows = memory + team * combine_team_bytes(Config);
        terms = reinterpret_cast<ring_term*>(rows + (stages + shape.sum_rows) * row_bytes);
        places = reinterpret_cast<sum_place*>(terms + stages);
        full = reinterpret_cast<u64*>(places + shape.sum_rows);
        empty = full + stages;
        sum_full = empty + stages;
        sum_empty = sum_full + shape.sum_rows;
    }

    __device__ __forceinline__ u8* sum_row(i32 side) const { return rows + (stages + side) * row_bytes; }

    /// Called by one thread.
    __device__ __forceinline__ void init() const {
#pragma unroll 1
        for (i32 s = 0; s < stages; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], sum_warps);
        }
#pragma unroll 1
        for (i32 s = 0; s < shape.sum_rows; ++s) {
            mbarrier_init(&sum_full[s], sum_warps);
            mbarrier_init(&sum_empty[s], 1);
        }
        fence_barrier_init();
    }
};

/// A lane's term of the sum that is fed.
struct feeder_term {
    bool used;
    bool waits;  ///< for a peer's sum
    const u8* row;
    float weight;
    term_place at;
};

#endif
#endif

}  // namespace epjit::templates
