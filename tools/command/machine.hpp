// SPDX-License-Identifier: Apache-2.0
// What the defaults of the shape options depend on: the model, and this machine's GPUs.
#pragma once

#include "epjit/jit/model.hpp"
#include "epjit/jit/profile.hpp"
#include "epjit/jit/spec.hpp"
#include "tools/command/context.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace epjit::tools {

/// `--model` or `--config`, else the default model. @throws config_error.
jit::model_shape model_option(const invocation& call);

/// The GPUs the driver shows; `why_none` says why there is none.
struct machine {
    int num_gpus = 0;
    std::vector<jit::target_arch> archs;         ///< each once
    std::string gpu;                             ///< the first one's name
    jit::link_kind link = jit::link_kind::none;  ///< from it to the others
    std::string why_none;
};
machine look_at_machine(const context& ctx);

/// `--profile`, else EPJIT_PROFILE; empty where neither is given. @throws config_error, unsupported_error.
std::optional<jit::profile> profile_option(const context& ctx);

inline constexpr std::int32_t default_ranks = 8;
inline constexpr jit::target_arch default_arch{90, 'a'};

/// The templates to compile: EPJIT_TEMPLATE_DIR or those of the library.
jit::template_set open_templates(const context& ctx);

}  // namespace epjit::tools
