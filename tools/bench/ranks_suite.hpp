// SPDX-License-Identifier: Apache-2.0
// What the suites of real ranks share: their options, the jobs they choose from them, and their rows.
#pragma once

#include "tools/bench/layer.hpp"
#include "tools/bench/machine.hpp"
#include "tools/bench/suite.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace epjit::tools {

/// --quick, --iters, --exchange, --model, --tokens, --ranks, --sms and --plan-source.
struct ranks_options {
    repeats n;
    std::vector<exchange_kind> kinds;  ///< to measure, each where it is there
    bool baseline = false;             ///< nccl_baseline as well
    std::optional<std::int32_t> tokens;
    std::optional<bench_shape> model;  ///< H, K and E of --model
    std::int32_t ranks = 0, num_sms = 0;
    plan_source source = plan_source::automatic;
};
/// @throws config_error.
ranks_options ranks_options_of(const context& ctx);

/// Shapes of suite exchange: the first one is also measured in exact mode.
std::vector<bench_shape> exchange_shapes(const ranks_options& options);
/// Shapes of suite decode.
std::vector<bench_shape> decode_shapes(const ranks_options& options, int ranks);

/// Rates, and whether the run counts.
void add_rates(bench_report& report, const machine_rates& rates);

/// An exchange that is not there is a note, said once for the run.
void note_missing(bench_report& report, exchange_kind kind, const error& e);

/// @throws unsupported_error with what note_missing() wrote.
[[noreturn]] void refuse_without_rows(const bench_report& report);

/// What the host does for a plan, a dispatch and a combine besides the driver's calls, and their launches. The
/// machine's runtime is watched (host_side.hpp).
void add_host_rows(bench_machine& machine, const bench_shape& shape, exchange_kind kind, bench_report& report);

/// Times of one job, by rank.
struct job_times {
    std::vector<std::vector<double>> us, kernel_us;  ///< [rank][repetition]; kernel_us may be empty
    std::uint64_t launches = 0;                      ///< of one rank in one repetition
};

/// One job of all ranks on the thread of rank `r`: the calls, then, where they can be captured, `graph_calls` of them
/// in a graph, whose time has no launches in it.
void time_job(bench_machine& machine, int r, const repeats& n, int graph_calls, const std::function<void()>& work,
              job_times& times);

/// Captures `work` on every rank. Empty on all ranks where one of them cannot.
host::gpu_graph capture_together(bench_machine& machine, int r, const std::function<void()>& work);

}  // namespace epjit::tools
