// SPDX-License-Identifier: Apache-2.0
#include "tools/reference/problem.hpp"

#include <algorithm>
#include <numeric>

namespace epjit::tools::reference {

std::int32_t problem::first_slot(std::int32_t rank) const noexcept {
    return std::accumulate(rank_slots.begin(), rank_slots.begin() + rank, 0);
}

std::int32_t problem::max_tokens() const noexcept {
    std::int32_t most = 0;
    for (const auto& rank : inputs) {
        most = std::max(most, rank.tokens);
    }
    return most;
}

void place_by_default(problem& p) {
    p.default_placement = true;
    p.slot_expert.resize(static_cast<std::size_t>(p.experts));
    std::iota(p.slot_expert.begin(), p.slot_expert.end(), 0);
    p.rank_slots.assign(static_cast<std::size_t>(p.ranks), p.experts / p.ranks);
    for (std::int32_t rank = 0; rank < p.experts % p.ranks; ++rank) {
        ++p.rank_slots[static_cast<std::size_t>(rank)];
    }
}

}  // namespace epjit::tools::reference
