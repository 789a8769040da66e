// SPDX-License-Identifier: Apache-2.0
// What a call costs its thread outside the driver.
#pragma once

#include "epjit/runtime.hpp"

#include <functional>

namespace epjit::tools {

/// From now on the driver's functions of `rt` add the time inside them to their thread's. Before any other thread uses
/// the runtime. @throws library_error.
void watch_driver(runtime& rt);

struct host_cost {
    double own_us = 0;     ///< median wall time of a call less that inside the driver
    double driver_us = 0;  ///< median of the rest
};

/// On this thread, of a runtime that is watched: `call` is made `calls` times, `before` each of them outside the time.
host_cost cost_of(int calls, const std::function<void(int)>& before, const std::function<void()>& call);

}  // namespace epjit::tools
