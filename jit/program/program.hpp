// SPDX-License-Identifier: Apache-2.0
// What NVRTC is given for a spec: generated source, options, name expressions. Types and enums make the
// source; no string of a user enters it.
#pragma once

#include "epjit/jit/spec.hpp"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace epjit::jit {

/// Raised when generated programs change in a way that source, options and templates do not show.
inline constexpr int program_schema = 1;

/// The program's name is the same for every variant and machine: it enters the compiler's output.
inline constexpr const char* program_name = "epjit.cu";

struct program_kernel {
    std::string_view name;        ///< "plan_kernel"
    std::string_view expression;  ///< as given to nvrtcAddNameExpression
};

struct program {
    std::string_view root;  ///< template that the source includes
    std::string source;
    std::vector<std::string> options;  ///< canonical: no path, nothing of the machine; hashed into the key
    std::vector<program_kernel> kernels;
};

/// The templates that generated sources include: "plan/plan.cuh", "rows/scatter.cuh", "rows/gather.cuh".
std::span<const std::string_view> template_roots() noexcept;
std::string_view template_root(kernel_kind kind) noexcept;

/// `spec` must come from the builders of variants.hpp.
program make_program(const variant_spec& spec);

}  // namespace epjit::jit
