// SPDX-License-Identifier: Apache-2.0
// Compares what an exchange made of a problem with the oracle.
#pragma once

#include "tools/reference/oracle.hpp"

#include <cstdint>
#include <string>

namespace epjit::tools::reference {

struct report {
    std::uint64_t checked_rows = 0;  ///< dispatched rows (padding and asked-for tails too) and combined tokens
    std::uint64_t mismatched_rows =
        0;                       ///< rows that differ in data, scales or metadata; a wrong plan counts as one a rank
    double max_error = 0;        ///< largest absolute difference of a value; finite
    std::string first_mismatch;  ///< in words
    [[nodiscard]] bool ok() const noexcept { return mismatched_rows == 0; }
    void add(const report& other);
};

// Each of the following looks at the ranks that `seen` holds.

/// Counts, offsets, rows and the status counters.
report check_plan(const oracle& o, const observation& seen);
/// Rows bit by bit, their scales, sources, weights and local ids; padding that must be zero, metadata beyond the data.
report check_dispatch(const oracle& o, const observation& seen);
/// Combined rows bit by bit, where any NaN equals any NaN.
report check_combine(const oracle& o, const observation& seen);
report check_weight_gradients(const oracle& o, const observation& seen);
/// All of the above that apply.
report check_all(const oracle& o, const observation& seen);

}  // namespace epjit::tools::reference
