// SPDX-License-Identifier: Apache-2.0
// The layouts shared with device code, for host code.
#pragma once

#include <cstdint>

// Enumerators such as id_width::i16 have the names of the device code's integer types.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include "templates/exchange/channel_layout.cuh"
#include "templates/exchange/dispatch_layout.cuh"
#include "templates/exchange/helpers_layout.cuh"
#include "templates/low_latency/packet_layout.cuh"
#include "templates/plan/gathered_plan_layout.cuh"
#include "templates/plan/plan_layout.cuh"
#include "templates/rows/rows_layout.cuh"
#pragma GCC diagnostic pop

namespace epjit::host {

/// Scales of a row with so many elements.
constexpr std::int64_t scale_groups(std::int64_t columns) noexcept {
    return (columns + templates::scale_group - 1) / templates::scale_group;
}

}  // namespace epjit::host
