// SPDX-License-Identifier: Apache-2.0
// What no implementation beats, from a routing's own rows and rates measured in the same run. Arithmetic only.
#pragma once

#include "epjit/types.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace epjit::tools {

/// Measured in the run; 1 GB/s is 1e9 bytes a second.
struct machine_rates {
    double peer_gbps = 0;  ///< copy engine to the peer, each way, both directions busy
    double copy_gbps = 0;  ///< local copy, read and written
    double launch_us = 0;  ///< one empty kernel between two events
    double flag_us = 0;    ///< a flag to the peer and back
    [[nodiscard]] double t0_us() const noexcept { return launch_us + flag_us; }
};

/// Of one rank, in rows.
struct rank_rows {
    std::int64_t tokens = 0;    ///< its own
    std::int64_t leaving = 0;   ///< (token, other rank) pairs: each row crosses once for each rank that wants it
    std::int64_t arriving = 0;  ///< the same for what other ranks send here
    std::int64_t own = 0;       ///< its tokens that one of its own experts wants
    std::int64_t placed = 0;  ///< (token, expert) pairs of its experts: rows of an expert_major output without padding
};

/// Rows of every rank. `ids[r]` is [T,K] of rank r; experts lie on ranks by the default placement; ids outside 0 to
/// experts - 1 count nowhere, nor does an expert's second mention in a row.
std::vector<rank_rows> count_rows(std::span<const std::vector<std::int64_t>> ids, std::int32_t topk,
                                  std::int32_t experts);

/// Rows of a rank's output without padding.
std::int64_t output_rows(const rank_rows& rows, layout l) noexcept;

/// Bytes of one row with its scales, ceil(H/128) of them.
std::int64_t row_bytes(std::int32_t hidden, dtype type, scale_type scales) noexcept;

/// One direction of an operation: a dispatch, or a combine, whose bytes are the same the other way round.
struct operation_bytes {
    std::uint64_t link = 0;   ///< largest of any rank and direction over NVLink
    std::uint64_t local = 0;  ///< largest of any rank, read and written; what is staged on arrival is not written
};
operation_bytes bytes_of(std::span<const rank_rows> rows, layout l, std::int64_t bytes_of_row) noexcept;

/// Below this a floor of bytes alone says little: `phases` times t0 is added.
inline constexpr double latency_floor_us = 60;

/// max(link bytes / peer rate, local bytes / copy rate), and `phases` t0 where that is under latency_floor_us.
double floor_of(const operation_bytes& bytes, const machine_rates& rates, int phases) noexcept;

/// Empty where the rates are those of the machine that the goals were set on, or better; else which one is more than
/// 5 % below, with both values.
std::string rates_too_low(const machine_rates& rates);

/// The middle of the values, 0 for none.
double median_of(std::vector<double> values);
/// Of repetition i the slowest rank, then the median over repetitions. All ranks have as many values.
double slowest_median(std::span<const std::vector<double>> us_of_rank);

}  // namespace epjit::tools
