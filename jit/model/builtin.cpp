// SPDX-License-Identifier: Apache-2.0
// Shapes of published models, from the config.json that each was released with.
#include "epjit/error.hpp"
#include "epjit/jit/model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <vector>

namespace epjit::jit {
namespace {

model_shape plain(const char* name, std::int32_t hidden, std::int32_t num_experts, std::int32_t topk) {
    return {name, hidden, num_experts, topk, dtype::bf16, false, scale_type::f32, "built-in"};
}

/// Released with fp8 weights in blocks of 128 x 128.
model_shape fp8(const char* name, std::int32_t hidden, std::int32_t num_experts, std::int32_t topk,
                scale_type scales = scale_type::f32) {
    return {name, hidden, num_experts, topk, dtype::bf16, true, scales, "built-in"};
}

std::vector<model_shape> make_models() {
    std::vector<model_shape> models{
        plain("dbrx", 6144, 16, 4),
        fp8("deepseek-r1", 7168, 256, 8),
        plain("deepseek-v2", 5120, 160, 6),
        plain("deepseek-v2-lite", 2048, 64, 6),
        fp8("deepseek-v3", 7168, 256, 8),
        fp8("deepseek-v3.1", 7168, 256, 8, scale_type::ue8m0),
        fp8("deepseek-v3.2", 7168, 256, 8, scale_type::ue8m0),
        plain("ernie-4.5-21b-a3b", 2560, 64, 6),
        plain("ernie-4.5-300b-a47b", 8192, 64, 8),
        plain("glm-4.5", 5120, 160, 8),
        plain("glm-4.5-air", 4096, 128, 8),
        plain("gpt-oss-120b", 2880, 128, 4),
        plain("gpt-oss-20b", 2880, 32, 4),
        plain("granite-3.0-1b-a400m", 1024, 32, 8),
        plain("granite-3.0-3b-a800m", 1536, 40, 8),
        plain("granite-3.1-1b-a400m", 1024, 32, 8),
        plain("granite-3.1-3b-a800m", 1536, 40, 8),
        plain("hunyuan-a13b", 4096, 64, 8),
        plain("hunyuan-large", 6400, 16, 1),
        fp8("kimi-k2", 7168, 384, 8),
        plain("llama-4-maverick", 5120, 128, 1),
        plain("llama-4-scout", 5120, 16, 1),
        fp8("minimax-m2", 3072, 256, 8),
        plain("mixtral-8x22b", 6144, 8, 2),
        plain("mixtral-8x7b", 4096, 8, 2),
        plain("olmoe-1b-7b", 2048, 64, 8),
        plain("phi-3.5-moe", 4096, 16, 2),
        plain("qwen1.5-moe-a2.7b", 2048, 60, 4),
        plain("qwen2-57b-a14b", 3584, 64, 8),
        plain("qwen3-235b-a22b", 4096, 128, 8),
        plain("qwen3-30b-a3b", 2048, 128, 8),
        plain("qwen3-coder-480b-a35b", 6144, 160, 8),
        plain("qwen3-next-80b-a3b", 2048, 512, 10),
    };
    std::sort(models.begin(), models.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    return models;
}

const std::vector<model_shape>& models() {
    static const std::vector<model_shape> list = make_models();  // immutable
    return list;
}

/// Lower case, with hyphen for underscore and blank: how names are compared.
std::string fold(std::string_view text) {
    std::string folded(text);
    for (char& c : folded) {
        if (c >= 'A' && c <= 'Z') {
            c = static_cast<char>(c - 'A' + 'a');
        } else if (c == '_' || c == ' ') {
            c = '-';
        }
    }
    return folded;
}

/// Levenshtein distance.
std::size_t distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i + 1;
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t above = row[j + 1];
            row[j + 1] = std::min({above + 1, row[j] + 1, diagonal + (a[i] == b[j] ? 0 : 1)});
            diagonal = above;
        }
    }
    return row.back();
}

/// Names that hold the text or are few edits away, nearest first, at most five.
std::vector<std::string> near_names(const std::string& wanted) {
    std::vector<std::pair<std::size_t, std::string>> found;
    for (const model_shape& model : models()) {
        const bool part = wanted.size() >= 3 && (model.name.find(wanted) != std::string::npos ||
                                                 wanted.find(model.name) != std::string::npos);
        const std::size_t edits = distance(wanted, model.name);
        if (part || edits <= std::max<std::size_t>(2, model.name.size() / 3)) {
            found.emplace_back(part ? 0 : edits, model.name);
        }
    }
    std::sort(found.begin(), found.end());
    std::vector<std::string> names;
    for (const auto& [edits, name] : found) {
        if (names.size() < 5) {
            names.push_back(name);
        }
    }
    return names;
}

}  // namespace

std::span<const model_shape> builtin_models() {
    return models();
}

const model_shape& find_model(std::string_view name) {
    const std::string wanted = fold(name.substr(0, 256));
    for (const model_shape& model : models()) {
        if (model.name == wanted) {
            return model;
        }
    }
    const auto near = near_names(wanted);
    throw config_error(near.empty()
                           ? fmt::format("there is no built-in model \"{}\"", name)
                           : fmt::format("there is no built-in model \"{}\"; near it: {}", name, fmt::join(near, ", ")),
                       "`epjit models` lists them, and --config takes any Hugging Face config.json");
}

}  // namespace epjit::jit
