// SPDX-License-Identifier: Apache-2.0
#include "tools/reference/numbers.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace epjit::tools::reference {
namespace {

/// A binary format by its definition: value = (-1)^sign * (1 + fraction / 2^fraction_bits) * 2^(exponent - bias).
struct format {
    int fraction_bits;
    int exponent_bits;
    int bias;
    double largest;
    bool has_infinity;
    std::uint32_t nan;
};

constexpr format bf16_format{7, 8, 127, 0x1.fep127, true, 0x7fff};
constexpr format fp16_format{10, 5, 15, 65504.0, true, 0x7fff};
constexpr format fp8_format{3, 4, 7, 448.0, false, 0x7f};

double value_of(const format& f, std::uint32_t bits) {
    const std::uint32_t fraction = bits & ((1u << f.fraction_bits) - 1);
    const int exponent = static_cast<int>(bits >> f.fraction_bits) & ((1 << f.exponent_bits) - 1);
    const bool negative = ((bits >> (f.fraction_bits + f.exponent_bits)) & 1u) != 0;
    const double sign = negative ? -1.0 : 1.0;
    if (exponent == (1 << f.exponent_bits) - 1) {
        if (f.has_infinity) {
            return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                                 : std::numeric_limits<double>::quiet_NaN();
        }
        if (fraction == (1u << f.fraction_bits) - 1) {
            return std::numeric_limits<double>::quiet_NaN();
        }
    }
    const int implied = exponent == 0 ? 0 : 1 << f.fraction_bits;
    return sign * std::ldexp(static_cast<double>(implied + static_cast<int>(fraction)),
                             (exponent == 0 ? 1 : exponent) - f.bias - f.fraction_bits);
}

std::vector<float> table_of(const format& f) {
    std::vector<float> table(std::size_t{1} << (1 + f.exponent_bits + f.fraction_bits));
    for (std::uint32_t bits = 0; bits < table.size(); ++bits) {
        table[bits] = static_cast<float>(value_of(f, bits));
    }
    return table;
}

double power_of_two(int exponent) {
    return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

std::uint32_t round_to(const format& f, float value) {
    if (std::isnan(value)) {
        return f.nan;
    }
    const std::uint32_t sign = std::signbit(value) ? 1u << (f.fraction_bits + f.exponent_bits) : 0u;
    const double magnitude = std::fabs(static_cast<double>(value));
    if (std::isinf(magnitude)) {
        const std::uint32_t top = ((1u << f.exponent_bits) - 1) << f.fraction_bits;
        return sign | (f.has_infinity ? top : round_to(f, static_cast<float>(f.largest)));
    }
    if (magnitude == 0) {
        return sign;
    }
    // A float is a normal double, whatever it was as a float.
    const int exponent = static_cast<int>(std::bit_cast<std::uint64_t>(magnitude) >> 52) - 1023;
    const int smallest_normal = 1 - f.bias;
    const int unit = std::max(exponent, smallest_normal) - f.fraction_bits;
    // A quotient by a power of two is exact; beyond 2^52 a double holds whole numbers only, so the sum rounds to even.
    const double units = (magnitude * power_of_two(-unit) + 0x1p52) - 0x1p52;
    if (units * power_of_two(unit) > f.largest) {
        return sign | (f.has_infinity ? ((1u << f.exponent_bits) - 1) << f.fraction_bits
                                      : round_to(f, static_cast<float>(f.largest)));
    }
    const auto whole = static_cast<std::uint32_t>(units);
    // At the smallest exponent `whole` may lack the implied one (denormal); a carry moves into the exponent by itself.
    const int stored = unit + f.fraction_bits + f.bias - 1;
    return sign | ((static_cast<std::uint32_t>(stored) << f.fraction_bits) + whole);
}

}  // namespace

float decode(dtype type, std::uint32_t bits) noexcept {
    static const std::vector<float> bf16_values = table_of(bf16_format);
    static const std::vector<float> fp16_values = table_of(fp16_format);
    static const std::vector<float> fp8_values = table_of(fp8_format);
    switch (type) {
        case dtype::bf16: return bf16_values[bits & 0xffffu];
        case dtype::fp16: return fp16_values[bits & 0xffffu];
        case dtype::fp8_e4m3: return fp8_values[bits & 0xffu];
        case dtype::f32: break;
    }
    return std::bit_cast<float>(bits);
}

std::uint32_t encode(dtype type, float value) noexcept {
    switch (type) {
        case dtype::bf16: return round_to(bf16_format, value);
        case dtype::fp16: return round_to(fp16_format, value);
        case dtype::fp8_e4m3: return round_to(fp8_format, value);
        case dtype::f32: break;
    }
    return std::isnan(value) ? 0x7fffffffu : std::bit_cast<std::uint32_t>(value);
}

std::uint32_t load_bits(dtype type, const std::byte* data, std::int64_t index) noexcept {
    std::uint32_t bits = 0;  // little endian, as every machine this runs on
    const auto bytes = static_cast<std::size_t>(size_of(type));
    std::memcpy(&bits, data + index * static_cast<std::int64_t>(bytes), bytes);
    return bits;
}

void store_bits(dtype type, std::byte* data, std::int64_t index, std::uint32_t bits) noexcept {
    const auto bytes = static_cast<std::size_t>(size_of(type));
    std::memcpy(data + index * static_cast<std::int64_t>(bytes), &bits, bytes);
}

bool is_nan(dtype type, std::uint32_t bits) noexcept {
    return std::isnan(decode(type, bits));
}

float decode_scale(scale_type type, const std::byte* scales, std::int64_t index) noexcept {
    if (type == scale_type::ue8m0) {
        const int exponent = static_cast<int>(scales[index]);
        return exponent == 255 ? std::numeric_limits<float>::quiet_NaN()
                               : static_cast<float>(std::ldexp(1.0, exponent - 127));
    }
    float scale = 1;
    if (type == scale_type::f32) {
        std::memcpy(&scale, scales + 4 * index, 4);
    }
    return scale;
}

void quantise_group(std::span<const float> values, scale_type type, std::byte* elements, std::byte* scale) noexcept {
    double largest = 0;
    for (const float v : values) {
        if (!std::isnan(v)) {
            largest = std::max(largest, std::fabs(static_cast<double>(v)));
        }
    }
    // Two roundings are one here: a quotient of floats is never that near to a tie of the narrower format.
    auto divisor = largest == 0 ? 1.0f : static_cast<float>(largest / 448.0);
    if (divisor == 0 && type == scale_type::f32) {
        divisor = 1;  // underflow: the group becomes zeros
    }
    if (type == scale_type::ue8m0) {
        int exponent = -127;
        while (exponent < 127 && std::ldexp(1.0, exponent) < static_cast<double>(divisor)) {
            ++exponent;
        }
        *scale = static_cast<std::byte>(exponent + 127);
        divisor = static_cast<float>(std::ldexp(1.0, exponent));
    } else {
        std::memcpy(scale, &divisor, sizeof(divisor));
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
        const auto quotient = static_cast<float>(static_cast<double>(values[i]) / static_cast<double>(divisor));
        elements[i] = static_cast<std::byte>(encode(dtype::fp8_e4m3, quotient));
    }
}

}  // namespace epjit::tools::reference
