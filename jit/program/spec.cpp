// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/spec.hpp"

#include "epjit/jit/templates.hpp"
#include "jit/program/program.hpp"

#include <fmt/format.h>

#include <charconv>

namespace epjit::jit {

std::string_view name(kernel_kind kind) noexcept {
    switch (kind) {
        case kernel_kind::plan: return "plan";
        case kernel_kind::permute_dispatch: return "permute+dispatch";
        case kernel_kind::unpermute_combine: return "unpermute+combine";
        case kernel_kind::weight_gradient: return "weight_gradient";
        case kernel_kind::exchange_plan: return "exchange_plan";
        case kernel_kind::gathered_plan: return "gathered_plan";
        case kernel_kind::exchange_helpers: return "exchange_helpers";
        case kernel_kind::exchange_dispatch: return "exchange_dispatch";
        case kernel_kind::exchange_combine: return "exchange_combine";
        case kernel_kind::low_latency_dispatch: return "low_latency_dispatch";
        case kernel_kind::low_latency_combine: return "low_latency_combine";
        case kernel_kind::direct_dispatch: return "direct_dispatch";
    }
    return "?";
}

std::string target_arch::text() const {
    std::string text = fmt::format("sm_{}", number);
    if (suffix != 0) {
        text.push_back(suffix);
    }
    return text;
}

std::optional<target_arch> target_arch::parse(std::string_view text) noexcept {
    if (!text.starts_with("sm_")) {
        return std::nullopt;
    }
    text.remove_prefix(3);
    target_arch arch;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), arch.number);
    if (failure != std::errc{} || text.front() == '0' || arch.number < 50 || arch.number > 999) {
        return std::nullopt;
    }
    const std::string_view rest = text.substr(static_cast<std::size_t>(end - text.data()));
    if (rest == "a" || rest == "f") {
        arch.suffix = rest.front();
        return arch;
    }
    return rest.empty() ? std::optional(arch) : std::nullopt;
}

std::string describe(const variant_spec& s) {
    std::string text = fmt::format("{} {}", name(s.kind), s.arch.text());
    const auto add = [&text](std::string_view field, auto value) { text.append(fmt::format(" {}={}", field, value)); };
    if (s.exchange != exchange_kind::automatic) {
        add("exchange", name(s.exchange));
    }
    const bool plans =
        s.kind == kernel_kind::plan || s.kind == kernel_kind::exchange_plan || s.kind == kernel_kind::gathered_plan;
    if (plans) {
        add("E", s.num_experts);
        add("S", s.num_slots);
    } else if (s.kind != kernel_kind::exchange_helpers) {
        add("H", s.hidden);
    }
    if (s.num_ranks != 0) {
        add(plans ? "R" : "R<", s.num_ranks);
    }
    add("K", s.topk);
    if (plans) {
        text.append(s.sparse ? " sparse" : " dense");
    } else if (s.kind == kernel_kind::exchange_helpers) {
        return text;
    } else if (s.input == s.output) {
        add("type", name(s.input));
    } else {
        text.append(fmt::format(" type={}->{}", name(s.input), name(s.output)));
    }
    if (s.scales != scale_type::none) {
        add("scales", name(s.scales));
    }
    add("threads", s.threads);
    if (s.kind == kernel_kind::permute_dispatch || s.kind == kernel_kind::exchange_dispatch ||
        s.kind == kernel_kind::direct_dispatch) {
        add("stages", s.stages);
        if (s.movers != 0) {
            add("movers", s.movers);
        }
    } else if (s.kind == kernel_kind::exchange_combine) {
        add("stages", s.stages);
        if (s.movers != 0) {
            add("teams", s.movers);
        }
    }
    return text;
}

digest variant_key(const variant_spec& s, const template_set& templates) {
    const program p = make_program(s);
    field_hasher hasher;
    hasher.add("epjit variant").add(program_schema);
    hasher.add(s.kind).add(s.exchange).add(s.arch.number).add(s.arch.suffix);
    hasher.add(s.input).add(s.output).add(s.scales).add(s.sparse);
    hasher.add(s.hidden).add(s.num_experts).add(s.num_slots).add(s.num_ranks).add(s.topk);
    hasher.add(s.threads).add(s.stages).add(s.movers);
    // The generated source too: a change of the generator then needs no thought of the schema number.
    hasher.add(std::string_view(program_name)).add(p.source).add(p.options.size());
    for (const std::string& option : p.options) {
        hasher.add(option);
    }
    for (const program_kernel& kernel : p.kernels) {
        hasher.add(kernel.name).add(kernel.expression);
    }
    return hasher.add(templates.closure_digest(p.root)).finish();
}

}  // namespace epjit::jit
