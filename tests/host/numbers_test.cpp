// SPDX-License-Identifier: Apache-2.0
// The CPU exchange's conversions and the reference's, exhaustively, each against the definition of rounding: the
// nearest representable value, and of two equally near the one with an even last bit.
#include "tools/reference/numbers.hpp"

#include "host/cpu/convert.hpp"
#include "host/cpu/rows.hpp"
#include "tests/host/cases.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace epjit {
namespace {

namespace cpu = host::cpu;
namespace ref = tools::reference;

struct converter {
    const char* name;
    dtype type;
    std::uint32_t (*encode)(float);
    float (*decode)(std::uint32_t);
};

template <class Element>
converter host_converter(const char* name, dtype type) {
    return {name, type, [](float f) -> std::uint32_t { return Element::store(f); },
            [](std::uint32_t bits) { return Element::load(static_cast<typename Element::storage>(bits)); }};
}

template <dtype Type>
converter reference_converter(const char* name) {
    return {name, Type, [](float f) { return ref::encode(Type, f); },
            [](std::uint32_t bits) { return ref::decode(Type, bits); }};
}

std::vector<converter> all_converters() {
    return {host_converter<cpu::bf16_element>("host bf16", dtype::bf16),
            host_converter<cpu::fp16_element>("host fp16", dtype::fp16),
            host_converter<cpu::fp8_element>("host fp8", dtype::fp8_e4m3),
            reference_converter<dtype::bf16>("reference bf16"),
            reference_converter<dtype::fp16>("reference fp16"),
            reference_converter<dtype::fp8_e4m3>("reference fp8")};
}

/// Magnitudes of a format in ascending order, from its sign-magnitude bits: everything below infinity or NaN.
std::uint32_t num_finite(dtype type) {
    return type == dtype::bf16 ? 0x7f80u : type == dtype::fp16 ? 0x7c00u : 0x7fu;
}
std::uint32_t sign_of(dtype type) {
    return type == dtype::fp8_e4m3 ? 0x80u : 0x8000u;
}
std::uint32_t nan_of(dtype type) {
    return type == dtype::fp8_e4m3 ? 0x7fu : 0x7fffu;
}

TEST(numbers, every_value_survives_a_round_trip_and_every_nan_becomes_one) {
    for (const converter& c : all_converters()) {
        SCOPED_TRACE(c.name);
        for (std::uint32_t bits = 0; bits < 2 * sign_of(c.type); ++bits) {
            const float value = c.decode(bits);
            ASSERT_EQ(c.encode(value), std::isnan(value) ? nan_of(c.type) : bits);
        }
    }
}

TEST(numbers, values_are_those_of_the_format) {
    EXPECT_EQ(cpu::fp8_to_float(0x01), 0x1p-9f);
    EXPECT_EQ(cpu::fp8_to_float(0x08), 0x1p-6f);
    EXPECT_EQ(cpu::fp8_to_float(0x7e), 448.0f);
    EXPECT_EQ(cpu::fp8_to_float(0xfe), -448.0f);
    EXPECT_TRUE(std::isnan(cpu::fp8_to_float(0xff)));
    EXPECT_EQ(cpu::fp16_to_float(0x0001), 0x1p-24f);
    EXPECT_EQ(cpu::fp16_to_float(0x7bff), 65504.0f);
    EXPECT_EQ(cpu::fp16_to_float(0xfc00), -std::numeric_limits<float>::infinity());
    EXPECT_EQ(cpu::bf16_to_float(0x0001), 0x1p-133f);
    for (const dtype type : {dtype::bf16, dtype::fp16, dtype::fp8_e4m3}) {
        for (std::uint32_t bits = 1; bits < num_finite(type); ++bits) {
            // Magnitudes ascend with their bits, and neighbours differ by the unit in the last place.
            ASSERT_LT(ref::decode(type, bits - 1), ref::decode(type, bits));
            ASSERT_EQ(ref::decode(type, bits | sign_of(type)), -ref::decode(type, bits));
        }
    }
}

TEST(numbers, both_sides_decode_alike) {
    const auto converters = all_converters();
    for (std::size_t i = 0; i < 3; ++i) {
        for (std::uint32_t bits = 0; bits < 2 * sign_of(converters[i].type); ++bits) {
            const float a = converters[i].decode(bits);
            const float b = converters[i + 3].decode(bits);
            ASSERT_TRUE((std::isnan(a) && std::isnan(b)) ||
                        std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b))
                << converters[i].name << " " << bits;
        }
    }
}

TEST(numbers, ties_go_to_even_and_everything_else_to_the_nearest) {
    for (const converter& c : all_converters()) {
        SCOPED_TRACE(c.name);
        for (std::uint32_t bits = 0; bits + 1 < num_finite(c.type); ++bits) {
            const double low = c.decode(bits);
            const double high = c.decode(bits + 1);
            const auto middle = static_cast<float>((low + high) / 2);
            if (static_cast<double>(middle) != (low + high) / 2) {
                continue;  // between float denormals: not a tie that a float can express
            }
            const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
            ASSERT_EQ(c.encode(middle), even) << bits;
            ASSERT_EQ(c.encode(-middle), even | sign_of(c.type)) << bits;
            ASSERT_EQ(c.encode(std::nextafter(middle, 0.0f)), bits);
            ASSERT_EQ(c.encode(std::nextafter(middle, std::numeric_limits<float>::infinity())), bits + 1);
        }
    }
}

TEST(numbers, overflow_is_infinity_for_16_bits_and_448_for_fp8) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (const auto encode : {+[](float f) -> std::uint32_t { return cpu::float_to_fp16(f); },
                              +[](float f) { return ref::encode(dtype::fp16, f); }}) {
        EXPECT_EQ(encode(65519.996f), 0x7bffu);
        EXPECT_EQ(encode(65520.0f), 0x7c00u);
        EXPECT_EQ(encode(-infinity), 0xfc00u);
    }
    for (const auto encode : {+[](float f) -> std::uint32_t { return cpu::float_to_bf16(f); },
                              +[](float f) { return ref::encode(dtype::bf16, f); }}) {
        EXPECT_EQ(encode(std::numeric_limits<float>::max()), 0x7f80u);
        EXPECT_EQ(encode(0x1.fep127f), 0x7f7fu);
        EXPECT_EQ(encode(-infinity), 0xff80u);
    }
    for (const auto encode : {+[](float f) -> std::uint32_t { return cpu::float_to_fp8(f); },
                              +[](float f) { return ref::encode(dtype::fp8_e4m3, f); }}) {
        for (const float f : {448.0f, 463.9f, 464.0f, 465.0f, 1e30f, infinity}) {
            EXPECT_EQ(encode(f), 0x7eu);
            EXPECT_EQ(encode(-f), 0xfeu);
        }
    }
}

TEST(numbers, random_floats_encode_alike) {
    std::mt19937_64 draw(tests::suite_seed());
    const auto converters = all_converters();
    for (int i = 0; i < 1'000'000; ++i) {
        const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(draw()));
        for (std::size_t c = 0; c < 3; ++c) {
            ASSERT_EQ(converters[c].encode(value), converters[c + 3].encode(value))
                << converters[c].name << " " << value;
        }
    }
}

TEST(numbers, quantised_groups_agree_and_use_the_whole_range) {
    std::mt19937_64 draw(tests::suite_seed());
    for (int i = 0; i < 4000; ++i) {
        const auto n = static_cast<std::size_t>(1 + draw() % 128);
        const int exponent = static_cast<int>(draw() % 240) - 120;
        std::vector<float> values(n);
        for (float& v : values) {
            v = std::ldexp(static_cast<float>(static_cast<std::int64_t>(draw() % 2001) - 1000), exponent - 10);
        }
        if (draw() % 10 == 0) {
            values[0] = std::numeric_limits<float>::quiet_NaN();
        }
        for (const scale_type type : {scale_type::f32, scale_type::ue8m0}) {
            std::vector<std::uint8_t> a(n);
            std::vector<std::byte> b(n);
            std::byte scale_a[4]{};
            std::byte scale_b[4]{};
            cpu::quantise(a.data(), scale_a, type, values.data(), static_cast<std::int64_t>(n));
            ref::quantise_group(values, type, b.data(), scale_b);
            ASSERT_EQ(std::memcmp(scale_a, scale_b, 4), 0) << n << " " << exponent;
            ASSERT_EQ(std::memcmp(a.data(), b.data(), n), 0) << n << " " << exponent;
            float amax = 0;
            for (const float v : values) {
                amax = std::isnan(v) ? amax : std::max(amax, std::fabs(v));
            }
            if (type == scale_type::f32 && amax > 0) {
                int largest = 0;
                for (const std::uint8_t q : a) {
                    largest = (q & 0x7f) == 0x7f ? largest : std::max(largest, q & 0x7f);
                }
                EXPECT_EQ(largest, 0x7e);  // the largest value of a group becomes 448
            }
        }
    }
}

TEST(numbers, scales_of_zero_tiny_and_infinite_groups) {
    struct example {
        float value;
        std::uint8_t exponent;  ///< ue8m0
        float scale;            ///< f32
    };
    const float infinity = std::numeric_limits<float>::infinity();
    for (const example& e :
         {example{0.0f, 127, 1.0f}, example{448.0f, 127, 1.0f}, example{449.0f, 128, 449.0f / 448},
          example{infinity, 254, infinity}, example{0x1p-149f, 0, 1.0f}, example{0x1p-110f, 9, 0x1p-110f / 448}}) {
        std::uint8_t element = 0;
        std::uint8_t exponent = 0;
        float scale = 0;
        cpu::quantise(&element, &exponent, scale_type::ue8m0, &e.value, 1);
        cpu::quantise(&element, &scale, scale_type::f32, &e.value, 1);
        EXPECT_EQ(exponent, e.exponent) << e.value;
        EXPECT_EQ(scale, e.scale) << e.value;
    }
}

TEST(numbers, operations_with_and_without_fused_instructions_give_the_same_bytes) {
    std::mt19937_64 draw(tests::suite_seed());
    for (const dtype type : {dtype::bf16, dtype::fp16, dtype::f32}) {
        const cpu::row_operations& a = cpu::operations_of(type);
        const cpu::row_operations& b = cpu::portable_operations_of(type);
        for (int i = 0; i < 200; ++i) {
            const auto n = static_cast<std::size_t>(1 + draw() % 700);
            std::vector<std::uint32_t> row(n);
            std::vector<std::uint32_t> other(n);
            std::vector<float> sum_a(n, 0.0f);
            for (std::size_t j = 0; j < n; ++j) {
                row[j] = static_cast<std::uint32_t>(draw());
                other[j] = static_cast<std::uint32_t>(draw());
            }
            std::vector<float> sum_b = sum_a;
            const auto count = static_cast<std::int64_t>(n);
            a.accumulate(sum_a.data(), row.data(), 0.37f, count);
            b.accumulate(sum_b.data(), row.data(), 0.37f, count);
            a.accumulate(sum_a.data(), other.data(), -1.1f, count);
            b.accumulate(sum_b.data(), other.data(), -1.1f, count);
            std::vector<std::uint32_t> stored_a(n);
            std::vector<std::uint32_t> stored_b(n);
            a.store(stored_a.data(), sum_a.data(), count);
            b.store(stored_b.data(), sum_b.data(), count);
            ASSERT_EQ(stored_a, stored_b);
            ASSERT_EQ(std::bit_cast<std::uint32_t>(a.dot(row.data(), other.data(), count)),
                      std::bit_cast<std::uint32_t>(b.dot(row.data(), other.data(), count)));
        }
    }
}

}  // namespace
}  // namespace epjit
