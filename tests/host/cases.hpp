// SPDX-License-Identifier: Apache-2.0
// Random cases for any exchange: a seed makes a whole problem (shape, dtypes, routing, placement, capacities, data), to
// be run with tools::run_problem and compared with the oracle. The host and GPU suites draw from the same generator.
#pragma once

#include "epjit/exchange.hpp"
#include "tools/reference/check.hpp"
#include "tools/reference/problem.hpp"

#include <cstdint>
#include <string>

namespace epjit::tests {

/// What a suite can afford.
struct case_limits {
    std::int32_t max_ranks = 64;
    std::int32_t max_experts = 2048;
    std::int32_t max_hidden = 520;
    std::int64_t max_elements = 150'000;  ///< tokens * K * H of all ranks
};

/// The same seed and limits give the same problem everywhere. `text` describes it and names the seed.
tools::reference::problem make_case(std::uint64_t seed, const case_limits& limits = {});

/// Base of a suite's seeds: EPJIT_TEST_SEED, else fresh; printed so that a failure can be repeated.
std::uint64_t suite_seed();
/// EPJIT_TEST_CASES, else `standard`.
int suite_cases(int standard);

/// Ways in which a result can be wrong; each must be noticed.
enum class mutation {
    swap_rows,
    swap_sources,
    shift_offset,
    move_count,
    swap_results,
    flip_bit,
    drop_local_id,
    miscount_token
};
inline constexpr mutation mutations[] = {mutation::swap_rows,     mutation::swap_sources,  mutation::shift_offset,
                                         mutation::move_count,    mutation::swap_results,  mutation::flip_bit,
                                         mutation::drop_local_id, mutation::miscount_token};
const char* name(mutation m);
/// Spoils `seen`; false when the case offers no place for it (too few rows).
bool mutate(mutation m, const tools::reference::oracle& o, tools::reference::observation& seen, std::uint64_t seed);

}  // namespace epjit::tests
