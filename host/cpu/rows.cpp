// SPDX-License-Identifier: Apache-2.0
#include "host/cpu/rows.hpp"

#include "host/cpu/convert.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace epjit::host::cpu {
namespace {

constexpr std::int64_t scale_group = 128;
constexpr int num_lanes = 32;
constexpr int lane_width = 8;

template <class Element>
EPJIT_INLINE void accumulate_body(float* __restrict acc, const void* row, float weight, std::int64_t n) {
    const auto* __restrict x = static_cast<const typename Element::storage*>(row);
    for (std::int64_t i = 0; i < n; ++i) {
        acc[i] = std::fma(weight, Element::load(x[i]), acc[i]);
    }
}

template <class Element>
EPJIT_INLINE void add_rounded_body(float* __restrict sum, const float* __restrict acc, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
        sum[i] += Element::load(Element::store(acc[i]));
    }
}

template <class Element>
EPJIT_INLINE void store_body(void* row, const float* __restrict acc, std::int64_t n) {
    auto* __restrict y = static_cast<typename Element::storage*>(row);
    for (std::int64_t i = 0; i < n; ++i) {
        y[i] = Element::store(acc[i]);
    }
}

template <class Element>
EPJIT_INLINE void load_scaled_body(float* __restrict out, const void* row, float weight, std::int64_t n) {
    const auto* __restrict x = static_cast<const typename Element::storage*>(row);
    for (std::int64_t i = 0; i < n; ++i) {
        out[i] = Element::load(x[i]) * weight;
    }
}

template <class Element>
EPJIT_INLINE float dot_body(const void* a, const void* b, std::int64_t n) {
    const auto* __restrict x = static_cast<const typename Element::storage*>(a);
    const auto* __restrict y = static_cast<const typename Element::storage*>(b);
    float lanes[num_lanes] = {};
    for (std::int64_t h = 0; h < n;) {
        // 32 lanes take 8 elements each; one step of `j` touches every lane once, so it vectorises over
        // lanes.
        const std::int64_t block = std::min<std::int64_t>(num_lanes * lane_width, n - h);
        if (block == num_lanes * lane_width) {
            for (int j = 0; j < lane_width; ++j) {
                for (int lane = 0; lane < num_lanes; ++lane) {
                    const std::int64_t i = h + lane * lane_width + j;
                    lanes[lane] = std::fma(Element::load(x[i]), Element::load(y[i]), lanes[lane]);
                }
            }
        } else {
            for (std::int64_t i = 0; i < block; ++i) {
                float& lane = lanes[i / lane_width];
                lane = std::fma(Element::load(x[h + i]), Element::load(y[h + i]), lane);
            }
        }
        h += block;
    }
    for (int distance = num_lanes / 2; distance > 0; distance /= 2) {
        for (int lane = 0; lane < distance; ++lane) {
            lanes[lane] += lanes[lane + distance];
        }
    }
    return canonical_float(lanes[0]);
}

/// IEEE division by the group's scale; NaNs do not take part in the maximum and stay NaN.
EPJIT_INLINE void quantise_body(std::uint8_t* __restrict out, void* scales, scale_type type,
                                const float* __restrict row, std::int64_t n) {
    for (std::int64_t first = 0, group = 0; first < n; first += scale_group, ++group) {
        const std::int64_t last = std::min(n, first + scale_group);
        float amax = 0;
        for (std::int64_t i = first; i < last; ++i) {
            const float magnitude = std::fabs(row[i]);
            amax = magnitude > amax ? magnitude : amax;
        }
        float scale = amax == 0 ? 1.0f : amax / 448.0f;
        // A group so small that its scale underflows becomes zeros.
        scale = scale == 0 && type == scale_type::f32 ? 1.0f : scale;
        if (type == scale_type::ue8m0) {
            const auto bits = std::bit_cast<std::uint32_t>(scale);
            const std::uint32_t up = (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1u : 0u);
            // Denormals: everything up to 2^-127 (bits 0x400000) takes exponent 0; infinity saturates.
            const std::uint32_t exponent = bits <= 0x400000u ? 0u : std::min(up, 254u);
            static_cast<std::uint8_t*>(scales)[group] = static_cast<std::uint8_t>(exponent);
            scale = std::bit_cast<float>(exponent == 0 ? 0x400000u : exponent << 23);
        } else {
            std::memcpy(static_cast<char*>(scales) + 4 * group, &scale, 4);
        }
        for (std::int64_t i = first; i < last; ++i) {
            out[i] = float_to_fp8(row[i] / scale);
        }
    }
}

// Bodies are compiled once for each target; `EPJIT_TARGET` is the attribute of the second.
#define EPJIT_DEFINE_OPERATIONS(Space, Attribute)                                                                 \
    namespace Space {                                                                                             \
    template <class Element>                                                                                      \
    Attribute void accumulate(float* acc, const void* row, float weight, std::int64_t n) {                        \
        accumulate_body<Element>(acc, row, weight, n);                                                            \
    }                                                                                                             \
    template <class Element>                                                                                      \
    Attribute void add_rounded(float* sum, const float* acc, std::int64_t n) {                                    \
        add_rounded_body<Element>(sum, acc, n);                                                                   \
    }                                                                                                             \
    template <class Element>                                                                                      \
    Attribute void store(void* row, const float* acc, std::int64_t n) {                                           \
        store_body<Element>(row, acc, n);                                                                         \
    }                                                                                                             \
    template <class Element>                                                                                      \
    Attribute void load_scaled(float* out, const void* row, float weight, std::int64_t n) {                       \
        load_scaled_body<Element>(out, row, weight, n);                                                           \
    }                                                                                                             \
    template <class Element>                                                                                      \
    Attribute float dot(const void* a, const void* b, std::int64_t n) {                                           \
        return dot_body<Element>(a, b, n);                                                                        \
    }                                                                                                             \
    template <class Element>                                                                                      \
    constexpr row_operations make() {                                                                             \
        return {accumulate<Element>, add_rounded<Element>, store<Element>, load_scaled<Element>, dot<Element>};   \
    }                                                                                                             \
    constexpr row_operations table[] = {make<bf16_element>(), make<fp16_element>(), make<f32_element>(),          \
                                        make<fp8_element>()};                                                     \
    Attribute void quantise(std::uint8_t* out, void* scales, scale_type type, const float* row, std::int64_t n) { \
        quantise_body(out, scales, type, row, n);                                                                 \
    }                                                                                                             \
    }

EPJIT_DEFINE_OPERATIONS(portable, )
#if defined(__x86_64__)
EPJIT_DEFINE_OPERATIONS(fused, __attribute__((target("avx2,fma"))))
bool has_fused() noexcept {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#else
namespace fused = portable;
bool has_fused() noexcept {
    return false;
}
#endif
#undef EPJIT_DEFINE_OPERATIONS

}  // namespace

const row_operations& operations_of(dtype type) noexcept {
    return (has_fused() ? fused::table : portable::table)[static_cast<std::size_t>(type)];
}

const row_operations& portable_operations_of(dtype type) noexcept {
    return portable::table[static_cast<std::size_t>(type)];
}

void quantise(std::uint8_t* out, void* scales, scale_type type, const float* row, std::int64_t n) noexcept {
    (has_fused() ? fused::quantise : portable::quantise)(out, scales, type, row, n);
}

}  // namespace epjit::host::cpu
