// SPDX-License-Identifier: Apache-2.0
// What `epjit tune` measures: one shape's dispatch and combine, each under many knobs, on this machine's GPUs.
#pragma once

#include "epjit/jit/profile.hpp"
#include "tools/bench/layer.hpp"
#include "tools/bench/race.hpp"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace epjit::tools {

enum class tuned_job : std::uint8_t { dispatch, combine };
const char* name(tuned_job job) noexcept;  ///< "dispatch", "combine"

/// Knobs that are worth a try, the cost model's (all 0) first, each once. `stages` are the rows in flight that fit a
/// block, 0 where bulk copies cannot move the rows; `threads` those of the job's blocks by the cost model.
std::vector<jit::knobs> exchange_candidates(tuned_job job, std::int32_t stages, std::int32_t threads);
/// The same on one GPU: permute and unpermute.
std::vector<jit::knobs> local_candidates(tuned_job job, std::int32_t stages, std::int32_t threads);

/// How one candidate ended.
struct tuned_candidate {
    tuned_job job = tuned_job::dispatch;
    jit::knobs values;
    race_entry result;
    std::string why_not;  ///< it cannot run, or its result differs
};

struct tuning {
    jit::profile_entry entry;                 ///< of the winners
    std::vector<tuned_candidate> candidates;  ///< by job, fastest first, then those that cannot run
    bool complete = true;                     ///< false: time ran out
    bool results_agree = true;                ///< with those under the cost model's knobs
};

/// Called after each measurement.
using tuning_progress = std::function<void(tuned_job job, const jit::knobs& values, std::optional<double> us)>;

struct tuning_limits {
    double budget_s = 60;             ///< of the shape, half of it for each job
    int first_repeats = 10;           ///< of each candidate
    int most_repeats = 160;           ///< of the last ones
    std::function<bool()> cancelled;  ///< ends it as the budget does
};

/// Races the knobs of one shape on the ranks of `machine`: lsa between several, loopback on one GPU. Results are
/// compared byte by byte with those under the cost model's knobs; a candidate whose result differs cannot win.
/// @throws unsupported_error where the exchange is not there, and the library's errors.
tuning tune_shape(bench_machine& machine, const bench_shape& shape, const tuning_limits& limits,
                  const tuning_progress& progress);

}  // namespace epjit::tools
