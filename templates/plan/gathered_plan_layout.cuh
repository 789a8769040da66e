// SPDX-License-Identifier: Apache-2.0
// A plan that every rank makes by itself from all ranks' routing: how the rows travel, and the arguments of the kernel
// that sends them and makes the plan. Shared by device code and the host.
#pragma once

#include "base/types.cuh"
#include "plan/plan_layout.cuh"

namespace epjit::templates {

/// A rank's routing on its way: vectors of 16 bytes, first the header's, then the ids [bound, K] as i16, one row after
/// the other without a gap, -1 where a row has no valid id and beyond the rank's tokens. The whole is padded with -1 to
/// the last vector, so that every vector is aligned whatever K is. `flagged`: into peers' windows, where the last four
/// bytes of every vector are the number of the gathering, and a vector's arrival is seen in itself; else a vector is
/// eight ids.
inline constexpr i32 gathered_header_vectors = 3;  ///< three words in each
inline constexpr i32 gathered_vector_bytes = 16;
static_assert(max_slots <= 0x7fff && max_experts <= 0x7fff, "ids travel as i16");

struct gathered_header {
    u32 num_tokens;
    u32 capacity;
    u32 refused_tokens;  ///< see plan_message_tail
    u32 bad_ids;
    u32 duplicate_ids;
    u32 excess_ids;
    u32 bound;  ///< equal on all ranks
    u32 reserved[2];
};
static_assert(sizeof(gathered_header) == 12 * gathered_header_vectors);

EPJIT_SHARED constexpr i32 gathered_ids_per_vector(bool flagged) {
    return flagged ? 6 : 8;
}
/// Vectors of ids.
EPJIT_SHARED constexpr i32 gathered_id_vectors(i32 bound, i32 topk, bool flagged) {
    return flagged ? ceil_div(bound * topk, gathered_ids_per_vector(true))
                   : ceil_div(bound * topk, gathered_ids_per_vector(false));
}
/// Bytes of one rank's rows.
EPJIT_SHARED constexpr i64 gathered_bytes(i32 bound, i32 topk, bool flagged) {
    return (static_cast<i64>(gathered_header_vectors) + gathered_id_vectors(bound, topk, flagged)) *
           gathered_vector_bytes;
}

inline constexpr i32 gathered_plan_threads = 512;
/// Tokens that a block packs at a time: ends at a vector's end for every K.
inline constexpr i32 gathered_pack_tokens = 192;
static_assert(gathered_pack_tokens % 6 == 0 && gathered_pack_tokens % 8 == 0);

/// Tiles of one rank's tokens: a tile has one source.
EPJIT_SHARED constexpr i32 gathered_rank_tiles(i32 bound) {
    return ceil_div(bound, plan_tile_tokens);
}
/// Tokens of a tile that may be there.
EPJIT_SHARED constexpr i32 gathered_tile_tokens(i32 bound) {
    return min_of(bound, plan_tile_tokens);
}
/// Dynamic shared memory: per tile the masks of every key and the slots of the tokens, of a sparse map their ids too;
/// per key the rows before and two sums; per rank six numbers more, the header and where its window is; per slot its
/// start and rank; a stage of ids.
EPJIT_SHARED constexpr i32 gathered_tile_bytes(const plan_config& c) {
    return plan_keys(c) * 8 + plan_tile_tokens * c.topk * (c.sparse ? 4 : 2);
}
EPJIT_SHARED constexpr i32 gathered_sums(const plan_config& c) {
    return plan_keys(c) + 3 * c.num_ranks;
}
EPJIT_SHARED constexpr i32 gathered_fixed_bytes(const plan_config& c) {
    return 8 * c.num_ranks + 4 * (plan_keys(c) + 2 * gathered_sums(c) + (c.num_slots + 1) + 2 * (c.num_ranks + 1) + 4) +
           static_cast<i32>(sizeof(gathered_header)) * c.num_ranks +
           2 * (gathered_pack_tokens * c.topk + c.num_slots + 1);
}
EPJIT_SHARED constexpr i32 gathered_shared_bytes(const plan_config& c, i32 tiles) {
    return gathered_fixed_bytes(c) + tiles * gathered_tile_bytes(c);
}

/// Few tokens: every block holds all ranks' tiles at once, counts them for itself and meets no other. Equal on every
/// rank and machine.
EPJIT_SHARED constexpr bool gathered_at_once(const plan_config& c, i32 bound) {
    const i64 tiles = static_cast<i64>(c.num_ranks) * gathered_rank_tiles(bound);
    return tiles <= 32 && gathered_shared_bytes(c, static_cast<i32>(tiles)) <= 160 * 1024;
}
/// Of those blocks, as many as place all tokens in one round, up to 16.
EPJIT_SHARED constexpr i32 gathered_blocks(const plan_config& c, i32 bound) {
    const i32 round = gathered_plan_threads / lanes_of_token(c.topk);
    return min_of(16, ceil_div(c.num_ranks * gathered_rank_tiles(bound) * gathered_tile_tokens(bound), round));
}

/// Parts of gathered_plan_kernel; a launch does one or both. Where peers' memory can be written both are one launch;
/// else the rows are moved between two.
inline constexpr i32 gathered_phase_send = 1;
inline constexpr i32 gathered_phase_plan = 2;

/// Divides by what only the launch knows, in a few instructions: exact where the sum of both numbers is below 2^31.
struct quick_divisor {
    i32 divisor;
    u32 inverse;  ///< 2^31 / divisor, rounded up: the product is less than one too much

    EPJIT_SHARED constexpr i32 of(i32 n) const {
        const i32 quotient = static_cast<i32>(static_cast<u64>(static_cast<u32>(n)) * inverse >> 31);
        return quotient - (quotient * divisor > n ? 1 : 0);
    }
};
EPJIT_SHARED constexpr quick_divisor divide_by(i32 divisor) {
    return {divisor, static_cast<u32>(((1ull << 31) + static_cast<u32>(divisor) - 1) / static_cast<u32>(divisor))};
}

struct gathered_plan_args : plan_head {
    plan_rank ranks[1];  ///< this rank's tokens
    rank_link link;
    i32* positions;    ///< [T,K] of each entry's line in its rank's list, -1 when unused
    u8* lines;         ///< [R, list_stride, line_bytes], the plan's own
    i32* line_first;   ///< [R+1] lines before those of each source
    early_plan early;  ///< of a plan at once
    u8* rows;  ///< [R, row_stride] where the ranks' rows arrive, this rank's too; flagged: two of them, used in turn
    i64 rows_offset;  ///< flagged: of `rows` in every window
    i64 row_stride;   ///< bytes from one rank's rows to the next one's
    i32 list_stride;  ///< lines that one source may send
    i32 bound;        ///< tokens that every rank's rows have room for
    i32 phases;
    i32 flagged;                   ///< rows and steps go straight to the peers' windows
    i32 refused_tokens;            ///< see plan_message_tail
    i32 chunk_tiles;               ///< tiles that a block holds at once
    i32 at_once;                   ///< see gathered_at_once: they are all
    i32 id_vectors;                ///< of one rank's rows
    quick_divisor by_span;         ///< vectors of one rank that may hold a chunk's ids
    quick_divisor by_rank_tiles;   ///< gathered_rank_tiles
    quick_divisor by_tile_tokens;  ///< gathered_tile_tokens
};
static_assert(sizeof(gathered_plan_args) == 144 + 32 + 56 + 24 + 40 + 24 + 56);

}  // namespace epjit::templates
