// SPDX-License-Identifier: Apache-2.0
// Rows of few tokens as packets: 16 bytes with a tag of the step they belong to, so that a packet tells by itself that
// it has arrived. Layouts and arguments of the kernels that send and await them.
#pragma once

#include "base/types.cuh"
#include "exchange/channel_layout.cuh"
#include "rows/rows_layout.cuh"

namespace epjit::templates {

inline constexpr i32 packet_size = 16;

/// Words of payload, 4 bytes each, in a unit of `packets` packets (1, 2 or 4): all but one, whose bytes are the
/// packets' tags. Packet n has the words 3n to 3n + 2 and, in its fourth, the n-th part of each word behind those.
EPJIT_SHARED constexpr i32 payload_words(i32 packets) {
    return 4 * packets - 1;
}
/// What tells that packets of a unit are of this step, in each packet the part that it bears. Never zero. A tag of one
/// packet is the step. Those of more come round, so whoever takes such a unit clears them, and each is taken once.
EPJIT_SHARED constexpr u32 packet_tag(i32 packets, u32 step) {
    const u32 half = 0x8000u | (step & 0x7fffu), byte = 0x80u | (step & 0x7fu);
    return packets == 1 ? step : packets == 2 ? half * 0x10001u : byte * 0x1010101u;
}

/// Where the bytes of a unit of P packets lie in its row: P - 1 pieces of 16 bytes, one of 8 and one of 4, each beside
/// those of the neighbours, so that the threads of a warp, a unit each, read and write whole sectors.
template <i32 Packets>
struct unit_bytes {
    i32 first;       ///< of the neighbours' bytes
    i32 neighbours;  ///< units that share them
    i32 number;      ///< among those

    EPJIT_SHARED constexpr i32 wide(i32 n) const { return first + (n * neighbours + number) * 16; }
    EPJIT_SHARED constexpr i32 eight() const { return first + (Packets - 1) * neighbours * 16 + number * 8; }
    EPJIT_SHARED constexpr i32 four() const { return first + ((Packets - 1) * 16 + 8) * neighbours + number * 4; }
    EPJIT_SHARED constexpr i32 word(i32 n) const {
        return n < 4 * (Packets - 1) ? wide(n / 4) + n % 4 * 4
               : n < 4 * Packets - 2 ? eight() + (n - 4 * (Packets - 1)) * 4
                                     : four();
    }
};

/// Packets of one row. Rows go in units of `Packets`; packet n of every unit forms a plane, so that the threads of a
/// warp touch neighbouring packets. What travels beside the row follows, each packet a unit.
template <i32 Packets>
struct packet_record {
    static constexpr i32 unit_packets = Packets;
    static constexpr i32 unit_words = payload_words(Packets);
    i32 row_bytes;
    i32 tail_words;

    EPJIT_SHARED constexpr i32 units() const { return ceil_div(row_bytes, unit_words * 4); }
    /// Behind the row where there is no such unit.
    EPJIT_SHARED constexpr unit_bytes<Packets> bytes_of(i32 unit) const {
        if (unit >= units()) {
            return {row_bytes, 0, 0};
        }
        const i32 group = unit / 32 * 32;
        return {group * unit_words * 4, min_of(32, units() - group), unit - group};
    }
    /// Parts of a row that `threads` threads take with a unit each.
    EPJIT_SHARED constexpr i32 parts(i32 threads) const { return ceil_div(units(), threads); }
    EPJIT_SHARED constexpr i32 tail_packets() const { return ceil_div(tail_words, payload_words(1)); }
    EPJIT_SHARED constexpr i64 bytes() const {
        return (static_cast<i64>(units()) * Packets + tail_packets()) * packet_size;
    }
};

EPJIT_SHARED constexpr i32 scale_words(i32 hidden, group_scale scales) {
    return ceil_div(ceil_div(hidden, scale_group) * scale_bytes(scales), 4);
}

/// A row on its way to its experts, then its scales and the weights of its token's K entries.
using row_record = packet_record<4>;
EPJIT_SHARED constexpr row_record row_record_of(i32 hidden, element type, group_scale scales, i32 topk) {
    return {hidden * element_bytes(type), scale_words(hidden, scales) + topk};
}
/// Threads of a block of ll_dispatch_kernel that take units: the last warp has what travels beside the row.
EPJIT_SHARED constexpr i32 row_unit_threads(i32 threads) {
    return threads - 32;
}
/// A partial sum on its way back.
using sum_record = packet_record<2>;
EPJIT_SHARED constexpr sum_record sum_record_of(i32 hidden, element type) {
    return {hidden * element_bytes(type), 0};
}

/// Records in every rank's window: [2, R, lines], by the step's parity, the source, and of rows the token, of sums the
/// position of its line.
struct packet_area {
    u8* own;
    i64 offset;  ///< in every window
    i32 lines;   ///< of one source
    i32 reserved;
};
static_assert(sizeof(packet_area) == 24);

/// Weights that came beside rows, [R, lines, K] by the source, the position of its line and the entry.
struct kept_area {
    float* weights;  ///< null: none are kept, or none are there
    i32 lines;       ///< of one source
    i32 reserved;

    EPJIT_SHARED constexpr i64 at(i32 source, i32 position, i32 topk) const {
        return (static_cast<i64>(source) * lines + position) * topk;
    }
};

/// Dispatch of one rank. In the grid: blocks that send this rank's tokens, blocks that receive lines, a part of a row
/// at a time, blocks that fill the rows that no token has.
struct ll_dispatch_args : scatter_head {
    rank_link link;
    packet_area rows;
    scatter_rank own;  ///< this rank's input, weights and output
    i32 senders;
    i32 receivers;
    i32 own_weight_columns;
    i32 send_bytes;    ///< 16 where rows of the input may be read in the widest accesses, else less
    i32 follows;       ///< see dispatch_head: by what the plan in front tells early
    u32 sequence;      ///< of the plan
    early_plan early;  ///< that it tells
    kept_area kept;    ///< for a combine with the same weights
};
static_assert(sizeof(ll_dispatch_args) == 176 + 56 + 24 + 120 + 24 + 40 + 16);

/// Combine of one rank. In the grid: blocks that send weights, blocks that send sums of the peers' lines, blocks that
/// sum this rank's tokens.
struct ll_combine_args : gather_head {
    rank_link link;
    packet_area sums;
    weight_area line_weights;  ///< two of them, used in turn by the step's parity
    gather_rank own;           ///< this rank's rows, weights and output
    i32 weight_blocks;         ///< 0: no weights
    i32 senders;
    i32 own_weight_columns;
    i32 weighted;                ///< weights of lines are awaited
    u8 hosts[max_driven_ranks];  ///< number of each rank's host, in the hosts' order
    kept_area kept;              ///< weights of lines are there already
};
static_assert(sizeof(ll_combine_args) == 112 + 56 + 48 + 80 + 16 + 64 + 16);

}  // namespace epjit::templates
