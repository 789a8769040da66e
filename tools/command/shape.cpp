// SPDX-License-Identifier: Apache-2.0
#include "tools/command/shape.hpp"

#include "tools/command/machine.hpp"
#include "tools/command/values.hpp"

#include <algorithm>
#include <limits>

namespace epjit::tools {
namespace {

constexpr std::int64_t max_int = std::numeric_limits<std::int32_t>::max();

/// "fp8" is the command's name of fp8_e4m3.
std::optional<dtype> dtype_option(const invocation& call) {
    const auto text = call.value("--dtype");
    if (!text) {
        return std::nullopt;
    }
    if (*text == "fp8") {
        return dtype::fp8_e4m3;
    }
    const auto type = epjit::parse<dtype>(*text);
    if (!type) {
        refuse_value("--dtype", choices(call, "--dtype"), *text);
    }
    return type;
}

std::string routing_option(const invocation& call) {
    const std::string text = call.value("--routing").value_or("uniform");
    const std::string plain = plain_name(text);
    if (std::find(std::begin(routing_names), std::end(routing_names), plain) != std::end(routing_names)) {
        return plain;
    }
    if (!text.ends_with(".npy")) {
        refuse_value("--routing", choices(call, "--routing"), text);
    }
    return text;
}

}  // namespace

run_options shape_options(const context& ctx) {
    const invocation& call = ctx.call;
    run_options o;
    o.model = model_option(call);
    o.exchange = enum_option(call, "--exchange", exchange_kind::automatic);
    if (o.exchange == exchange_kind::automatic) {
        o.exchange = ctx.env.exchange;
    }
    o.ranks = static_cast<std::int32_t>(number_option(call, "--ranks", 0, 1, max_int));
    if (call.has("--tokens")) {
        o.tokens = static_cast<std::int32_t>(number_option(call, "--tokens", 0, 0, max_int));
    }
    o.routing = routing_option(call);
    o.layout = enum_option(call, "--layout", layout::expert_major);
    o.type = dtype_option(call);
    o.reduction = enum_option(call, "--reduction",
                              o.exchange == exchange_kind::hybrid ? reduction::per_host : reduction::per_rank);
    o.graph = call.has("--graph");
    o.window = call.has("--window");
    o.low_latency = call.has("--low-latency");
    // Only calls that read nothing back can be captured.
    o.mode = enum_option(call, "--mode", o.graph ? mode::fixed : mode::exact);
    o.source = enum_option(call, "--plan-source", plan_source::automatic);
    o.staging_bytes = number_option(call, "--staging-bytes", 0, 0, std::numeric_limits<std::int64_t>::max());
    o.seed = static_cast<std::uint64_t>(
        number_option(call, "--seed", static_cast<std::int64_t>(o.seed), 0, std::numeric_limits<std::int64_t>::max()));
    o.iters = static_cast<std::int32_t>(number_option(call, "--iters", 1, 1, max_int));
    return o;
}

jit::run_request request_of(const run_options& run, jit::target_arch arch) {
    const dtype type = run.type.value_or(run.model.token_type);
    const bool quantised = type == dtype::fp8_e4m3;
    jit::run_request r;
    r.hidden = run.model.hidden;
    r.num_experts = run.model.num_experts;
    r.num_slots = run.model.num_experts;
    r.topk = run.model.topk;
    r.num_ranks = run.ranks;
    r.arch = arch;
    r.exchange = run.exchange;
    r.input = quantised ? (run.model.token_type == dtype::fp8_e4m3 ? dtype::bf16 : run.model.token_type) : type;
    r.wire = type;
    r.scales = !quantised                                 ? scale_type::none
               : run.model.fp8_scales == scale_type::none ? scale_type::f32
                                                          : run.model.fp8_scales;
    r.combine = r.input;
    r.windows = run.window;
    r.low_latency = run.low_latency;
    return r;
}

}  // namespace epjit::tools
