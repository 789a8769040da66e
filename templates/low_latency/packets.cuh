// SPDX-License-Identifier: Apache-2.0
// Packets into peers' windows and out of the own one: no flag beside them, no release, no barrier round.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "exchange/flags.cuh"
#include "low_latency/packet_layout.cuh"
#include "low_latency/packet_steps.cuh"
#include "rows/row_list.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Source number `r` of the peers' lines: every rank starts with the one after it, so that no link is wanted by all at
/// once.
__device__ __forceinline__ i32 peer_after(const rank_link& link, i32 r) {
    return link.me + r < link.num_ranks ? link.me + r : link.me + r - link.num_ranks;
}

/// Lane k's row and slot of a peer's line; -1 and no_slot where there is none. Loads of both at once.
struct line_entry {
    i32 row = -1;
    i32 slot = no_slot;
};
template <i32 TopK, class Args>
__device__ __forceinline__ line_entry read_line_entry(const Args& args, i32 source, i32 position) {
    line_entry e;
    const i32 lane = static_cast<i32>(lane_idx());
    if (lane < TopK) {
        const u8* line = line_of<TopK>(args, source, position);
        e.row = reinterpret_cast<const i32*>(line)[1 + lane];
        e.slot = reinterpret_cast<const u16*>(line + line_slots_offset(TopK))[lane];
    }
    return e;
}

/// Offset of a source's record number `number` in an area.
__device__ __forceinline__ i64 record_offset(const packet_area& area, const rank_link& link, i32 parity, i32 source,
                                             i32 number, i64 record_bytes) {
    return ((static_cast<i64>(parity) * link.num_ranks + source) * area.lines + number) * record_bytes;
}
/// Where this rank writes a record at a peer.
__device__ __forceinline__ u8* record_at(const packet_area& area, const rank_link& link, i32 parity, i32 peer,
                                         i32 number, i64 record_bytes) {
    return link.peers[peer] + area.offset + record_offset(area, link, parity, link.me, number, record_bytes);
}
/// Where a record from `source` arrives.
__device__ __forceinline__ const u8* record_from(const packet_area& area, const rank_link& link, i32 parity, i32 source,
                                                 i32 number, i64 record_bytes) {
    return area.own + record_offset(area, link, parity, source, number, record_bytes);
}

/// Payload of `Packets` packets, `plane` bytes apart, once all are of this step. False: the exchange has failed.
template <i32 Packets>
__device__ __forceinline__ bool await_packets(const u8* first, i64 plane, const rank_link& link, i32 source, u32 step,
                                              lane_op op, u32 (&words)[Packets * packet_words]) {
    const u64 start = global_time_ns();
#pragma unroll 1
    for (u32 spin = 1;; ++spin) {
        uint4 seen[Packets];
        bool here = true;
#pragma unroll
        for (i32 n = 0; n < Packets; ++n) {
            seen[n] = ld_relaxed_sys_128(first + n * plane);
        }
#pragma unroll
        for (i32 n = 0; n < Packets; ++n) {
            here = here && seen[n].w == step;
            words[3 * n] = seen[n].x;
            words[3 * n + 1] = seen[n].y;
            words[3 * n + 2] = seen[n].z;
        }
        if (here) {
            return true;
        }
        if (spin % 64 == 0 && !keep_waiting(link, source, step, op, start)) {
            return false;
        }
    }
}

template <i32 Packets>
__device__ __forceinline__ void send_packets(u8* first, i64 plane, u32 step,
                                             const u32 (&words)[Packets * packet_words]) {
#pragma unroll
    for (i32 n = 0; n < Packets; ++n) {
        st_relaxed_sys_128(first + n * plane, uint4{words[3 * n], words[3 * n + 1], words[3 * n + 2], step});
    }
}

/// The `Words` words of a unit of a row, zeros beyond its end. `wide`: the row allows accesses of a piece, and its
/// length too.
template <i32 Words>
__device__ __forceinline__ void load_words(const u8* row, const unit_bytes& at, i32 row_bytes, bool wide,
                                           u32 (&words)[Words]) {
    constexpr i32 piece = Words / packet_words * 4;
    if (wide) {
#pragma unroll
        for (i32 n = 0; n < packet_words; ++n) {
            packet<piece> p{};
            if (at.first + n * at.stride < row_bytes) {
                p = load_packet<piece>(row + at.first + n * at.stride);
            }
            struct pieces {
                u32 v[piece / 4];
            };
            const pieces w = __builtin_bit_cast(pieces, p);
#pragma unroll
            for (i32 i = 0; i < piece / 4; ++i) {
                words[n * (piece / 4) + i] = w.v[i];
            }
        }
        return;
    }
#pragma unroll 1
    for (i32 i = 0; i < Words * 4; i += 4) {
        const i32 first = at.first + i / piece * at.stride + i % piece;
        u32 word = 0;
#pragma unroll 1
        for (i32 b = 0; b < 4 && first + b < row_bytes; ++b) {
            word |= static_cast<u32>(row[first + b]) << 8 * b;
        }
#pragma unroll
        for (i32 n = 0; n < Words; ++n) {
            words[n] = n * 4 == i ? word : words[n];
        }
    }
}

/// The other way.
template <i32 Words>
__device__ __forceinline__ void store_words(u8* row, const unit_bytes& at, i32 row_bytes, bool wide,
                                            const u32 (&words)[Words]) {
    constexpr i32 piece = Words / packet_words * 4;
    if (wide) {
#pragma unroll
        for (i32 n = 0; n < packet_words; ++n) {
            if (at.first + n * at.stride < row_bytes) {
                struct pieces {
                    u32 v[piece / 4];
                } w;
#pragma unroll
                for (i32 i = 0; i < piece / 4; ++i) {
                    w.v[i] = words[n * (piece / 4) + i];
                }
                store_packet<piece>(row + at.first + n * at.stride, __builtin_bit_cast(packet<piece>, w));
            }
        }
        return;
    }
#pragma unroll 1
    for (i32 i = 0; i < Words * 4; i += 4) {
        const i32 first = at.first + i / piece * at.stride + i % piece;
        u32 word = 0;
#pragma unroll
        for (i32 n = 0; n < Words; ++n) {
            word = n * 4 == i ? words[n] : word;
        }
#pragma unroll 1
        for (i32 b = 0; b < 4 && first + b < row_bytes; ++b) {
            row[first + b] = static_cast<u8>(word >> 8 * b);
        }
    }
}

#endif

}  // namespace epjit::templates
