// SPDX-License-Identifier: Apache-2.0
// One MoE layer through the public API: plan, dispatch, stand-in experts on the host, combine, weight gradients. Used
// by `run` and by the property tests of every exchange.
#pragma once

#include "epjit/exchange.hpp"
#include "tools/reference/problem.hpp"
#include "tools/run/memory.hpp"

#include <atomic>
#include <functional>
#include <string>
#include <vector>

namespace epjit::tools {

struct layer_options {
    std::int32_t iters = 1;  ///< each of plan, dispatch and combine is issued this often, without a wait between
    bool halves = false;     ///< send and receive halves instead of whole calls
    std::int32_t lane = 0;
    const std::atomic<bool>* cancel = nullptr;
    /// Called with the plan before it is used, to spoil it; tests only.
    std::function<void(plan&)> after_plan;
    /// Called with what dispatch gave and before the experts run, to spoil it; tests only.
    std::function<void(reference::observation&)> after_dispatch;
};

struct layer_times {
    std::vector<double> plan_us, dispatch_us, combine_us;  ///< of each iteration
};

/// The exchange that a problem wants. Its tables point into `p`.
exchange_config config_of(const reference::problem& p, exchange_kind kind, std::int32_t lanes = 1);
plan_options plan_options_of(const reference::problem& p, std::int32_t lane = 0);

/// Runs `p` on an exchange made with config_of(p). Outputs are poisoned first and have guard bytes behind them.
/// @throws what the calls throw; error (internal) when a guard was overwritten; error (cancelled).
reference::observation run_problem(exchange& ex, memory_space& memory, const reference::problem& p,
                                   const layer_options& options = {}, layer_times* times = nullptr);

}  // namespace epjit::tools
