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
__device__ __forceinline__ u8* record_from(const packet_area& area, const rank_link& link, i32 parity, i32 source,
                                           i32 number, i64 record_bytes) {
    return area.own + record_offset(area, link, parity, source, number, record_bytes);
}

/// Byte or half-word j of word i becomes number i of word j: what the fourths of a unit's packets hold, from the words
/// they are parts of, and back.
__device__ __forceinline__ void exchange_parts(u32 (&)[1]) {}
__device__ __forceinline__ void exchange_parts(u32 (&w)[2]) {
    const u32 low = __byte_perm(w[0], w[1], 0x5410);
    w[1] = __byte_perm(w[0], w[1], 0x7632);
    w[0] = low;
}
__device__ __forceinline__ void exchange_parts(u32 (&w)[4]) {
    const u32 low[2] = {__byte_perm(w[0], w[1], 0x5140), __byte_perm(w[2], w[3], 0x5140)};
    const u32 high[2] = {__byte_perm(w[0], w[1], 0x7362), __byte_perm(w[2], w[3], 0x7362)};
    w[0] = __byte_perm(low[0], low[1], 0x5410);
    w[1] = __byte_perm(low[0], low[1], 0x7632);
    w[2] = __byte_perm(high[0], high[1], 0x5410);
    w[3] = __byte_perm(high[0], high[1], 0x7632);
}

/// Payload of a unit's packets, `plane` bytes apart, once all are of this step; they are there no more then. False: the
/// exchange has failed.
template <i32 Packets>
__device__ __forceinline__ bool take_packets(u8* first, i64 plane, const rank_link& link, i32 source, u32 step,
                                             lane_op op, u32 (&words)[payload_words(Packets)]) {
    const u32 tag = packet_tag(Packets, step);
    const u64 start = global_time_ns();
#pragma unroll 1
    for (u32 spin = 1;; ++spin) {
        uint4 seen[Packets];
        u32 fourths[Packets];
#pragma unroll
        for (i32 n = 0; n < Packets; ++n) {
            seen[n] = ld_relaxed_sys_128(first + n * plane);
        }
#pragma unroll
        for (i32 n = 0; n < Packets; ++n) {
            words[3 * n] = seen[n].x;
            words[3 * n + 1] = seen[n].y;
            words[3 * n + 2] = seen[n].z;
            fourths[n] = seen[n].w;
        }
        exchange_parts(fourths);
        if (fourths[Packets - 1] == tag) {
#pragma unroll
            for (i32 n = 0; n < Packets - 1; ++n) {
                words[3 * Packets + n] = fourths[n];
            }
            break;
        }
        if (spin % 64 == 0 && !keep_waiting(link, source, step, op, start)) {
            return false;
        }
    }
    if constexpr (Packets > 1) {
#pragma unroll
        for (i32 n = 0; n < Packets; ++n) {
            reinterpret_cast<u32*>(first + n * plane)[3] = 0;
        }
    }
    return true;
}

template <i32 Packets>
__device__ __forceinline__ void send_packets(u8* first, i64 plane, u32 step,
                                             const u32 (&words)[payload_words(Packets)]) {
    u32 fourths[Packets];
#pragma unroll
    for (i32 n = 0; n < Packets; ++n) {
        fourths[n] = n == Packets - 1 ? packet_tag(Packets, step) : words[min_of(3 * Packets + n, 4 * Packets - 2)];
    }
    exchange_parts(fourths);
#pragma unroll
    for (i32 n = 0; n < Packets; ++n) {
        st_relaxed_sys_128(first + n * plane, uint4{words[3 * n], words[3 * n + 1], words[3 * n + 2], fourths[n]});
    }
}

/// Lane `lane`'s row, modulo 32. Called by whole warps: each lane finds its own row once.
template <class Byte>
__device__ __forceinline__ Byte* shuffle_row(Byte* row, i32 lane) {
    return reinterpret_cast<Byte*>(__shfl_sync(full_warp, reinterpret_cast<u64>(row), lane & 31));
}

/// The words of a unit of a row; beyond its end anything. `wide`: the row allows accesses of 16 bytes, and its length
/// too.
template <i32 Packets>
__device__ __forceinline__ void load_words(const u8* row, const unit_bytes<Packets>& at, i32 row_bytes, bool wide,
                                           u32 (&words)[payload_words(Packets)]) {
    constexpr i32 count = payload_words(Packets);
    if (wide) {
#pragma unroll
        for (i32 n = 0; n < Packets - 1; ++n) {
            const uint4 v = ld_streaming_16(row + min_of(at.wide(n), row_bytes - 16));
            words[4 * n] = v.x;
            words[4 * n + 1] = v.y;
            words[4 * n + 2] = v.z;
            words[4 * n + 3] = v.w;
        }
        const uint2 v = ld_streaming_8(row + min_of(at.eight(), row_bytes - 8));
        words[count - 3] = v.x;
        words[count - 2] = v.y;
        words[count - 1] = ld_streaming_4(row + min_of(at.four(), row_bytes - 4));
        return;
    }
#pragma unroll 1
    for (i32 i = 0; i < count; ++i) {
        const i32 first = at.word(i);
        u32 word = 0;
#pragma unroll 1
        for (i32 b = 0; b < 4 && first + b < row_bytes; ++b) {
            word |= static_cast<u32>(row[first + b]) << 8 * b;
        }
#pragma unroll
        for (i32 n = 0; n < count; ++n) {
            words[n] = n == i ? word : words[n];
        }
    }
}

/// The other way.
template <i32 Packets>
__device__ __forceinline__ void store_words(u8* row, const unit_bytes<Packets>& at, i32 row_bytes, bool wide,
                                            const u32 (&words)[payload_words(Packets)]) {
    constexpr i32 count = payload_words(Packets);
    if (wide) {
#pragma unroll
        for (i32 n = 0; n < Packets - 1; ++n) {
            if (at.wide(n) < row_bytes) {
                *reinterpret_cast<uint4*>(row + at.wide(n)) =
                    uint4{words[4 * n], words[4 * n + 1], words[4 * n + 2], words[4 * n + 3]};
            }
        }
        if (at.eight() < row_bytes) {
            *reinterpret_cast<uint2*>(row + at.eight()) = uint2{words[count - 3], words[count - 2]};
        }
        if (at.four() < row_bytes) {
            *reinterpret_cast<u32*>(row + at.four()) = words[count - 1];
        }
        return;
    }
#pragma unroll 1
    for (i32 i = 0; i < count; ++i) {
        const i32 first = at.word(i);
        u32 word = 0;
#pragma unroll
        for (i32 n = 0; n < count; ++n) {
            word = n == i ? words[n] : word;
        }
#pragma unroll 1
        for (i32 b = 0; b < 4 && first + b < row_bytes; ++b) {
            row[first + b] = static_cast<u8>(word >> 8 * b);
        }
    }
}

#endif

}  // namespace epjit::templates
