// SPDX-License-Identifier: Apache-2.0
// What a plan is in memory, and the arguments of the kernel that makes it. Shared by device code and the host.
#pragma once

#include "base/types.cuh"
#include "exchange/channel_layout.cuh"

namespace epjit::templates {

/// Compile-time shape of a plan kernel.
struct plan_config {
    i32 num_experts;  ///< E, logical experts: 1 to max_experts
    i32 num_slots;    ///< S, expert slots over all ranks
    i32 num_ranks;    ///< R
    i32 topk;         ///< K: 1 to max_topk
    bool sparse;      ///< routing is a [T,E] u8 map instead of [T,K] ids
    bool exchange;    ///< one real rank's tokens, counts from the others; else every rank's tokens in one launch
    i32 threads;      ///< per block, a multiple of 32
};

/// One (token, chosen expert) pair. A token has K of them in ascending slot order; unused ones come last with
/// `rank == no_rank`. `row` is the place in the destination rank's output, -1 when over capacity. On the flat layout
/// the entries of a token that share a rank share a row.
struct plan_entry {
    i32 row;
    u16 rank;
    u16 column;  ///< where weight and gradient lie in the caller's row: k for dense ids, the expert for a sparse map
};
static_assert(sizeof(plan_entry) == 8 && alignof(plan_entry) == 4);

inline constexpr u16 no_rank = 0xffff;
inline constexpr u16 no_slot = 0xffff;

/// On all that a plan tells a dispatch of packets before it has ended: the plan and its step, so that nothing that was
/// told earlier in the same memory has it. Never 0.
EPJIT_SHARED constexpr u32 early_tag(u32 step, u32 sequence) {
    return 2 * (step + sequence * 0x9e3779b1u) + 1;
}
EPJIT_SHARED constexpr u64 early_word(u32 value, u32 tag) {
    return static_cast<u64>(tag) << 32 | value;
}
EPJIT_SHARED constexpr u64 early_entry(u16 rank, u16 column, u32 tag) {
    return early_word(static_cast<u32>(column) << 16 | rank, tag);
}

/// Where a row lies: of this rank's tokens an entry, of a source's lines an entry that is this rank's.
struct early_place {
    i32 row;     ///< -1 when dropped or not for this rank
    u16 rank;    ///< no_rank where there is no entry
    u16 slot;    ///< of a line the local one
    i32 source;  ///< of an own entry its column, of a line its token
    u32 tag;
};
static_assert(sizeof(early_place) == 16);

/// Device memory for what is told early, zero before the first time: each piece by itself, in one access.
struct early_plan {
    u64* state;    ///< [1+R] early_word(): nothing, when the plan has begun; the lines that come from each source
    u64* entries;  ///< [tokens,K] early_entry() of this rank's tokens: told before the other ranks' ids have come
    early_place* places;  ///< [tokens,K] of this rank's tokens
    early_place* lines;   ///< [R, tokens, K]
    i32 tokens;           ///< 0: nothing is told
    i32 reserved;
};
static_assert(sizeof(early_plan) == 40);

/// Rank whose tokens hold global token `token`, searched upwards from `rank`; `args` has a per-rank table.
template <class Args>
EPJIT_SHARED i32 source_rank_of(const Args& args, i32 token, i32 rank) {
    while (token >= args.ranks[rank].first_token + args.ranks[rank].num_tokens) {
        ++rank;
    }
    return rank;
}

/// Lanes that share a token: the next power of two of K.
EPJIT_SHARED constexpr i32 lanes_of_token(i32 topk) {
    i32 lanes = 1;
    while (lanes < topk) {
        lanes *= 2;
    }
    return lanes;
}

/// Tokens that a block counts at a time: one bit each in a key's mask.
inline constexpr i32 plan_tile_tokens = 64;

/// What rows are counted by: every slot, and every rank for the flat layout.
EPJIT_SHARED constexpr i32 plan_keys(const plan_config& c) {
    return c.num_slots + c.num_ranks;
}

/// Dynamic shared memory of the plan kernels: per key a mask, a running count and a row base; a tile of ids when
/// sparse; of an exchange the lines that every rank gets from the ranks before this one.
EPJIT_SHARED constexpr i32 plan_shared_bytes(const plan_config& c) {
    return plan_keys(c) * (8 + 4 + 4) + (c.exchange ? c.num_ranks * 4 : 0) +
           (c.sparse ? plan_tile_tokens * c.topk * 2 : 0);
}

/// Blocks that have work for `num_tokens`, the last one to publish counts beside the others' work; the launch takes no
/// more than fit on the device at once.
EPJIT_SHARED constexpr i32 plan_blocks(i32 num_tokens, i32 max_blocks) {
    return max_of(1, min_of(ceil_div(num_tokens, plan_tile_tokens) + 1, max_blocks));
}

/// The same for a real rank: few tokens are one block's, which then waits for no other.
EPJIT_SHARED constexpr i32 exchange_plan_blocks(i32 num_tokens, i32 max_blocks) {
    return num_tokens <= plan_tile_tokens ? 1 : plan_blocks(num_tokens, max_blocks);
}

/// Counters that the device raises and the host reports at its next call. One per plan, the same on every rank.
struct plan_status {
    u32 bad_ids;         ///< ids outside [0, E) other than -1, treated as -1
    u32 duplicate_ids;   ///< later occurrences of an expert within one token, treated as -1
    u32 excess_ids;      ///< set bits of a sparse row beyond the K-th, ignored
    u32 dropped_rows;    ///< (token, slot) pairs, or flat rows, that did not fit the capacity
    u32 timed_out;       ///< non-zero when a grid barrier gave up: the plan is unusable
    u32 refusing_rank;   ///< exchange: 1 + the first rank that brought tokens it may not bring, else 0
    u32 refused_tokens;  ///< of that rank
    u32 ready;           ///< the plan's sequence number, written last with system scope
};
static_assert(sizeof(plan_status) == 32);

/// What a driven rank brings to a plan.
struct plan_rank {
    const void* routing;  ///< dense: ids [T,K] of `width`; sparse: u8 [T,E]; contiguous rows
    i32 num_tokens;       ///< T, 0 allowed
    i32 first_token;      ///< global index of this rank's token 0: the sum of num_tokens of the ranks before
    i32 capacity;         ///< rows of this rank's output (masked: rows per slot); max i32 when exact
    i32 reserved;
    u64* slot_tokens;  ///< [S] to which the tokens of all ranks that want each slot are added, or null
};
static_assert(sizeof(plan_rank) == 32);

/// Kernel arguments up to the per-rank table. Token t of driven rank r has the global index `ranks[r].first_token + t`;
/// rows are ordered by (slot, source rank, token), which is (slot, global token).
struct plan_head {
    // Placement, device memory.
    const i32* expert_first;  ///< [E+1] CSR over expert_slots
    const u16* expert_slots;  ///< [S] slots of each expert, ascending; null: expert e has the one slot e
    const u16* slot_rank;     ///< [S]
    const i32* rank_first;    ///< [R+1] first slot of each rank

    // The plan, device memory.
    plan_entry* entries;  ///< [num_tokens, K]
    u16* entry_slots;     ///< [num_tokens, K] slot of each entry, 0xffff when unused
    i32* slot_counts;     ///< [S] rows of each slot after capacity
    i32* slot_offsets;    ///< [S+R] per rank r: L_r + 1 closed offsets from rank_first[r] + r on
    i32* rank_rows;       ///< [R] rows of each rank's output: expert_major with padding, flat, masked L * capacity
    u32* block_counts;    ///< scratch [grid, plan_keys]
    u32* barrier;         ///< scratch, two words; zero before the first launch, every launch leaves them zero
    plan_status* device_status;  ///< sums of this launch; zero before the first launch, every launch leaves it zero

    // Pinned host memory.
    plan_status* host_status;
    i32* host_counts;  ///< exact: [S] slot counts then [R] rank_rows; of an exchange then [R] lines sent to each rank,
                       ///< [R] received from each and [R] tokens of each; null in static mode

    u64 timeout_ns;  ///< limit of the grid barrier
    i32 num_tokens;  ///< of all ranks
    id_width width;
    row_layout layout;
    i32 alignment;      ///< expert_major segments start at multiples of this many rows; at least 1
    i32 ids_are_slots;  ///< dense ids name slots directly (the caller chose the replicas)
    u32 sequence;       ///< value of host_status->ready when done
};
static_assert(sizeof(plan_head) == 144);

/// Kernel arguments for R ranks. The host fills the largest instance; a kernel for fewer ranks reads its front.
template <i32 NumRanks>
struct plan_args : plan_head {
    plan_rank ranks[NumRanks];
};
static_assert(sizeof(plan_args<max_driven_ranks>) == 144 + 32 * 64);

/// A token that travels to a rank is a line of that rank's list from the source, at the position of its order among the
/// source's tokens that go there. What the destination must know of it: i32 token, i32 rows[K], u16 slots[K]. Entry j
/// is the token's j-th in ascending slot order: `rows[j]` is its place in the destination's output, -1 when dropped or
/// not for this rank; `slots[j]` the destination's local slot, no_slot when not for this rank.
EPJIT_SHARED constexpr i32 line_bytes(i32 topk) {
    return ceil_div(4 + 6 * topk, 16) * 16;
}
EPJIT_SHARED constexpr i32 line_slots_offset(i32 topk) {
    return 4 + 4 * topk;
}

/// What ranks tell each other before rows can be placed: the counts of all keys, then these, u32 each.
struct plan_message_tail {
    u32 num_tokens;
    u32 capacity;
    u32 bad_ids;
    u32 duplicate_ids;
    u32 excess_ids;
    u32 refused_tokens;  ///< non-zero: this rank's T is not allowed and it takes part with none
    u32 reserved[2];
};
static_assert(sizeof(plan_message_tail) == 32);
EPJIT_SHARED constexpr i32 plan_message_words(i32 keys) {
    return keys + static_cast<i32>(sizeof(plan_message_tail) / 4);
}

/// Parts of exchange_plan_kernel; a launch does one or more in this order. Where peers' memory can be written all are
/// one launch; else the counts and the lines are moved between launches.
inline constexpr i32 plan_phase_count = 1;
inline constexpr i32 plan_phase_place = 2;
inline constexpr i32 plan_phase_finish = 4;

struct exchange_plan_args : plan_head {
    plan_rank ranks[1];  ///< this rank's tokens
    rank_link link;
    i32* positions;     ///< [T,K] of each entry's line in its rank's list, -1 when unused
    u32* counts;        ///< [R, plan_message_words]: where the ranks' messages arrive; this rank's too
    const u8* arrived;  ///< [R, list_stride, line_bytes]: where lines arrive
    u8* lines;          ///< the plan's own, same shape; may be `arrived`
    i32* line_first;    ///< [R+1] lines before those of each source
    i32 list_stride;    ///< lines that one source may send
    i32 phases;
    i32 peers_written;   ///< messages and steps go straight to the peers' windows
    i32 refused_tokens;  ///< see plan_message_tail
    i64 counts_offset;   ///< of `counts` in every window
    u8* lines_out;       ///< [R, list_stride, line_bytes]: lines for each rank, where peers are not written
    i64 lines_offset;    ///< else: of this rank's lines in every window
};
static_assert(sizeof(exchange_plan_args) == 144 + 32 + 56 + 40 + 16 + 8 + 16);

}  // namespace epjit::templates
