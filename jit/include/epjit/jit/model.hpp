// SPDX-License-Identifier: Apache-2.0
// Model configs to MoE shapes; needs no GPU.
#pragma once

#include "epjit/export.hpp"
#include "epjit/types.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace epjit::jit {

/// The largest hidden size H that is compiled for and exchanged.
inline constexpr std::int32_t max_hidden = 1 << 18;

/// What the library needs to know of a model's MoE layers.
struct model_shape {
    std::string name;
    std::int32_t hidden = 0;
    std::int32_t num_experts = 0;
    std::int32_t topk = 0;
    dtype token_type = dtype::bf16;  ///< of activations
    bool fp8_dispatch = false;       ///< the config quantises weights to fp8 with 128-blocks: rows travel as fp8 too
    scale_type fp8_scales = scale_type::f32;
    std::string source;  ///< "built-in" or the file
    friend bool operator==(const model_shape&, const model_shape&) = default;
};

/// The built-in shapes, sorted by name.
EPJIT_API std::span<const model_shape> builtin_models();
/// @throws config_error that lists near names when unknown.
EPJIT_API const model_shape& find_model(std::string_view name);
/// A Hugging Face config.json. @throws config_error: a dense model, a bad file, contradictory values; says what was
/// looked for and what was found.
EPJIT_API model_shape load_model_config(const std::string& path);
/// The same from text; `origin` names it in messages.
EPJIT_API model_shape parse_model_config(std::string_view json, std::string_view origin);

}  // namespace epjit::jit
