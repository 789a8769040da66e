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

/// The step of a kernel that sends packets, in a block's shared memory.
struct packet_step {
    u32 step;
    u32 lives;      ///< nothing says that the exchange has failed
    u32 may_write;  ///< so do all ranks' areas: every rank has read what lay where this step's packets go

    __device__ __forceinline__ i32 parity() const { return static_cast<i32>(step & 1); }
};

/// What a kernel of packets does before it waits for the kernel in front of it. Where windows lie never changes.
__device__ __forceinline__ void prefetch_link(const rank_link& link) {
    if (threadIdx.x < static_cast<u32>(link.num_ranks)) {
        prefetch_l1(link.peers + threadIdx.x);
    }
}

/// Learns the step, by the block's last warp; the others load meanwhile what they need and then meet_step. All loads
/// are under way at once.
///
/// The last block that has learned it keeps the step for the kernels that follow: they start when this one has ended,
/// and then what lies at `area` has been read. The first block tells the peers that the step has begun, and so all
/// before it have ended. `writes`: the block sends packets or weights.
__device__ inline void learn_step(const rank_link& link, lane_area area, lane_op op, bool writes, packet_step& shared) {
    if (threadIdx.x / 32 != blockDim.x / 32 - 1) {
        return;
    }
    const i32 thread = static_cast<i32>(lane_idx());
    auto& lane = link.control->lanes[link.lane];
    const failure_signs signs = load_failure_signs(link);
    const u32 step = ld_relaxed_gpu(&lane.step) + 1;
    const u32 read_step[2] = {ld_relaxed_gpu(&lane.area_step[static_cast<i32>(area)]),
                              ld_relaxed_gpu(&lane.area_step[static_cast<i32>(area) + 1])};
    u64 word = ld_relaxed_sys_64(link.words + min_of(thread, link.num_ranks - 1));
    const bool lives = __all_sync(full_warp, !shows_failure(signs, link, op)) != 0;
    const u32 read = (step & 1) != 0 ? read_step[1] : read_step[0];
    bool may_write = lives;
    if (writes && lives) {
#pragma unroll 1
        for (i32 p = thread; p < link.num_ranks; p += 32) {
            word = p == thread ? word : ld_relaxed_sys_64(link.words + p);
            // Most often it has. What is read from then on does not depend on it, so a relaxed look is enough.
            may_write = may_write && (p == link.me || static_cast<i32>(static_cast<u32>(word >> 32) - read) >= 0 ||
                                      wait_step(link, p, read, lane_op::none));
        }
    }
    may_write = __all_sync(full_warp, may_write);
    if (blockIdx.x == 0 && lives) {
#pragma unroll 1
        for (i32 p = thread; p < link.num_ranks; p += 32) {
            if (p != link.me && link.peers[p] != nullptr) {
                note_step(link, p, step, op);
            }
        }
    }
    if (thread == 0) {
        shared.step = step;
        shared.lives = lives ? 1 : 0;
        shared.may_write = may_write ? 1 : 0;
        if (add_relaxed_gpu(&lane.leaving, 1) + 1 == gridDim.x) {
            lane.leaving = 0;
            lane.step = step;
            lane.area_step[static_cast<i32>(area) + static_cast<i32>(step & 1)] = step + 1;
        }
    }
}

/// The same before the plan in front has ended, for packets that go out by the entries it tells: nothing but the step,
/// and whether they may. `entry`: the first of the block's, null where it has none.
__device__ inline void learn_early_step(const rank_link& link, lane_area area, const u64* entry, u32 sequence,
                                        packet_step& shared) {
    if (threadIdx.x / 32 != blockDim.x / 32 - 1) {
        return;
    }
    const i32 thread = static_cast<i32>(lane_idx());
    const auto& lane = link.control->lanes[link.lane];
    u32 step = 0;
    bool may_write = entry != nullptr;
    if (thread == 0 && entry != nullptr) {
        const u64 start = global_time_ns();
#pragma unroll 1
        for (u32 spin = 1;; ++spin) {
            const u32 tag = static_cast<u32>(ld_relaxed_gpu_64(entry) >> 32);
            step = ld_relaxed_gpu(&lane.step);
            // The plan is under way, or has ended.
            if (tag == early_tag(step + 1, sequence) || tag == early_tag(step, sequence)) {
                step += tag == early_tag(step, sequence) ? 1 : 2;
                break;
            }
            if (spin % 16 == 0 && early_wait_ends(link, start)) {
                may_write = false;
                break;
            }
        }
    }
    may_write = __all_sync(full_warp, may_write);
    step = __shfl_sync(full_warp, step, 0);
    if (may_write) {
        const u32 read = ld_relaxed_gpu(&lane.area_step[static_cast<i32>(area) + static_cast<i32>(step & 1)]);
#pragma unroll 1
        for (i32 p = thread; p < link.num_ranks; p += 32) {
            may_write = may_write && (p == link.me || wait_step(link, p, read, lane_op::none));
        }
        may_write = __all_sync(full_warp, may_write);
    }
    if (thread == 0) {
        shared.step = step;
        shared.lives = may_write ? 1 : 0;
        shared.may_write = may_write ? 1 : 0;
    }
}

/// The step, when the last warp knows it. Called by all threads of the block, once for each time it is learned.
__device__ __forceinline__ packet_step meet_step(const packet_step& shared) {
    __syncthreads();
    return shared;
}

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
