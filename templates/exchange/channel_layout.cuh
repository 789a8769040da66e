// SPDX-License-Identifier: Apache-2.0
// What the ranks of an exchange share: the steps they count together, the words that carry them, and the record of a
// wait that ended badly. Shared by device code and the host.
#pragma once

#include "base/types.cuh"

namespace epjit::templates {

/// What a step of a lane does. Every step's word names it, so that two ranks that call different things find out.
enum class lane_op : i32 {
    none = 0,
    barrier = 1,
    plan_counts = 2,
    plan_lines = 3,
    dispatch = 4,
    combine_weights = 5,
    combine = 6,
    gradient_rows = 7,
    gradients = 8,
    plan_rows = 9,
    window_open = 10,  ///< of a dispatch into windows: this rank's may be written from now on
};

/// Memory of a lane that peers write. Its next writers wait until the last contents have been read everywhere.
/// Rows and partial sums share their memory, and so are one. Packets have two of each kind, used in turn by the parity
/// of the step.
enum class lane_area : i32 { rows = 0, partials = rows, weights = 1, scalars = 3, row_packets = 4, sum_packets = 6 };
inline constexpr i32 lane_areas = 8;

EPJIT_SHARED constexpr u32 area_bit(lane_area area) {
    return 1u << static_cast<i32>(area);
}
inline constexpr i32 max_lanes = 2;

/// A step of one rank: the number of steps it has taken on the lane, and what the last one was.
EPJIT_SHARED constexpr u64 step_word(u32 step, lane_op op) {
    return static_cast<u64>(step) << 32 | static_cast<u32>(op);
}

/// What a plan tells a dispatch that was launched before it has ended, with the step that it ends with: what is sent by
/// has been written. 0 before.
inline constexpr u64 plan_placed = u64{1} << 32;
EPJIT_SHARED constexpr u64 told_word(u32 step) {
    return plan_placed | step;
}

/// Device memory, one per exchange and rank. Limits live here and not in arguments: captured and eager launches share
/// them.
struct exchange_control {
    u32 failed;  ///< sticky: every later kernel of the exchange returns at once
    u32 reserved;
    u64 first_limit_ns;  ///< of the first steps of a lane
    u64 limit_ns;
    struct lane {
        u64 told;                   ///< told_word() of the running plan, or of the last one that told it
        u32 step;                   ///< steps taken; every rank counts the same ones
        u32 area_step[lane_areas];  ///< a rank that has taken this step has read the area
        u32 leaving;                ///< blocks of the running kernel that need the step no more; zero between kernels
        u32 gatherings;             ///< plans made from gathered rows; the last one's number is on its vectors
        u32 taken;                  ///< pieces of the running kernel's work that have been taken; zero between kernels
    } lanes[max_lanes];
};
static_assert(sizeof(exchange_control) == 24 + 2 * 56);

enum class failure_kind : u32 {
    none = 0,
    timeout = 1,   ///< a peer's step did not come
    mismatch = 2,  ///< a peer took another step
    peer = 3,      ///< a peer has failed and said so
};

/// Pinned host memory, written once.
struct failure_record {
    u32 set;  ///< written last
    failure_kind kind;
    i32 lane;
    i32 rank;  ///< who writes
    i32 peer;  ///< whom it waited for, or who failed
    lane_op op;
    lane_op seen_op;
    u32 expected;
    u32 seen;
    u32 reserved;
};
static_assert(sizeof(failure_record) == 40);

/// A rank's window starts with this, then lane by lane a word from every rank.
inline constexpr i32 window_poison_offset = 0;  ///< u64, non-zero: a peer has failed; its rank + 1
inline constexpr i32 window_words_offset = 256;

/// How a kernel takes part in its lane's steps. Pointers are this rank's.
struct rank_link {
    exchange_control* control;
    failure_record* record;
    u8* const* peers;  ///< [R] device memory: every rank's window as mapped here, null where there is none
    u64* words;        ///< [R] of the lane, in the own window
    u64* poison;       ///< in the own window
    i32 me;
    i32 num_ranks;
    i32 lane;
    i32 words_offset;  ///< of the lane's words in every window, bytes
};
static_assert(sizeof(rank_link) == 56);

/// Arguments of sync_kernel.
struct sync_args {
    rank_link link;
    lane_op op;
    i32 wait_area;  ///< first: until every rank has read this area's last contents; -1: no area
    i32 signal;     ///< take a step: everything before on the stream is visible to a peer that sees it
    i32 read_area;  ///< whoever has taken the step has read this area; -1: no area
    i32 wait;       ///< until every rank has taken the lane's last step
    i32 reserved;
};
static_assert(sizeof(sync_args) == 80);

/// Flags in a window that tell which chunks of rows have arrived: [R, stride], a row for every source.
struct chunk_flags {
    u32* own;
    i64 offset;  ///< in every window
    i32 stride;
    i32 reserved;
};
static_assert(sizeof(chunk_flags) == 24);

/// Weights of lines in every window, [R, lines, K]: the weight in the low half of a word, the step in the high one.
struct weight_area {
    u64* own;
    i64 offset;  ///< in every window
    i32 lines;   ///< of one source
    i32 reserved;
};
static_assert(sizeof(weight_area) == 24);

/// Compile-time shape of the exchange's helpers.
struct exchange_kernels_config {
    i32 num_ranks;  ///< ranks that the arguments hold
    i32 topk;
};

}  // namespace epjit::templates
