// SPDX-License-Identifier: Apache-2.0
// Steps between ranks: one word from each rank to each, raised by a release, awaited by an acquire, bounded in time.
#pragma once

#include "base/device.cuh"
#include "exchange/channel_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Notes the failure, once, and tells every peer. Called by one thread. Not inline: every wait may end here.
__device__ __noinline__ void fail_exchange(const rank_link& link, failure_kind kind, lane_op op, i32 peer, u32 expected,
                                           u64 seen) {
    if (atomicExch(&link.control->failed, 1u) != 0) {
        return;
    }
    failure_record* record = link.record;
    record->kind = kind;
    record->lane = link.lane;
    record->rank = link.me;
    record->peer = peer;
    record->op = op;
    record->seen_op = static_cast<lane_op>(static_cast<u32>(seen));
    record->expected = expected;
    record->seen = static_cast<u32>(seen >> 32);
    st_release_sys(&record->set, 1);
#pragma unroll 1
    for (i32 p = 0; p < link.num_ranks; ++p) {
        if (link.peers[p] != nullptr) {
            st_release_sys_64(reinterpret_cast<u64*>(link.peers[p] + window_poison_offset),
                              static_cast<u64>(link.me) + 1);
        }
    }
}

/// What says that the exchange has failed.
struct failure_signs {
    u32 failed;
    u64 poison;
};

/// Loads both at once: a kernel starts with this.
__device__ __forceinline__ failure_signs load_failure_signs(const rank_link& link) {
    const u32 failed = ld_relaxed_gpu(&link.control->failed);
    return {failed, ld_relaxed_sys_64(link.poison)};
}

/// Whether the signs say so; a peer's failure is noted here too.
__device__ inline bool shows_failure(const failure_signs& signs, const rank_link& link, lane_op op) {
    if (signs.failed != 0) {
        return true;
    }
    if (signs.poison != 0) {
        fail_exchange(link, failure_kind::peer, op, static_cast<i32>(signs.poison) - 1, 0, 0);
        return true;
    }
    return false;
}

/// True when the exchange has failed here or on a peer; any thread may ask at the start of a kernel.
__device__ inline bool exchange_failed(const rank_link& link, lane_op op) {
    return shows_failure(load_failure_signs(link), link, op);
}

/// Takes the step towards one peer: what this thread has seen or written is visible to whoever sees the word.
__device__ __forceinline__ void signal_step(const rank_link& link, i32 peer, u32 step, lane_op op) {
    u64* word = reinterpret_cast<u64*>(link.peers[peer] + link.words_offset) + link.me;
    st_release_sys_64(word, step_word(step, op));
}

/// The same where whoever sees the word needs no more than that all kernels before this one have ended: those have read
/// what they read, and what they wrote has arrived. Nothing that this kernel stores is waited for.
__device__ __forceinline__ void note_step(const rank_link& link, i32 peer, u32 step, lane_op op) {
    u64* word = reinterpret_cast<u64*>(link.peers[peer] + link.words_offset) + link.me;
    st_relaxed_sys_64(word, step_word(step, op));
}

/// By one thread of a plan's kernel: nothing has been told of it yet. Whoever is behind it must see that before it is
/// let in.
__device__ __forceinline__ void forget_told(const rank_link& link) {
    link.control->lanes[link.lane].told = 0;
}

/// By one thread when what told_word() says is so, and its block has met.
__device__ __forceinline__ void tell(const rank_link& link, u32 step) {
    st_release_gpu_64(&link.control->lanes[link.lane].told, told_word(step));
}

/// By a thread of a dispatch that was launched beside its plan: until `look` finds what that tells. False: the kernel
/// in front is to be waited for, because the exchange has failed or nothing comes within the limit.
template <class Look>
__device__ __forceinline__ bool await_plan(const rank_link& link, u64 limit_ns, const Look& look) {
    if (look()) {
        return true;
    }
    const u64 start = global_time_ns();
#pragma unroll 1
    for (u32 spin = 1; !look(); ++spin) {
        if (spin % 16 == 0 && (ld_relaxed_gpu(&link.control->failed) != 0 || global_time_ns() - start > limit_ns)) {
            return false;
        }
    }
    return true;
}

/// The same for the word of a plan of many tokens, and what was written by then. `step`: that the plan ends with. False
/// too where the plan is not the lane's last step.
__device__ inline bool await_told(const rank_link& link, u32& step) {
    const auto& lane = link.control->lanes[link.lane];
    u64 told = 0;
    const bool came = await_plan(link, link.control->limit_ns, [&] {
        told = ld_acquire_gpu_64(&lane.told);
        return (told & plan_placed) != 0;
    });
    step = static_cast<u32>(told);
    // A plan takes one or two steps, both at its end; one that others have followed lies behind.
    return came && step - ld_relaxed_gpu(&lane.step) <= 2;
}

/// By all threads of a block of a dispatch, which has met afterwards: waits for what the plan in front tells where
/// `follows`, else or where that is not to be had for the kernel in front. Lets the kernel behind in. Returns the step
/// that the lane is at when the plan has ended.
__device__ __forceinline__ u32 wait_for_plan(const rank_link& link, bool follows) {
    __shared__ u32 plan_step;
    bool waits = true;
    u32 step = 0;
    if (follows) {
        if (threadIdx.x == 0) {
            waits = !await_told(link, step);
            plan_step = step;
        }
        waits = __syncthreads_or(threadIdx.x == 0 && waits ? 1 : 0) != 0;
        step = plan_step;
        let_kernel_behind_in();
    }
    if (waits) {
        wait_for_kernel_before();
        step = link.control->lanes[link.lane].step;
    }
    return step;
}

/// Waits until `peer` has taken the step, whatever it was where `op` is none. False: it did not, or took another one;
/// the exchange has failed.
__device__ inline bool wait_step(const rank_link& link, i32 peer, u32 step, lane_op op) {
    const u64* word = link.words + peer;
    u64 seen = ld_acquire_sys_64(word);
    if (static_cast<i32>(static_cast<u32>(seen >> 32) - step) < 0) {
        const u64 limit = step <= 4 ? link.control->first_limit_ns : link.control->limit_ns;
        const u64 start = global_time_ns();
        for (u32 spin = 1;; ++spin) {
            seen = ld_acquire_sys_64(word);
            if (static_cast<i32>(static_cast<u32>(seen >> 32) - step) >= 0) {
                break;
            }
            if (spin % 16 != 0) {
                continue;
            }
            if (exchange_failed(link, op)) {
                return false;
            }
            if (global_time_ns() - start > limit) {
                fail_exchange(link, failure_kind::timeout, op, peer, step, seen);
                return false;
            }
        }
    }
    if (op != lane_op::none && static_cast<u32>(seen >> 32) == step && static_cast<u32>(seen) != static_cast<u32>(op)) {
        fail_exchange(link, failure_kind::mismatch, op, peer, step, seen);
        return false;
    }
    return true;
}

/// All threads of the block call it; threads p < R wait for rank p. False when any wait failed. Everything the peers
/// wrote before the step is visible to the block afterwards.
__device__ inline bool wait_all(const rank_link& link, u32 step, lane_op op, bool own_too) {
    bool ok = true;
#pragma unroll 1
    for (i32 p = static_cast<i32>(threadIdx.x); p < link.num_ranks; p += static_cast<i32>(blockDim.x)) {
        if (p != link.me ? link.peers[p] != nullptr : own_too) {
            ok = wait_step(link, p, step, op) && ok;
        }
    }
    return __syncthreads_and(ok ? 1 : 0) != 0;
}

/// The same for one whole warp, which waits for the peers alone.
__device__ inline bool wait_peers(const rank_link& link, u32 step, lane_op op) {
    bool ok = true;
#pragma unroll 1
    for (i32 p = static_cast<i32>(lane_idx()); p < link.num_ranks; p += 32) {
        if (p != link.me && link.peers[p] != nullptr) {
            ok = wait_step(link, p, step, op) && ok;
        }
    }
    return __all_sync(full_warp, ok);
}

#endif

}  // namespace epjit::templates
