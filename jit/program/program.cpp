// SPDX-License-Identifier: Apache-2.0
#include "jit/program/program.hpp"

#include <fmt/format.h>

namespace epjit::jit {
namespace {

constexpr std::string_view roots[] = {"plan/plan.cuh",
                                      "rows/scatter.cuh",
                                      "rows/gather.cuh",
                                      "rows/weight_gradient.cuh",
                                      "plan/exchange_plan.cuh",
                                      "exchange/exchange.cuh",
                                      "exchange/dispatch.cuh",
                                      "exchange/combine.cuh",
                                      "low_latency/dispatch.cuh",
                                      "low_latency/combine.cuh",
                                      "plan/gathered_plan.cuh",
                                      "exchange/direct.cuh"};

constexpr program_kernel plan_kernel{"plan_kernel", "epjit::templates::plan_kernel<epjit::templates::config>"};
constexpr program_kernel scatter_kernel{"scatter_kernel", "epjit::templates::scatter_kernel<epjit::templates::config>"};
constexpr program_kernel scatter_bulk_kernel{"scatter_bulk_kernel",
                                             "epjit::templates::scatter_bulk_kernel<epjit::templates::config>"};
constexpr program_kernel gather_kernel{"gather_kernel", "epjit::templates::gather_kernel<epjit::templates::config>"};
constexpr program_kernel weight_gradient_kernel{"weight_gradient_kernel",
                                                "epjit::templates::weight_gradient_kernel<epjit::templates::config>"};

constexpr program_kernel exchange_plan_kernel{"exchange_plan_kernel",
                                              "epjit::templates::exchange_plan_kernel<epjit::templates::config>"};
constexpr program_kernel gathered_plan_kernel{"gathered_plan_kernel",
                                              "epjit::templates::gathered_plan_kernel<epjit::templates::config>"};
constexpr program_kernel sync_kernel{"sync_kernel", "epjit::templates::sync_kernel<epjit::templates::config>"};
constexpr program_kernel send_weights_kernel{"send_weights_kernel",
                                             "epjit::templates::send_weights_kernel<epjit::templates::config>"};
constexpr program_kernel dispatch_kernel{"dispatch_kernel",
                                         "epjit::templates::dispatch_kernel<epjit::templates::config>"};
constexpr program_kernel direct_dispatch_kernel{"direct_dispatch_kernel",
                                                "epjit::templates::direct_dispatch_kernel<epjit::templates::config>"};
constexpr program_kernel combine_kernel{"combine_kernel", "epjit::templates::combine_kernel<epjit::templates::config>"};
constexpr program_kernel ll_dispatch_kernel{"ll_dispatch_kernel",
                                            "epjit::templates::ll_dispatch_kernel<epjit::templates::config>"};
constexpr program_kernel ll_combine_kernel{"ll_combine_kernel",
                                           "epjit::templates::ll_combine_kernel<epjit::templates::config>"};
constexpr program_kernel return_rows_kernel{"return_rows_kernel",
                                            "epjit::templates::return_rows_kernel<epjit::templates::config>"};
constexpr program_kernel window_lines_kernel{"window_lines_kernel",
                                             "epjit::templates::window_lines_kernel<epjit::templates::config>"};

std::string_view element_text(dtype type) {
    switch (type) {
        case dtype::bf16: return "element::bf16";
        case dtype::fp16: return "element::fp16";
        case dtype::f32: return "element::f32";
        case dtype::fp8_e4m3: return "element::fp8_e4m3";
    }
    return "element::bf16";
}

std::string_view scale_text(scale_type type) {
    switch (type) {
        case scale_type::none: return "group_scale::none";
        case scale_type::f32: return "group_scale::f32";
        case scale_type::ue8m0: return "group_scale::ue8m0";
    }
    return "group_scale::none";
}

std::string config_text(const variant_spec& s) {
    switch (s.kind) {
        case kernel_kind::plan:
        case kernel_kind::exchange_plan:
        case kernel_kind::gathered_plan:
            return fmt::format(
                "plan_config config{{\n    .num_experts = {},\n    .num_slots = {},\n    .num_ranks = {},\n"
                "    .topk = {},\n    .sparse = {},\n    .exchange = {},\n    .threads = {},\n}};\n",
                s.num_experts, s.num_slots, s.num_ranks, s.topk, s.sparse, s.kind != kernel_kind::plan, s.threads);
        case kernel_kind::exchange_helpers:
            return fmt::format("exchange_kernels_config config{{\n    .num_ranks = {},\n    .topk = {},\n}};\n",
                               s.num_ranks, s.topk);
        case kernel_kind::permute_dispatch:
        case kernel_kind::exchange_dispatch:
        case kernel_kind::direct_dispatch:
        case kernel_kind::low_latency_dispatch:
            return fmt::format(
                "scatter_config config{{\n    .hidden = {},\n    .num_ranks = {},\n    .topk = {},\n"
                "    .input = {},\n    .output = {},\n    .scales = {},\n    .threads = {},\n    .stages = "
                "{},\n    .movers = {},\n}};\n",
                s.hidden, s.num_ranks, s.topk, element_text(s.input), element_text(s.output), scale_text(s.scales),
                s.threads, s.stages, s.movers);
        case kernel_kind::unpermute_combine:
        case kernel_kind::weight_gradient:
        case kernel_kind::exchange_combine:
        case kernel_kind::low_latency_combine:
            return fmt::format(
                "gather_config config{{\n    .hidden = {},\n    .num_ranks = {},\n    .topk = {},\n"
                "    .type = {},\n    .threads = {},\n    .stages = {},\n    .teams = {},\n}};\n",
                s.hidden, s.num_ranks, s.topk, element_text(s.input), s.threads, s.stages, s.movers);
    }
    return {};
}

std::vector<program_kernel> kernels_of(const variant_spec& s) {
    switch (s.kind) {
        case kernel_kind::plan: return {plan_kernel};
        case kernel_kind::permute_dispatch:
            return s.stages > 0 ? std::vector{scatter_kernel, scatter_bulk_kernel} : std::vector{scatter_kernel};
        case kernel_kind::unpermute_combine: return {gather_kernel};
        case kernel_kind::weight_gradient: return {weight_gradient_kernel};
        case kernel_kind::exchange_plan: return {exchange_plan_kernel};
        case kernel_kind::gathered_plan: return {gathered_plan_kernel};
        case kernel_kind::exchange_dispatch: return {dispatch_kernel};
        case kernel_kind::direct_dispatch: return {direct_dispatch_kernel};
        case kernel_kind::exchange_combine: return {combine_kernel};
        case kernel_kind::low_latency_dispatch: return {ll_dispatch_kernel};
        case kernel_kind::low_latency_combine: return {ll_combine_kernel};
        case kernel_kind::exchange_helpers:
            return {sync_kernel, send_weights_kernel, return_rows_kernel, window_lines_kernel};
    }
    return {};
}

}  // namespace

std::span<const std::string_view> template_roots() noexcept {
    return roots;
}

std::string_view template_root(kernel_kind kind) noexcept {
    switch (kind) {
        case kernel_kind::plan: return roots[0];
        case kernel_kind::permute_dispatch: return roots[1];
        case kernel_kind::unpermute_combine: return roots[2];
        case kernel_kind::weight_gradient: return roots[3];
        case kernel_kind::exchange_plan: return roots[4];
        case kernel_kind::gathered_plan: return roots[10];
        case kernel_kind::exchange_helpers: return roots[5];
        case kernel_kind::exchange_dispatch: return roots[6];
        case kernel_kind::exchange_combine: return roots[7];
        case kernel_kind::low_latency_dispatch: return roots[8];
        case kernel_kind::low_latency_combine: return roots[9];
        case kernel_kind::direct_dispatch: return roots[11];
    }
    return roots[0];
}

program make_program(const variant_spec& spec) {
    program p;
    // inline: a name of internal linkage would be mangled with the process id, and no two compiles would
    // agree.
    p.root = template_root(spec.kind);
    p.source = fmt::format(
        "#include \"{}\"\n\nnamespace epjit::templates {{\ninline constexpr {}}}  // namespace "
        "epjit::templates\n",
        p.root, config_text(spec));
    // Multiply-add is fused where a template says so and nowhere else (contract 4). The verbose assembler log
    // is where registers and spills come from.
    p.options = {"--gpu-architecture=" + spec.arch.text(), "-std=c++20", "--fmad=false", "--ptxas-options=-v"};
    p.kernels = kernels_of(spec);
    return p;
}

}  // namespace epjit::jit
