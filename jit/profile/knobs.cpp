// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/knobs.hpp"

#include "templates/exchange/dispatch_layout.cuh"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::jit {
namespace {

// Threads end where registers would spill: the kernels promise a number of blocks of them to an SM.
constexpr knob_info infos[] = {
    {"scatter_threads", &knobs::scatter_threads, 32, 256, 32, true},
    {"scatter_stages", &knobs::scatter_stages, 2, 48, 1, true},
    {"scatter_movers", &knobs::scatter_movers, 1, 16, 1, true},
    {"gather_threads", &knobs::gather_threads, 32, 512, 32, true},
    {"dispatch_stages", &knobs::dispatch_stages, 2, 48, 1, true},
    {"dispatch_movers", &knobs::dispatch_movers, 1, 16, 1, true},
    {"combine_threads", &knobs::combine_threads, 32, 512, 32, true},
    {"combine_stages", &knobs::combine_stages, 4, 48, 1, true},
    {"combine_teams", &knobs::combine_teams, 1, 8, 1, true},
    {"dispatch_launches", &knobs::dispatch_launches, 1, 2, 1, false},
    {"dispatch_senders", &knobs::dispatch_senders, 1, 1024, 1, false},
    {"dispatch_chunk", &knobs::dispatch_chunk, 1, 64, 1, false},
    {"dispatch_follows", &knobs::dispatch_follows, 1, 2, 1, false},
    {"window_dispatch", &knobs::window_dispatch, 1, 2, 1, false},
    {"combine_launches", &knobs::combine_launches, 1, 2, 1, false},
    {"combine_senders_percent", &knobs::combine_senders_percent, 5, 95, 1, false},
};

/// Rows in flight and the warps that share them: each warp loads one row while it stores another.
void set_ring(variant_spec& spec, std::int32_t stages, std::int32_t movers) noexcept {
    if (spec.stages == 0) {
        return;  // bulk copies cannot move these rows
    }
    if (stages != 0) {
        spec.stages = std::clamp(stages, 2, spec.stages);
    }
    if (movers != 0) {
        spec.movers = movers;
    }
    spec.movers = std::min(spec.movers, std::max(1, spec.stages / 2));
}

/// Of a whole combine: the rows of a block, the teams that share them, the threads of each that sum.
void set_teams(variant_spec& spec, const knobs& values) noexcept {
    if (spec.stages == 0) {
        if (values.combine_threads != 0) {
            spec.threads = std::min(values.combine_threads, 448);
        }
        return;
    }
    if (values.combine_stages != 0) {
        spec.stages = std::clamp(values.combine_stages, 4, spec.stages);
    }
    if (values.combine_teams != 0) {
        spec.movers = values.combine_teams;
    }
    spec.movers = templates::ring_teams(spec.movers, spec.hidden, spec.stages);
    const std::int32_t most = (templates::most_ring_block_threads / spec.movers - templates::ring_helpers) / 32 * 32;
    spec.threads = std::min(std::max(spec.threads, values.combine_threads), std::max(spec.threads, most));
}

}  // namespace

knobs knobs::part(bool of_programs) const noexcept {
    knobs kept;
    for (const knob_info& k : infos) {
        if (k.of_program == of_programs) {
            kept.*k.field = this->*k.field;
        }
    }
    return kept;
}

std::span<const knob_info> knob_infos() noexcept {
    return infos;
}

knobs cost_model_launches() noexcept {
    knobs k;
    k.dispatch_launches = 1;
    k.dispatch_follows = 2;
    k.combine_launches = 1;
    k.combine_senders_percent = 35;  // those that finish tokens also read what arrives
    return k;
}

knobs filled(knobs values, const knobs& otherwise) noexcept {
    for (const knob_info& k : infos) {
        if (values.*k.field == 0) {
            values.*k.field = otherwise.*k.field;
        }
    }
    return values;
}

variant_spec with_knobs(variant_spec spec, const knobs& values) noexcept {
    const auto set_threads = [&spec](std::int32_t threads) {
        if (threads != 0) {
            spec.threads = threads;
        }
    };
    switch (spec.kind) {
        case kernel_kind::permute_dispatch:
            set_threads(values.scatter_threads);
            set_ring(spec, values.scatter_stages, values.scatter_movers);
            break;
        case kernel_kind::exchange_dispatch:
        case kernel_kind::direct_dispatch: set_ring(spec, values.dispatch_stages, values.dispatch_movers); break;
        case kernel_kind::unpermute_combine: set_threads(values.gather_threads); break;
        case kernel_kind::exchange_combine: set_teams(spec, values); break;
        case kernel_kind::plan:
        case kernel_kind::weight_gradient:
        case kernel_kind::exchange_plan:
        case kernel_kind::gathered_plan:
        case kernel_kind::exchange_helpers:
        case kernel_kind::low_latency_dispatch:
        case kernel_kind::low_latency_combine: break;
    }
    return spec;
}

std::string describe(const knobs& values) {
    std::string text;
    for (const knob_info& k : infos) {
        if (values.*k.field != 0) {
            text += fmt::format("{}{}={}", text.empty() ? "" : " ", k.name, values.*k.field);
        }
    }
    return text.empty() ? "none" : text;
}

}  // namespace epjit::jit
