// SPDX-License-Identifier: Apache-2.0
// Arithmetic on whole rows. Each operation exists twice, for any CPU and for one with fused multiply-add
// instructions; both give the same bytes, since std::fma is exact either way.
#pragma once

#include "epjit/types.hpp"

#include <cstdint>

namespace epjit::host::cpu {

/// Operations on rows of one element type; n elements, no alignment beyond the element's.
struct row_operations {
    /// acc[i] = fma(weight, row[i], acc[i])
    void (*accumulate)(float* acc, const void* row, float weight, std::int64_t n);
    /// sum[i] += float(round(acc[i])), rounding to the row's type
    void (*add_rounded)(float* sum, const float* acc, std::int64_t n);
    /// row[i] = round(acc[i])
    void (*store)(void* row, const float* acc, std::int64_t n);
    /// out[i] = float(row[i]) * weight, rounded to fp32
    void (*load_scaled)(float* out, const void* row, float weight, std::int64_t n);
    /// Dot product in the order that exchange.hpp declares for weight gradients; NaN is canonical.
    float (*dot)(const void* a, const void* b, std::int64_t n);
};

const row_operations& operations_of(dtype type) noexcept;
/// The form for any CPU.
const row_operations& portable_operations_of(dtype type) noexcept;

/// The fused quantiser of one row: e4m3 with one scale for each 128 elements, ceil(n/128) scales of `type`.
void quantise(std::uint8_t* out, void* scales, scale_type type, const float* row, std::int64_t n) noexcept;

}  // namespace epjit::host::cpu
