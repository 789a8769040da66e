// SPDX-License-Identifier: Apache-2.0
// Fixed-width types and the few constants that device code and the host share. Includes nothing: it must compile
// with NVRTC and no header in reach, and with the host compiler.
#pragma once

#if defined(__CUDACC__)
#define EPJIT_SHARED __host__ __device__ __forceinline__
#else
#define EPJIT_SHARED inline
#endif

namespace epjit::templates {

/// Width of the caller's expert ids; a run-time argument, because converting on load costs nothing. Stands before the
/// type names that its enumerators share, or the host compiler takes them for shadowing.
enum class id_width : int { i16 = 0, i32 = 1, u32 = 2, i64 = 3 };

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

static_assert(sizeof(i16) == 2 && sizeof(i32) == 4 && sizeof(i64) == 8 && sizeof(void*) == 8);

/// Virtual ranks that one launch can drive: loopback carries every rank's pointers in the kernel's arguments.
inline constexpr i32 max_driven_ranks = 64;

/// Bounds of what a variant may be compiled for.
inline constexpr i32 max_topk = 32;
inline constexpr i32 max_experts = 2048;
/// Expert slots with replicas; a slot id must fit in 16 bits beside its rank.
inline constexpr i32 max_slots = 8192;

/// How dispatched rows lie; see design words. Values are shared with the host's `epjit::layout`.
enum class row_layout : i32 { expert_major = 0, flat = 1, masked = 2 };

/// Order of combine's sum. Values are shared with the host's `epjit::reduction`.
enum class sum_order : i32 { per_rank = 0, per_host = 1, per_row = 2 };

/// Element types. Values are shared with the host's `epjit::dtype`.
enum class element : i32 { bf16 = 0, fp16 = 1, f32 = 2, fp8_e4m3 = 3 };

/// Scale of one group of 128 elements of an fp8 row. Values are shared with the host's `epjit::scale_type`.
enum class group_scale : i32 { none = 0, f32 = 1, ue8m0 = 2 };

inline constexpr i32 scale_group = 128;

EPJIT_SHARED constexpr i32 element_bytes(element e) {
    return e == element::f32 ? 4 : e == element::fp8_e4m3 ? 1 : 2;
}

EPJIT_SHARED constexpr i32 scale_bytes(group_scale s) {
    return s == group_scale::f32 ? 4 : s == group_scale::ue8m0 ? 1 : 0;
}

/// Rows move the same way for one rank (permute, unpermute) and for R (dispatch, combine); only the table in the
/// arguments grows. Three lengths of it serve every R, so that one program serves many; 64 ranks take more than the 4
/// KiB of arguments that drivers before CUDA 12.1 allow.
EPJIT_SHARED constexpr i32 arguments_for_ranks(i32 num_ranks) {
    return num_ranks <= 8 ? 8 : num_ranks <= 32 ? 32 : max_driven_ranks;
}

template <class T>
EPJIT_SHARED constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

template <class T>
EPJIT_SHARED constexpr T min_of(T a, T b) {
    return a < b ? a : b;
}

template <class T>
EPJIT_SHARED constexpr T max_of(T a, T b) {
    return a > b ? a : b;
}

}  // namespace epjit::templates
