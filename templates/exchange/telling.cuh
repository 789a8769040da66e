// SPDX-License-Identifier: Apache-2.0
// Flags raised by a warp of their own. A release waits for all that the SM has under way to the peers, five
// microseconds where the link is full: those who move rows only note what has arrived, and one warp of the block tells
// the peers of all that has come together since its last release.
#pragma once

#include "base/device.cuh"
#include "exchange/flags.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// What one thread has sent, in its order, in shared memory.
struct sent_list {
    static constexpr i32 most = 32;  ///< under way or not yet told of; number k at k % most
    static constexpr i32 all_peers = -1;
    i32 peer[most];
    i32 chunk[most];  ///< whose flag is to be raised there
    i32 arrived;      ///< of them, those that are there
    i32 told;
    i32 ended;  ///< nothing is left to be told

    /// By one thread, before the block meets.
    __device__ __forceinline__ void begin() {
        arrived = 0;
        told = 0;
        ended = 0;
    }
};

/// Raises the flags of numbers [first, last) of a list, after a release.
__device__ __forceinline__ void tell_some(const rank_link& link, const chunk_flags& flags, const sent_list& list,
                                          i32 first, i32 last, u32 step) {
#pragma unroll 1
    for (; first < last; ++first) {
        const i32 peer = list.peer[first % sent_list::most];
        const i32 begin = peer == sent_list::all_peers ? 0 : peer;
        const i32 end = peer == sent_list::all_peers ? link.num_ranks - 1 : peer;
#pragma unroll 1
        for (i32 p = begin; p <= end; ++p) {
            if (p != link.me) {
                st_relaxed_sys(flag_at(flags, link, p, list.chunk[first % sent_list::most]), step);
            }
        }
    }
}

/// The sender's side of its list. Called by one thread, which has seen the writes of those that it speaks for.
class sent_notes {
   public:
    __device__ __forceinline__ explicit sent_notes(sent_list& list) : list_(list) {}

    /// One more is being sent. There are never more than `most` that have not arrived.
    __device__ __forceinline__ void begin(i32 peer, i32 chunk) {
        while (begun_ - ld_acquire_block(&list_.told) >= sent_list::most) {
            sleep_ns(40);  // the telling warp waits for nobody
        }
        list_.peer[begun_ % sent_list::most] = peer;
        list_.chunk[begun_ % sent_list::most] = chunk;
        ++begun_;
    }
    /// The first `count` are there.
    __device__ __forceinline__ void arrived(i32 count) { st_release_block(&list_.arrived, count); }
    __device__ __forceinline__ void all_arrived() { arrived(begun_); }
    /// All are there, and no more will come: those that the peers have not been told of yet are told by this thread at
    /// once, since the telling warp may be in the middle of an earlier release.
    __device__ __forceinline__ void end(const rank_link& link, const chunk_flags& flags, u32 step) {
        const i32 told = ld_acquire_block(&list_.told);
        if (told < begun_) {
            fence_sys();
            tell_some(link, flags, list_, told, begun_, step);
        }
        abandon();
    }
    /// No more will come, and nobody is to be told of what has not been told yet.
    __device__ __forceinline__ void abandon() { st_release_block(&list_.ended, 1); }
    [[nodiscard]] __device__ __forceinline__ i32 begun() const { return begun_; }

   private:
    sent_list& list_;
    i32 begun_ = 0;
};

/// Raises the flags of what has arrived, one lane a list: whoever sees a flag sees what was sent before it. By one
/// warp; ends when the senders of the `count` lists have.
__device__ inline void tell_peers(const rank_link& link, const chunk_flags& flags, sent_list* lists, i32 count,
                                  u32 step) {
    const i32 lane = static_cast<i32>(lane_idx());
    sent_list& list = lists[min_of(lane, count - 1)];
    bool works = lane < count;
    i32 told = 0;
#pragma unroll 1
    while (__any_sync(full_warp, works)) {
        works = works && ld_acquire_block(&list.ended) == 0;
        const i32 arrived = works ? ld_acquire_block(&list.arrived) : told;
        if (__any_sync(full_warp, arrived > told)) {
            fence_sys();
            tell_some(link, flags, list, told, arrived, step);
            told = arrived;
            if (works) {
                st_release_block(&list.told, told);
            }
        } else {
            sleep_ns(40);
        }
    }
}

#endif

}  // namespace epjit::templates
