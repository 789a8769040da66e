// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"
#include "host/exchange/backend.hpp"
#include "host/exchange/layouts.hpp"

#include <fmt/format.h>

#include <numeric>

namespace epjit::host {
namespace {

/// One slot per expert, contiguous, the first E mod R ranks with one more.
void fill_default(placement_tables& t, std::int32_t num_experts, std::int32_t num_ranks) {
    t.num_slots = num_experts;
    t.slot_expert.resize(num_experts);
    std::iota(t.slot_expert.begin(), t.slot_expert.end(), 0);
    t.rank_first.push_back(0);
    for (std::int32_t r = 0; r < num_ranks; ++r) {
        t.rank_first.push_back(t.rank_first.back() + num_experts / num_ranks + (r < num_experts % num_ranks ? 1 : 0));
    }
}

void fill_given(placement_tables& t, const placement& p, std::int32_t num_experts, std::int32_t num_ranks) {
    if (p.slot_expert == nullptr || p.rank_slots == nullptr || p.num_slots <= 0) {
        throw config_error(
            fmt::format("the placement is half given: slot_expert is {}, rank_slots is {}, num_slots is {}",
                        p.slot_expert != nullptr ? "set" : "null", p.rank_slots != nullptr ? "set" : "null",
                        p.num_slots),
            "give all three, or none for the default placement");
    }
    if (p.num_slots > templates::max_slots) {
        throw config_error(fmt::format("placement.num_slots is {}", p.num_slots),
                           fmt::format("use at most {} slots", templates::max_slots));
    }
    t.num_slots = p.num_slots;
    t.slot_expert.assign(p.slot_expert, p.slot_expert + p.num_slots);
    std::int64_t sum = 0;
    t.rank_first.push_back(0);
    for (std::int32_t r = 0; r < num_ranks; ++r) {
        if (p.rank_slots[r] < 0) {
            throw config_error(fmt::format("placement.rank_slots[{}] is {}", r, p.rank_slots[r]),
                               "a rank holds zero or more slots");
        }
        sum += p.rank_slots[r];
        t.rank_first.push_back(static_cast<std::int32_t>(std::min<std::int64_t>(sum, p.num_slots)));
    }
    if (sum != p.num_slots) {
        throw config_error(
            fmt::format("placement.rank_slots sums to {} over {} ranks, num_slots is {}", sum, num_ranks, p.num_slots),
            "make rank_slots sum to num_slots");
    }
    for (std::int32_t s = 0; s < p.num_slots; ++s) {
        if (t.slot_expert[s] < 0 || t.slot_expert[s] >= num_experts) {
            throw config_error(
                fmt::format("placement.slot_expert[{}] is {}, outside 0 to {}", s, t.slot_expert[s], num_experts - 1),
                "name a logical expert for every slot");
        }
    }
}

}  // namespace

placement_tables resolve(const placement& p, std::int32_t num_experts, std::int32_t num_ranks) {
    placement_tables t;
    if (p.slot_expert == nullptr && p.rank_slots == nullptr && p.num_slots == 0) {
        fill_default(t, num_experts, num_ranks);
    } else {
        fill_given(t, p, num_experts, num_ranks);
    }
    t.slot_rank.resize(t.num_slots);
    for (std::int32_t r = 0; r < num_ranks; ++r) {
        for (std::int32_t s = t.rank_first[r]; s < t.rank_first[r + 1]; ++s) {
            t.slot_rank[s] = static_cast<std::uint16_t>(r);
        }
    }
    // Slots sorted by expert, ascending within one: a counting sort.
    t.expert_first.assign(num_experts + 1, 0);
    for (const std::int32_t expert : t.slot_expert) {
        ++t.expert_first[expert + 1];
    }
    for (std::int32_t e = 0; e < num_experts; ++e) {
        if (t.expert_first[e + 1] == 0) {
            throw config_error(fmt::format("expert {} of {} has no slot in the placement", e, num_experts),
                               "give every logical expert at least one slot");
        }
        t.expert_first[e + 1] += t.expert_first[e];
    }
    std::vector<std::int32_t> next(t.expert_first.begin(), t.expert_first.end() - 1);
    t.expert_slots.resize(t.num_slots);
    for (std::int32_t s = 0; s < t.num_slots; ++s) {
        t.expert_slots[next[t.slot_expert[s]]++] = static_cast<std::uint16_t>(s);
    }
    return t;
}

}  // namespace epjit::host
