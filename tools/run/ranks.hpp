// SPDX-License-Identifier: Apache-2.0
// Real ranks: what each of them made of a run, made one result again.
#pragma once

#include "epjit/communicator.hpp"
#include "tools/run/run.hpp"

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace epjit::tools {

/// What one rank made of its part, as plain bytes: ranks exchange it as it lies in memory. Texts are cut to fit.
struct rank_outcome {
    std::int32_t failed = 0;  ///< 1: it threw; the texts below say what
    std::int32_t kind = 0;    ///< error_kind
    std::int32_t exchange = 0;
    std::int32_t num_launches = 0;
    std::uint64_t checked_rows = 0, mismatched_rows = 0, rows = 0, allocations = 0, host_waits = 0;
    std::uint64_t bad_ids = 0, duplicate_ids = 0, excess_ids = 0, dropped_rows = 0;
    double max_error = 0, plan_us = 0, dispatch_us = 0, combine_us = 0;
    char first_mismatch[400] = {};
    char message[700] = {};
    char remedy[300] = {};
    struct kernel_launches {
        char kernel[48] = {};
        std::uint64_t launches = 0;
    } launches[24];
};

/// Runs `work` and keeps its result or its error.
rank_outcome outcome_of(const std::function<run_result()>& work);

/// Rows, launches, allocations and waits are summed, times are of the slowest rank, counters of input problems (which
/// every rank knows in full) of rank 0. @throws the error of the first rank that failed, naming the rank; one that only
/// waited for it in vain (timeout, nccl) gives way.
run_result merge_outcomes(std::span<const rank_outcome> ranks);

/// Every rank of a launcher calls it with its own. @throws what exchanging them throws.
std::vector<rank_outcome> gather_outcomes(communicator& comm, const rank_outcome& mine);

/// A thread for each of the first `ranks` GPUs, which makes its rank's communicator and runs `work` with it. @throws
/// what making the communicators throws, or `work`, of the first rank that throws.
void for_thread_ranks(runtime& rt, std::int32_t ranks, const std::function<void(communicator)>& work);

/// The same, with what each rank made of `work`; its errors are outcomes.
std::vector<rank_outcome> run_threads(runtime& rt, std::int32_t ranks,
                                      const std::function<run_result(communicator&)>& work);

}  // namespace epjit::tools
