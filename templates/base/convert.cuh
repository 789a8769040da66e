// SPDX-License-Identifier: Apache-2.0
// Element conversions: round to nearest even, denormals kept, NaN canonical, fp8 saturating.
#pragma once

#include "base/device.cuh"
#include "base/types.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

__device__ __forceinline__ float bits_to_float(u32 bits) {
    return __uint_as_float(bits);
}

__device__ __forceinline__ float bf16_to_float(u16 v) {
    return bits_to_float(static_cast<u32>(v) << 16);
}

__device__ __forceinline__ u16 float_to_bf16(float v) {
    u16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}

__device__ __forceinline__ float fp16_to_float(u16 v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}

__device__ __forceinline__ u16 float_to_fp16(float v) {
    u16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}

/// e4m3: 4 exponent bits (bias 7), 3 mantissa bits, no infinity, largest 448, NaN 0x7f. Used where the instruction is
/// missing (below sm_89).
__device__ __forceinline__ u8 float_to_fp8_generic(float v) {
    const u32 bits = __float_as_uint(v);
    const u32 sign = bits >> 24 & 0x80;
    const u32 magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return 0x7f;
    }
    if (magnitude >= 0x43e00000) {  // 448 and above
        return static_cast<u8>(sign | 0x7e);
    }
    u32 code;
    if (magnitude < 0x3c800000) {  // below 2^-6: denormal, multiples of 2^-9; adding 2^14 rounds at that bit
        code = __float_as_uint(bits_to_float(magnitude) + 16384.0f) - 0x46800000;
    } else {
        const u32 odd = magnitude >> 20 & 1;
        code = (magnitude + 0x7ffff + odd >> 20) - (120 << 3);
        code = min_of(code, 0x7eu);
    }
    return static_cast<u8>(sign | code);
}

/// Two values; `low` lands in the low byte.
__device__ __forceinline__ u16 floats_to_fp8x2(float low, float high) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
    return r;
#else
    return static_cast<u16>(float_to_fp8_generic(low) | float_to_fp8_generic(high) << 8);
#endif
}

/// One element of a type: its storage and its conversions through fp32.
template <element Type>
struct element_of;

template <>
struct element_of<element::bf16> {
    using storage = u16;
    static __device__ __forceinline__ float load(storage v) { return bf16_to_float(v); }
    static __device__ __forceinline__ storage store(float v) { return float_to_bf16(v); }
};

template <>
struct element_of<element::fp16> {
    using storage = u16;
    static __device__ __forceinline__ float load(storage v) { return fp16_to_float(v); }
    static __device__ __forceinline__ storage store(float v) { return float_to_fp16(v); }
};

template <>
struct element_of<element::f32> {
    using storage = u32;
    static __device__ __forceinline__ float load(storage v) { return bits_to_float(v); }
    static __device__ __forceinline__ storage store(float v) { return v != v ? 0x7fffffffu : __float_as_uint(v); }
};

template <>
struct element_of<element::fp8_e4m3> {
    using storage = u8;
};

/// The value after a round trip through the type: what a partial sum is worth on the wire.
template <element Type>
__device__ __forceinline__ float round_through(float v) {
    if constexpr (Type == element::f32) {
        return v;
    } else {
        return element_of<Type>::load(element_of<Type>::store(v));
    }
}

/// `Bytes` consecutive bytes moved as one access where `Bytes` allows, so that loads and stores keep their width.
template <i32 Bytes>
struct packet;

template <>
struct packet<16> {
    uint4 v;
};
template <>
struct packet<8> {
    uint2 v;
};
template <>
struct packet<4> {
    u32 v;
};
template <>
struct packet<2> {
    u16 v;
};
template <>
struct packet<1> {
    u8 v;
};

/// Widest packet that divides a row.
EPJIT_SHARED constexpr i32 row_packet_bytes(i64 row_bytes) {
    return row_bytes % 16 == 0 ? 16 : row_bytes % 8 == 0 ? 8 : row_bytes % 4 == 0 ? 4 : row_bytes % 2 == 0 ? 2 : 1;
}

template <i32 Bytes>
__device__ __forceinline__ packet<Bytes> load_packet(const void* p) {
    if constexpr (Bytes == 16) {
        return {ld_streaming_16(p)};
    } else {
        return *static_cast<const packet<Bytes>*>(p);
    }
}

template <i32 Bytes>
__device__ __forceinline__ void store_packet(void* p, packet<Bytes> v) {
    *static_cast<packet<Bytes>*>(p) = v;
}

/// The elements of a packet as fp32, and back.
template <element Type, i32 Bytes>
struct unpacked {
    static constexpr i32 count = Bytes / element_bytes(Type);
    struct raw {
        typename element_of<Type>::storage v[count];
    };
    static_assert(sizeof(raw) == Bytes && sizeof(packet<Bytes>) == Bytes);
    float values[count];

    __device__ __forceinline__ void unpack(packet<Bytes> p) {
        const raw r = __builtin_bit_cast(raw, p);
#pragma unroll
        for (i32 i = 0; i < count; ++i) {
            values[i] = element_of<Type>::load(r.v[i]);
        }
    }

    __device__ __forceinline__ packet<Bytes> pack() const {
        raw r;
#pragma unroll
        for (i32 i = 0; i < count; ++i) {
            r.v[i] = element_of<Type>::store(values[i]);
        }
        return __builtin_bit_cast(packet<Bytes>, r);
    }
};

#endif

}  // namespace epjit::templates
