// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tools/bench/suite.hpp"

#include <string>
#include <string_view>

namespace epjit::tools {

/// A figure for each job that was timed on an exchange; empty without one.
std::string plots_of(const bench_report& report);

std::string escape_html(std::string_view text);

}  // namespace epjit::tools
