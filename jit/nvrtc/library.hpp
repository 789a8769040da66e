// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/compiler.hpp"
#include "jit/nvrtc/api.hpp"

#include <string>
#include <vector>

namespace epjit::jit::nvrtc {

/// A loaded libnvrtc. It stays loaded until the process ends: NVRTC keeps threads and exit handlers of its
/// own.
struct library {
    api calls;
    int major = 0;
    int minor = 0;
    std::string path;           ///< of the file that was loaded, links resolved
    std::string builtins_path;  ///< empty when none was found
    compiler_identity identity;
    std::vector<std::string> tried;  ///< places that failed before, "path: why"
};

/// @throws library_error that lists every place tried and why it failed.
library open_library(const nvrtc_options& options);

/// Candidates in the order of the search: explicit path alone, or CUDA_HOME and CUDA_PATH, the active Python
/// environment's wheels, sonames, usual folders. Only files that exist, besides explicit path and sonames;
/// places without any are told in `tried`.
std::vector<std::string> search_places(const std::string& explicit_path, std::vector<std::string>& tried);

}  // namespace epjit::jit::nvrtc
