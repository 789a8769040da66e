// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/artifact.hpp"
#include "tools/command/context.hpp"

#include <string>

namespace epjit::tools {

/// The artifact's program as PTX, compiled anew by NVRTC. @throws library_error (no NVRTC), unsupported_error (the
/// templates are not those the entry was made from), compile_error.
std::string compile_to_ptx(const context& ctx, const jit::artifact& value);

/// The artifact's cubin through nvdisasm or cuobjdump. @throws unsupported_error naming both when neither is found.
std::string disassemble(const jit::artifact& value);

}  // namespace epjit::tools
