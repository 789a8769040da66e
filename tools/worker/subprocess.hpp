// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace epjit::tools {

struct process_result {
    int status = 0;  ///< exit status, or 128 + signal
    std::string out, err;
    double wall_ms = 0;
    double cpu_ms = 0;  ///< user and system, of the process and the children it waited for
};

/// Runs a program (a path) to its end and keeps what it prints. `environment` adds to or replaces variables of this
/// process. @throws error of kind internal when it cannot be started.
process_result run_process(const std::vector<std::string>& arguments,
                           const std::vector<std::pair<std::string, std::string>>& environment);

}  // namespace epjit::tools
