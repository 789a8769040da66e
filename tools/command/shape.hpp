// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/variants.hpp"
#include "tools/command/context.hpp"
#include "tools/run/run.hpp"

namespace epjit::tools {

/// The shape options that `run` and `explain` share. Ranks stay 0 when they were not given. @throws config_error.
run_options shape_options(const context& ctx);

/// What a run with these options loads on a GPU of `arch`; `run.ranks` and `run.exchange` are settled.
jit::run_request request_of(const run_options& run, jit::target_arch arch);

}  // namespace epjit::tools
