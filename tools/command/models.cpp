// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/model.hpp"
#include "tools/command/context.hpp"
#include "tools/command/table.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace epjit::tools {

int models_command(context& ctx) {
    if (ctx.json) {
        auto array = nlohmann::ordered_json::array();
        for (const jit::model_shape& m : jit::builtin_models()) {
            array.push_back({{"name", m.name},
                             {"hidden", m.hidden},
                             {"experts", m.num_experts},
                             {"topk", m.topk},
                             {"dtype", name(m.token_type)},
                             {"fp8_dispatch", m.fp8_dispatch}});
        }
        print_json({{"models", std::move(array)}});
        return exit_done;
    }
    table t({{"model"}, {"hidden", true}, {"experts", true}, {"topk", true}, {"dtype"}, {"dispatch"}});
    for (const jit::model_shape& m : jit::builtin_models()) {
        t.add({m.name, std::to_string(m.hidden), std::to_string(m.num_experts), std::to_string(m.topk),
               std::string(name(m.token_type)),
               m.fp8_dispatch ? fmt::format("{} or fp8", name(m.token_type)) : std::string(name(m.token_type))});
    }
    print(fmt::format("{}\nany other model: --config FILE with its Hugging Face config.json\n", t.text()));
    return exit_done;
}

}  // namespace epjit::tools
