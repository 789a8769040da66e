// SPDX-License-Identifier: Apache-2.0
// Packets into peers' windows and out of the own one: no flag beside them, no release, no barrier round.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "exchange/flags.cuh"
#include "low_latency/packet_layout.cuh"
#include "rows/row_list.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// The step of a kernel that sends packets, and what it must know before it writes into windows. Loads at once.
struct packet_step {
    failure_signs signs;
    u32 step;
    u32 read_step[2];  ///< of the areas of either parity: who has begun this step has read the last contents

    __device__ __forceinline__ packet_step(const rank_link& link, lane_area area) : signs(load_failure_signs(link)) {
        const auto& lane = link.control->lanes[link.lane];
        step = lane.step + 1;
        read_step[0] = lane.area_step[static_cast<i32>(area)];
        read_step[1] = lane.area_step[static_cast<i32>(area) + 1];
    }
    __device__ __forceinline__ i32 parity() const { return static_cast<i32>(step & 1); }

    /// Called by whole warps before their first packet: the exchange lives, and every rank has read what lay there.
    __device__ inline bool may_write(const rank_link& link, lane_op op) const {
        const u32 read = read_step[parity()];
        bool ok = true;
#pragma unroll 1
        for (i32 p = static_cast<i32>(lane_idx()); p < link.num_ranks; p += 32) {
            // Most often it has: the word is under way beside the other loads of the kernel's start.
            const u64 word = ld_acquire_sys_64(link.words + p);
            ok = ok && !shows_failure(signs, link, op) &&
                 (p == link.me || static_cast<i32>(static_cast<u32>(word >> 32) - read) >= 0 ||
                  wait_step(link, p, read, lane_op::none));
        }
        return __all_sync(full_warp, ok);
    }
};

/// Tells every peer that this rank has begun the step, and so has done all before. The last block does it, which has
/// nothing under way that a release would wait for.
__device__ inline void begin_step(const rank_link& link, const packet_step& at, lane_op op) {
    if (blockIdx.x + 1 != gridDim.x || shows_failure(at.signs, link, op)) {
        return;
    }
#pragma unroll 1
    for (i32 p = static_cast<i32>(threadIdx.x); p < link.num_ranks; p += static_cast<i32>(blockDim.x)) {
        if (p != link.me && link.peers[p] != nullptr) {
            signal_step(link, p, at.step, op);
        }
    }
}

/// Called by all threads of every block as their last step. The block that leaves last keeps the step: what is at
/// `area` has been read once the next one has begun.
__device__ inline void end_step(const rank_link& link, const packet_step& at, lane_area area) {
    __syncthreads();
    if (threadIdx.x == 0) {
        auto& lane = link.control->lanes[link.lane];
        if (add_relaxed_gpu(&lane.leaving, 1) + 1 == gridDim.x) {
            lane.leaving = 0;
            lane.step = at.step;
            lane.area_step[static_cast<i32>(area) + at.parity()] = at.step + 1;
        }
    }
}

/// Line number `n` of the peer that follows this rank, which most blocks begin with, towards the caches.
template <i32 TopK, class Args>
__device__ __forceinline__ void prefetch_line(const Args& args, i32 n) {
    const i32 source = args.link.me + 1 < args.link.num_ranks ? args.link.me + 1 : 0;
    if (n < args.list.list_stride) {
        prefetch_l1(line_of<TopK>(args, source, n));
    }
}

/// Offset of a record in an area.
__device__ __forceinline__ i64 record_offset(const packet_area& area, const rank_link& link, i32 parity, i32 source,
                                             i32 position, i64 record_bytes) {
    return ((static_cast<i64>(parity) * link.num_ranks + source) * area.lines + position) * record_bytes;
}
/// Where this rank writes a record at a peer.
__device__ __forceinline__ u8* record_at(const packet_area& area, const rank_link& link, i32 parity, i32 peer,
                                         i32 position, i64 record_bytes) {
    return link.peers[peer] + area.offset + record_offset(area, link, parity, link.me, position, record_bytes);
}
/// Where a record from `source` arrives.
__device__ __forceinline__ const u8* record_from(const packet_area& area, const rank_link& link, i32 parity, i32 source,
                                                 i32 position, i64 record_bytes) {
    return area.own + record_offset(area, link, parity, source, position, record_bytes);
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

/// `Words` words of a row from byte `at` on, zeros beyond its end. `wide`: the row allows accesses of
/// `Words` / 3 * 4 bytes, and its length too.
template <i32 Words>
__device__ __forceinline__ void load_words(const u8* row, i32 at, i32 row_bytes, bool wide, u32 (&words)[Words]) {
    constexpr i32 piece = Words / packet_words * 4;
    if (wide) {
#pragma unroll
        for (i32 n = 0; n < packet_words; ++n) {
            packet<piece> p{};
            if (at + n * piece < row_bytes) {
                p = load_packet<piece>(row + at + n * piece);
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
        u32 word = 0;
#pragma unroll 1
        for (i32 b = 0; b < 4 && at + i + b < row_bytes; ++b) {
            word |= static_cast<u32>(row[at + i + b]) << 8 * b;
        }
#pragma unroll
        for (i32 n = 0; n < Words; ++n) {
            words[n] = n * 4 == i ? word : words[n];
        }
    }
}

/// The other way.
template <i32 Words>
__device__ __forceinline__ void store_words(u8* row, i32 at, i32 row_bytes, bool wide, const u32 (&words)[Words]) {
    constexpr i32 piece = Words / packet_words * 4;
    if (wide) {
#pragma unroll
        for (i32 n = 0; n < packet_words; ++n) {
            if (at + n * piece < row_bytes) {
                struct pieces {
                    u32 v[piece / 4];
                } w;
#pragma unroll
                for (i32 i = 0; i < piece / 4; ++i) {
                    w.v[i] = words[n * (piece / 4) + i];
                }
                store_packet<piece>(row + at + n * piece, __builtin_bit_cast(packet<piece>, w));
            }
        }
        return;
    }
#pragma unroll 1
    for (i32 i = 0; i < Words * 4; i += 4) {
        u32 word = 0;
#pragma unroll
        for (i32 n = 0; n < Words; ++n) {
            word = n * 4 == i ? words[n] : word;
        }
#pragma unroll 1
        for (i32 b = 0; b < 4 && at + i + b < row_bytes; ++b) {
            row[at + i + b] = static_cast<u8>(word >> 8 * b);
        }
    }
}

#endif

}  // namespace epjit::templates
