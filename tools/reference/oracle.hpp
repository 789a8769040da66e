// SPDX-License-Identifier: Apache-2.0
// The reference of design contract 4: naive loops from routing to result. It sorts (slot, source rank, token) tuples
// where the exchanges count and scan, and knows nothing of their plans.
#pragma once

#include "tools/reference/problem.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace epjit::tools::reference {

/// One (token, expert slot) pair.
struct assignment {
    std::int32_t slot;    ///< global
    std::int32_t rank;    ///< that holds the slot
    std::int32_t source;  ///< rank of the token
    std::int32_t token;
    std::int32_t column;  ///< of the weight
    float weight;
    std::int64_t row = -1;  ///< in the holder's output, -1 when over capacity
};

/// What a rank must receive.
struct expected_rank {
    std::vector<std::int32_t> counts, offsets;
    std::int32_t num_rows = 0;
    std::int64_t extent = 0;                      ///< rows for which metadata must be valid
    std::vector<std::vector<std::int32_t>> rows;  ///< [extent] assignments of each row, ascending slot; empty: no data
};

class oracle {
   public:
    explicit oracle(const problem& p);

    [[nodiscard]] const problem& job() const noexcept { return p_; }
    [[nodiscard]] const std::vector<assignment>& assignments() const noexcept { return all_; }
    [[nodiscard]] const expected_rank& rank(std::int32_t r) const { return ranks_[static_cast<std::size_t>(r)]; }
    /// Indices of a token's assignments that fit, ascending slot.
    [[nodiscard]] const std::vector<std::int32_t>& of_token(std::int32_t source, std::int32_t token) const {
        return tokens_[static_cast<std::size_t>(source)][static_cast<std::size_t>(token)];
    }
    std::uint64_t bad_ids = 0, duplicate_ids = 0, excess_ids = 0, dropped_rows = 0;

    /// The row that an assignment's holder must have, as bits of the dispatch dtype, and its scales.
    void dispatched_row(const assignment& a, bytes& elements, bytes& scales) const;
    /// What the assignment's expert makes of it, as bits of the combine dtype.
    void expert_row(const assignment& a, std::vector<std::uint32_t>& bits) const;
    /// The combined row of a token, as bits of the combine dtype.
    void combined_row(std::int32_t source, std::int32_t token, std::vector<std::uint32_t>& bits) const;
    /// The gradient of each of the token's weights.
    [[nodiscard]] std::vector<float> weight_gradients(std::int32_t source, std::int32_t token) const;

   private:
    void choose(std::int32_t source, std::int32_t token);
    void place();

    const problem& p_;
    std::vector<std::int32_t> slot_rank_;
    std::vector<std::vector<std::int32_t>> copies_;  ///< slots of each expert
    std::vector<assignment> all_;
    std::vector<expected_rank> ranks_;
    std::vector<std::vector<std::vector<std::int32_t>>> tokens_;
};

/// Rows that each rank needs when nothing is dropped (masked: the most that one slot gets); for choosing capacities.
std::vector<std::int32_t> needed_rows(problem p);

}  // namespace epjit::tools::reference
