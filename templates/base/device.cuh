// SPDX-License-Identifier: Apache-2.0
// Thin wrappers of single instructions. Names state order and scope; every one that touches memory clobbers it.
#pragma once

#include "base/types.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

inline constexpr u32 full_warp = 0xffffffffu;

__device__ __forceinline__ u32 lane_idx() {
    u32 lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

__device__ __forceinline__ u64 global_time_ns() {
    u64 t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

__device__ __forceinline__ u32 ld_acquire_gpu(const u32* p) {
    u32 v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ u64 ld_acquire_gpu_64(const u64* p) {
    u64 v;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ void st_release_gpu_64(u64* p, u64 value) {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}

__device__ __forceinline__ u32 add_acq_rel_gpu(u32* p, u32 value) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
    return old;
}

__device__ __forceinline__ u32 add_relaxed_gpu(u32* p, u32 value) {
    u32 old;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
    return old;
}

__device__ __forceinline__ void st_release_sys(u32* p, u32 value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

__device__ __forceinline__ u32 ld_relaxed_gpu(const u32* p) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ u64 ld_relaxed_gpu_64(const u64* p) {
    u64 v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ void st_relaxed_gpu_64(u64* p, u64 value) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}

__device__ __forceinline__ u32 ld_acquire_sys(const u32* p) {
    u32 v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ u64 ld_relaxed_sys_64(const u64* p) {
    u64 v;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ u64 ld_acquire_sys_64(const u64* p) {
    u64 v;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ void st_relaxed_sys_64(u64* p, u64 value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}

__device__ __forceinline__ void st_release_sys_64(u64* p, u64 value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}

// A 16-byte access that one thread performs is one access to memory, whole or not at all, where its type is the scalar
// .b128 (PTX ISA, memory consistency model: single-copy atomicity; a vector of four words is modelled as four
// accesses). Data and the flag that announces it may share the 16 bytes: no release, no acquire, one flight.

__device__ __forceinline__ uint4 ld_relaxed_sys_128(const void* p) {
    u64 low, high;
    asm volatile(
        "{\n"
        ".reg .b128 whole;\n"
        "ld.relaxed.sys.global.b128 whole, [%2];\n"
        "mov.b128 {%0, %1}, whole;\n"
        "}"
        : "=l"(low), "=l"(high)
        : "l"(p)
        : "memory");
    return {static_cast<u32>(low), static_cast<u32>(low >> 32), static_cast<u32>(high), static_cast<u32>(high >> 32)};
}

__device__ __forceinline__ void st_relaxed_sys_128(void* p, uint4 v) {
    asm volatile(
        "{\n"
        ".reg .b128 whole;\n"
        "mov.b128 whole, {%1, %2};\n"
        "st.relaxed.sys.global.b128 [%0], whole;\n"
        "}" ::"l"(p),
        "l"(static_cast<u64>(v.y) << 32 | v.x), "l"(static_cast<u64>(v.w) << 32 | v.z)
        : "memory");
}

__device__ __forceinline__ void fence_sys() {
    asm volatile("fence.acq_rel.sys;" ::: "memory");
}

/// A barrier of the block's `threads` that its parts may come to from different places of the program.
__device__ __forceinline__ void meet_block(i32 threads) {
    asm volatile("barrier.sync 1, %0;" ::"r"(threads) : "memory");
}

__device__ __forceinline__ void prefetch_l1(const void* p) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(p));
}

/// The 128 bytes at `p`, a multiple of 128, are nobody's any more: what the L2 has of them need not reach the memory.
__device__ __forceinline__ void discard_l2_128(const void* p) {
    asm volatile("discard.global.L2 [%0], 128;" ::"l"(p) : "memory");
}

/// Rows are read once: keep them out of L1.
__device__ __forceinline__ uint4 ld_streaming_16(const void* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
__device__ __forceinline__ uint2 ld_streaming_8(const void* p) {
    uint2 v;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ u32 ld_streaming_4(const void* p) {
    u32 v;
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

/// Of a kernel that was launched before the one in front of it on the stream has ended: waits for that end. Nothing
/// where it was launched in the ordinary way.
__device__ __forceinline__ void wait_for_kernel_before_alone() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the kernel behind this one be launched, once a thread of every block has come here or the block has ended.
__device__ __forceinline__ void let_kernel_behind_in() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Both: the first thing a kernel does.
__device__ __forceinline__ void wait_for_kernel_before() {
    wait_for_kernel_before_alone();
    let_kernel_behind_in();
}

__device__ __forceinline__ void st_relaxed_sys(u32* p, u32 value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void st_release_block(i32* shared, i32 value) {
    asm volatile("st.release.cta.shared.s32 [%0], %1;" ::"r"(shared_address(shared)), "r"(value) : "memory");
}

__device__ __forceinline__ i32 ld_acquire_block(const i32* shared) {
    i32 v;
    asm volatile("ld.acquire.cta.shared.s32 %0, [%1];" : "=r"(v) : "r"(shared_address(shared)) : "memory");
    return v;
}

/// Gives the other warps of the SM their turn.
__device__ __forceinline__ void sleep_ns(u32 ns) {
    asm volatile("nanosleep.u32 %0;" ::"r"(ns));
}

// Small copies from global to shared memory that the thread does not wait for.

template <i32 Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes)
                 : "memory");
}

/// Arrives at the barrier when all of this thread's copy_async before it are done; one of the arrivals it was made for.
__device__ __forceinline__ void copy_async_arrive(u64* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Bulk copies (sm_90 and later). One thread issues them; sizes and addresses are multiples of 16 bytes.

__device__ __forceinline__ void mbarrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

/// More bytes are to come before the barrier's phase ends; arrives not.
__device__ __forceinline__ void mbarrier_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/// Whether the phase with the given parity has ended.
__device__ __forceinline__ bool mbarrier_done(u64* barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done != 0;
}

/// Waits for the phase with the given parity. Bounded by the hardware copy it waits for: the bytes were asked for by
/// this block, so no other block or rank can withhold them. Of a phase that warps of the block end, by their waits.
__device__ __forceinline__ void mbarrier_wait(u64* barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

/// Orders what ordinary accesses of this thread to global memory have seen before its copies that follow.
__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

/// The same of shared memory alone.
__device__ __forceinline__ void fence_proxy_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Global to shared, completing on `barrier`.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, u32 bytes, u64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

/// Shared to global, completing with the thread's bulk group. The lines leave the L2 first: an output larger than it
/// gains nothing there, and on an H200 the copies of 14 KiB rows ran 2% faster.
__device__ __forceinline__ void bulk_store(void* global, const void* shared, u32 bytes) {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(global),
                 "r"(shared_address(shared)), "r"(bytes), "l"(policy)
                 : "memory");
}

/// The same where the lines are soon read from the L2.
__device__ __forceinline__ void bulk_store_kept(void* global, const void* shared, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
                 "r"(shared_address(shared)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// At most `Pending` of the thread's latest groups may still be reading shared memory.
template <i32 Pending>
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

template <i32 Pending>
__device__ __forceinline__ void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

#endif
#endif

}  // namespace epjit::templates
