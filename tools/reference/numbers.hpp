// SPDX-License-Identifier: Apache-2.0
// Number formats of the reference: values by tables of doubles, rounding by division by a unit in the last place.
// Written from the formats' definitions, so that it shares neither code nor method with the exchanges.
#pragma once

#include "epjit/types.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace epjit::tools::reference {

/// The value of an element's bits; the low size_of(type) bytes of `bits` count.
float decode(dtype type, std::uint32_t bits) noexcept;
/// Round to nearest even; bf16 and fp16 overflow to infinity, fp8 saturates at +-448; NaN becomes 0x7fff (bf16, fp16),
/// 0x7fffffff (f32), 0x7f (fp8).
std::uint32_t encode(dtype type, float value) noexcept;

/// Element `index` of an array of `type`, as bits.
std::uint32_t load_bits(dtype type, const std::byte* data, std::int64_t index) noexcept;
void store_bits(dtype type, std::byte* data, std::int64_t index, std::uint32_t bits) noexcept;
bool is_nan(dtype type, std::uint32_t bits) noexcept;

/// The value of a scale's bits.
float decode_scale(scale_type type, const std::byte* scales, std::int64_t index) noexcept;

/// The quantiser of contract 16 for one group of at most 128 values.
void quantise_group(std::span<const float> values, scale_type type, std::byte* elements, std::byte* scale) noexcept;

}  // namespace epjit::tools::reference
