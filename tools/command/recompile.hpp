// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/artifact.hpp"
#include "tools/command/context.hpp"

#include <string>

namespace epjit::tools {

// An artifact's program compiled anew by NVRTC. @throws library_error (no NVRTC), unsupported_error (the templates are
// not those the entry was made from), compile_error.
std::string compile_to_ptx(const context& ctx, const jit::artifact& value);
/// The same cubin, which also says what its instructions come from.
std::string compile_with_lines(const context& ctx, const jit::artifact& value);

}  // namespace epjit::tools
