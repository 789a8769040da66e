// SPDX-License-Identifier: Apache-2.0
// Element conversions of the CPU exchange, bit for bit those of the device: round to nearest even, denormals
// kept, bf16 and fp16 overflow to infinity, fp8 saturates to +-448, and every NaN is stored as one canonical
// pattern. Branches are selects, so that loops over a row vectorise.
#pragma once

#include <bit>
#include <cstdint>

namespace epjit::host::cpu {

#define EPJIT_INLINE inline __attribute__((always_inline))

inline constexpr std::uint32_t float_inf_bits = 0x7f800000u;
inline constexpr std::uint32_t float_nan_bits = 0x7fffffffu;
inline constexpr std::uint16_t half_nan_bits = 0x7fff;  ///< bf16 and fp16
inline constexpr std::uint8_t fp8_nan_bits = 0x7f;

EPJIT_INLINE float bf16_to_float(std::uint16_t v) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(v) << 16);
}

EPJIT_INLINE std::uint16_t float_to_bf16(float f) {
    const auto bits = std::bit_cast<std::uint32_t>(f);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > float_inf_bits ? half_nan_bits : static_cast<std::uint16_t>(rounded);
}

EPJIT_INLINE float fp16_to_float(std::uint16_t v) {
    const std::uint32_t magnitude = v & 0x7fffu;
    // Exact also for denormals: their bits read as a float denormal, times the difference of the exponent
    // biases.
    const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
    std::uint32_t bits = std::bit_cast<std::uint32_t>(scaled);
    bits = magnitude >= 0x7c00u ? (magnitude << 13) | float_inf_bits : bits;
    return std::bit_cast<float>(bits | (static_cast<std::uint32_t>(v & 0x8000u) << 16));
}

EPJIT_INLINE std::uint16_t float_to_fp16(float f) {
    const auto bits = std::bit_cast<std::uint32_t>(f);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the unit in the last place is 2^-24, that of 0.5f: adding 0.5f rounds there.
    const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const std::uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    std::uint32_t out = magnitude < 0x38800000u ? small : normal;
    out = magnitude >= 0x477ff000u ? 0x7c00u : out;
    out |= (bits >> 16) & 0x8000u;
    return magnitude > float_inf_bits ? half_nan_bits : static_cast<std::uint16_t>(out);
}

/// e4m3 without infinities: bias 7, 0x7f and 0xff are NaN.
EPJIT_INLINE float fp8_to_float(std::uint8_t v) {
    const std::uint32_t magnitude = v & 0x7fu;
    const float scaled = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
    std::uint32_t bits = std::bit_cast<std::uint32_t>(scaled);
    bits = magnitude == 0x7fu ? float_nan_bits : bits;
    return std::bit_cast<float>(bits | (static_cast<std::uint32_t>(v & 0x80u) << 24));
}

EPJIT_INLINE std::uint8_t float_to_fp8(float f) {
    const auto bits = std::bit_cast<std::uint32_t>(f);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Below 2^-6 the unit in the last place is 2^-9, that of 2^14.
    const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) - 0x46800000u;
    const std::uint32_t normal = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - (120u << 23)) >> 20;
    std::uint32_t out = magnitude < 0x3c800000u ? small : normal;
    out = magnitude >= 0x43e00000u ? 0x7eu : out;
    out |= (bits >> 24) & 0x80u;
    return magnitude > float_inf_bits ? fp8_nan_bits : static_cast<std::uint8_t>(out);
}

EPJIT_INLINE float canonical_float(float f) {
    const auto bits = std::bit_cast<std::uint32_t>(f);
    return std::bit_cast<float>((bits & 0x7fffffffu) > float_inf_bits ? float_nan_bits : bits);
}

/// One type's storage and conversions, for templates over the element type.
struct bf16_element {
    using storage = std::uint16_t;
    static EPJIT_INLINE float load(storage v) { return bf16_to_float(v); }
    static EPJIT_INLINE storage store(float f) { return float_to_bf16(f); }
};
struct fp16_element {
    using storage = std::uint16_t;
    static EPJIT_INLINE float load(storage v) { return fp16_to_float(v); }
    static EPJIT_INLINE storage store(float f) { return float_to_fp16(f); }
};
struct f32_element {
    using storage = float;
    static EPJIT_INLINE float load(storage v) { return v; }
    static EPJIT_INLINE storage store(float f) { return canonical_float(f); }
};
struct fp8_element {
    using storage = std::uint8_t;
    static EPJIT_INLINE float load(storage v) { return fp8_to_float(v); }
    static EPJIT_INLINE storage store(float f) { return float_to_fp8(f); }
};

}  // namespace epjit::host::cpu
