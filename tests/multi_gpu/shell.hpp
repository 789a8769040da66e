// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

namespace epjit::tests {

/// What a shell command prints on stdout, and its exit status.
std::pair<std::string, int> run_shell(const std::string& command);

}  // namespace epjit::tests
