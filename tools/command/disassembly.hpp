// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/artifact.hpp"

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace epjit::tools {

/// The artifact's cubin through nvdisasm or cuobjdump. @throws unsupported_error naming both when neither is found.
std::string disassemble(const jit::artifact& value);

/// A line of a template.
struct code_place {
    std::string file;
    int line = 0;
    bool operator==(const code_place&) const = default;
};
/// Instructions of all that is inlined at a place.
struct call_instructions {
    code_place place;
    int depth = 0;  ///< 0: in the kernel itself
    std::size_t instructions = 0;
};
struct kernel_instructions {
    std::string symbol;
    std::size_t instructions = 0;
    std::vector<call_instructions> calls;  ///< each before those inside of it, the longest first
};

/// What the instructions of a cubin that says so come from, by nvdisasm. @throws unsupported_error when it is not
/// found.
std::vector<kernel_instructions> count_instructions(std::string_view cubin_with_lines);
}  // namespace epjit::tools
