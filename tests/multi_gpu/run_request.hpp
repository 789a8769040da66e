// SPDX-License-Identifier: Apache-2.0
// Runs of a small model that a parent asks of "run" children.
#pragma once

#include "tools/run/run.hpp"

#include <string>

namespace epjit::tests {

/// Exchange, layout, mode, reduction, graph, iters and dump_dir (without spaces) of `o` as a line; the rest is fixed.
std::string write_run_request(const tools::run_options& o);
/// @throws std::runtime_error.
tools::run_options read_run_request(const std::string& line);

}  // namespace epjit::tests
