// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/variants.hpp"

#include "epjit/error.hpp"
#include "templates/base/types.cuh"
#include "templates/exchange/dispatch_layout.cuh"
#include "templates/low_latency/packet_layout.cuh"
#include "templates/plan/gathered_plan_layout.cuh"
#include "templates/rows/rows_layout.cuh"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::jit {
namespace {

constexpr std::int32_t max_ranks = templates::max_driven_ranks;
constexpr std::int32_t vector_bytes = 16;

void check(std::string_view what, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high) {
        throw config_error(fmt::format("{} is {}; this version compiles kernels for {} to {}", what, value, low, high));
    }
}

void check_rows(std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk) {
    check("the number of ranks", num_ranks, 1, max_ranks);
    check("the hidden size", hidden, 1, max_hidden);
    check("TOPK", topk, 1, templates::max_topk);
}

/// Rows move the same way on every exchange of a GPU: loopback in one launch for all ranks, real ranks in two.
void check_exchange(exchange_kind exchange, std::int32_t num_ranks) {
    if (num_ranks > 1 && (exchange == exchange_kind::automatic || exchange == exchange_kind::host)) {
        throw config_error(fmt::format("exchange {} has no kernels for {} ranks", name(exchange), num_ranks),
                           "choose loopback, lsa, sendrecv, dense or hybrid");
    }
}

bool between_real_ranks(exchange_kind exchange) {
    return exchange == exchange_kind::lsa || exchange == exchange_kind::sendrecv || exchange == exchange_kind::dense ||
           exchange == exchange_kind::hybrid;
}

/// Threads of a block that walks rows of `row_bytes` in 16-byte steps: the multiple of 32 up to `most` that leaves the
/// fewest lanes idle over the row, and of equals the largest (7168 bf16 up to 256: 896 vectors, 224 threads, 4 full
/// steps). A gather's blocks are small, so that more tokens are under way: on an H200 rows of 4 KiB took 43 us with 128
/// threads and 55 with 224.
std::int32_t row_threads(std::int64_t row_bytes, std::int32_t most) {
    const std::int64_t vectors = templates::ceil_div<std::int64_t>(row_bytes, vector_bytes);
    std::int32_t best = 32;
    std::int64_t best_lanes = templates::ceil_div<std::int64_t>(vectors, 32) * 32;
    for (std::int32_t threads = 64; threads <= most; threads += 32) {
        const std::int64_t lanes = templates::ceil_div<std::int64_t>(vectors, threads) * threads;
        if (lanes <= best_lanes) {
            best = threads;
            best_lanes = lanes;
        }
    }
    return best;
}

/// Rows in flight of the bulk-copy kernel, `stage_bytes` of shared memory each, 0 where it cannot exist: bulk copies
/// come with sm_90, move multiples of 16 bytes and cannot convert. Two rows at least must fit, or nothing overlaps.
/// Short rows want more of them.
std::int32_t bulk_stages(target_arch arch, std::int64_t row_bytes, bool converts, std::int64_t stage_bytes,
                         std::int64_t beside = 0) {
    // Shared memory of a block: 227 KB on sm_90, sm_100, sm_103 and sm_110, 99 KB on sm_120 and sm_121, a little of it
    // for other things, of which `beside` more.
    const std::int64_t budget = (arch.number >= 120 ? 92 : 220) * 1024 - std::max<std::int64_t>(0, beside - 4096);
    if (arch.number < 90 || converts || row_bytes % vector_bytes != 0 || 2 * stage_bytes > budget) {
        return 0;
    }
    return static_cast<std::int32_t>(std::min<std::int64_t>(48, budget / stage_bytes));
}

void append_unique(std::vector<variant_spec>& list, const variant_spec& spec) {
    if (std::find(list.begin(), list.end(), spec) == list.end()) {
        list.push_back(spec);
    }
}

/// Only where there is such a kernel.
void append_dispatch(std::vector<variant_spec>& list, const variant_spec& spec) {
    if (spec.stages > 0) {
        append_unique(list, spec);
    }
}

struct row_types {
    dtype input, output;
    scale_type scales;
};

/// What permute and dispatch may be asked for. Base: the model's own rows; with an fp8 model also rows that
/// the caller has quantised and rows that the fused quantiser makes.
std::vector<row_types> scatter_types(const model_shape& model, variant_set set) {
    const dtype own = model.token_type;
    std::vector<row_types> types{{own, own, scale_type::none}};
    if (model.fp8_dispatch) {
        types.push_back({own, dtype::fp8_e4m3, model.fp8_scales});
        types.push_back({dtype::fp8_e4m3, dtype::fp8_e4m3, model.fp8_scales});
    }
    if (set == variant_set::all) {
        for (const dtype type : {dtype::bf16, dtype::fp16, dtype::f32}) {
            types.push_back({type, type, scale_type::none});
        }
        for (const scale_type scales : {scale_type::f32, scale_type::ue8m0}) {
            for (const dtype type : {dtype::bf16, dtype::fp16, dtype::f32, dtype::fp8_e4m3}) {
                types.push_back({type, dtype::fp8_e4m3, scales});
            }
        }
    }
    return types;
}

std::vector<dtype> gather_types(const model_shape& model, variant_set set) {
    std::vector<dtype> types{model.token_type};
    if (set == variant_set::all) {
        for (const dtype type : {dtype::bf16, dtype::fp16, dtype::f32}) {
            types.push_back(type);
        }
    }
    return types;
}

/// Everything that runs on `num_ranks` ranks.
void list_ranks(const variant_request& request, target_arch arch, std::int32_t num_ranks,
                std::vector<variant_spec>& list) {
    const model_shape& m = request.model;
    for (const bool sparse : {false, true}) {
        if (sparse && request.set != variant_set::all) {
            continue;
        }
        append_unique(list, plan_spec(arch, m.num_experts, m.num_experts, num_ranks, m.topk, sparse));
        if (num_ranks > 1) {
            append_unique(list, exchange_plan_spec(arch, m.num_experts, m.num_experts, num_ranks, m.topk, sparse));
            append_unique(list, gathered_plan_spec(arch, m.num_experts, m.num_experts, num_ranks, m.topk, sparse));
        }
    }
    if (num_ranks > 1) {
        append_unique(list, exchange_helpers_spec(arch, num_ranks, m.topk));
    }
    for (const row_types& t : scatter_types(m, request.set)) {
        if (num_ranks > 1 && t.input == t.output) {
            append_dispatch(list, exchange_dispatch_spec(arch, num_ranks, m.hidden, m.topk, t.input, t.scales));
            append_unique(list, low_latency_dispatch_spec(arch, m.hidden, m.topk, t.input, t.scales));
            if (request.set == variant_set::all) {
                append_dispatch(list, direct_dispatch_spec(arch, num_ranks, m.hidden, m.topk, t.input, t.scales));
            }
        }
        append_unique(list, scatter_spec(arch, exchange_kind::loopback, num_ranks, m.hidden, m.topk, t.input, t.output,
                                         t.scales));
    }
    for (const dtype type : gather_types(m, request.set)) {
        append_unique(list, gather_spec(arch, exchange_kind::loopback, num_ranks, m.hidden, m.topk, type));
        if (num_ranks > 1) {
            append_unique(list, exchange_combine_spec(arch, num_ranks, m.hidden, m.topk, type));
            append_unique(list, low_latency_combine_spec(arch, m.hidden, m.topk, type));
        }
        if (request.set == variant_set::all) {
            append_unique(list, weight_gradient_spec(arch, num_ranks, m.hidden, m.topk, type));
        }
    }
}

}  // namespace

variant_spec plan_spec(target_arch arch, std::int32_t num_experts, std::int32_t num_slots, std::int32_t num_ranks,
                       std::int32_t topk, bool sparse) {
    check("the number of experts", num_experts, 1, templates::max_experts);
    check("the number of expert slots", num_slots, num_experts, templates::max_slots);
    check("the number of ranks", num_ranks, 1, max_ranks);
    check("TOPK", topk, 1, std::min(templates::max_topk, num_experts));
    variant_spec s;
    s.kind = kernel_kind::plan;
    s.arch = arch;
    s.sparse = sparse;
    s.num_experts = num_experts;
    s.num_slots = num_slots;
    s.num_ranks = num_ranks;
    s.topk = topk;
    s.threads = 512;
    return s;
}

variant_spec exchange_plan_spec(target_arch arch, std::int32_t num_experts, std::int32_t num_slots,
                                std::int32_t num_ranks, std::int32_t topk, bool sparse) {
    variant_spec s = plan_spec(arch, num_experts, num_slots, num_ranks, topk, sparse);
    s.kind = kernel_kind::exchange_plan;
    return s;
}

variant_spec gathered_plan_spec(target_arch arch, std::int32_t num_experts, std::int32_t num_slots,
                                std::int32_t num_ranks, std::int32_t topk, bool sparse) {
    variant_spec s = plan_spec(arch, num_experts, num_slots, num_ranks, topk, sparse);
    s.kind = kernel_kind::gathered_plan;
    s.threads = templates::gathered_plan_threads;
    return s;
}

variant_spec exchange_helpers_spec(target_arch arch, std::int32_t num_ranks, std::int32_t topk) {
    check("the number of ranks", num_ranks, 1, max_ranks);
    check("TOPK", topk, 1, templates::max_topk);
    variant_spec s;
    s.kind = kernel_kind::exchange_helpers;
    s.arch = arch;
    s.num_ranks = templates::arguments_for_ranks(num_ranks);
    s.topk = topk;
    return s;
}

variant_spec scatter_spec(target_arch arch, exchange_kind exchange, std::int32_t num_ranks, std::int32_t hidden,
                          std::int32_t topk, dtype input, dtype output, scale_type scales) {
    check_rows(num_ranks, hidden, topk);
    check_exchange(exchange, num_ranks);
    if (input != output && output != dtype::fp8_e4m3) {
        throw config_error(fmt::format("rows of {} cannot be dispatched as {}", name(input), name(output)),
                           "dispatch as the input's type, or as fp8");
    }
    const bool needs_scales = output == dtype::fp8_e4m3 && input != output;
    if (output != dtype::fp8_e4m3 ? scales != scale_type::none : needs_scales && scales == scale_type::none) {
        throw config_error(
            fmt::format("{} rows dispatched as {} with scales {}", name(input), name(output), name(scales)),
            "quantising to fp8 needs f32 or ue8m0 scales, rows that are not fp8 have none");
    }
    const std::int64_t row_bytes = hidden * size_of(input);
    variant_spec s;
    s.kind = kernel_kind::permute_dispatch;
    s.arch = arch;
    s.input = input;
    s.output = output;
    s.scales = scales;
    s.hidden = hidden;
    s.num_ranks = templates::arguments_for_ranks(num_ranks);
    s.topk = topk;
    s.threads = row_threads(row_bytes, 256);
    s.stages = bulk_stages(arch, row_bytes, input != output,
                           templates::bulk_stage_bytes(static_cast<std::int32_t>(row_bytes)));
    return s;
}

namespace {

/// What gathers and weight gradients share.
variant_spec row_sum_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                          dtype type) {
    check_rows(num_ranks, hidden, topk);
    if (type == dtype::fp8_e4m3) {
        throw config_error("rows of fp8 cannot be combined", "combine takes bf16, fp16 or f32");
    }
    variant_spec s;
    s.arch = arch;
    s.input = type;
    s.output = type;
    s.hidden = hidden;
    s.num_ranks = templates::arguments_for_ranks(num_ranks);
    s.topk = topk;
    s.threads = row_threads(hidden * size_of(type), 128);
    return s;
}

}  // namespace

variant_spec gather_spec(target_arch arch, exchange_kind exchange, std::int32_t num_ranks, std::int32_t hidden,
                         std::int32_t topk, dtype type) {
    variant_spec s = row_sum_spec(arch, num_ranks, hidden, topk, type);
    s.kind = kernel_kind::unpermute_combine;
    check_exchange(exchange, num_ranks);
    return s;
}

variant_spec weight_gradient_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                                  dtype type) {
    variant_spec s = row_sum_spec(arch, num_ranks, hidden, topk, type);
    s.kind = kernel_kind::weight_gradient;
    return s;
}

variant_spec exchange_dispatch_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                                    dtype type, scale_type scales) {
    variant_spec s = scatter_spec(arch, exchange_kind::lsa, num_ranks, hidden, topk, type, type, scales);
    s.kind = kernel_kind::exchange_dispatch;
    s.threads = 0;
    const std::int64_t row_bytes = hidden * size_of(type);
    s.stages = bulk_stages(arch, row_bytes, false,
                           templates::dispatch_stage_bytes(
                               static_cast<templates::i32>(row_bytes),
                               templates::bulk_scale_bytes(hidden, static_cast<templates::group_scale>(scales)), topk),
                           templates::dispatch_static_bytes(s.num_ranks));
    // A warp waits for a line's place and flag before it moves the row: several share the stages, three each.
    s.movers = std::clamp(s.stages / 3, 1, 8);
    return s;
}

variant_spec direct_dispatch_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                                  dtype type, scale_type scales) {
    variant_spec s = exchange_dispatch_spec(arch, num_ranks, hidden, topk, type, scales);
    s.kind = kernel_kind::direct_dispatch;
    return s;
}

variant_spec exchange_combine_spec(target_arch arch, std::int32_t num_ranks, std::int32_t hidden, std::int32_t topk,
                                   dtype type) {
    variant_spec s = row_sum_spec(arch, num_ranks, hidden, topk, type);
    s.kind = kernel_kind::exchange_combine;
    const std::int64_t row_bytes = hidden * size_of(type);
    // Rows through shared memory: two of them are for sums, and a few must be on their way.
    constexpr std::int32_t fewest_stages = 6;
    if (const std::int32_t stages =
            bulk_stages(arch, row_bytes, false, row_bytes, templates::combine_static_bytes(s.num_ranks, topk));
        stages >= fewest_stages && hidden <= templates::most_ring_hidden) {
        s.stages = stages;
        // Short rows: several sums at a time, or what each costs besides its rows shows.
        s.movers = templates::ring_teams(stages / 12, hidden, stages);
        s.threads = templates::ring_threads(hidden);
        return s;
    }
    // A row of many vectors by more threads: fewer rows are under way at once, and what waits for one waits less.
    constexpr std::int64_t long_row = 8192;
    s.threads = row_bytes >= long_row ? row_threads(row_bytes, 224) : s.threads;
    return s;
}

namespace {

/// Threads of a block that takes a part of a row, each a unit of it: the fewest that need no more parts than `most`
/// would. Few, so that a row leaves by several SMs and arrives at as many.
std::int32_t unit_threads(std::int32_t units, std::int32_t most) {
    const std::int32_t parts = templates::ceil_div(units, most);
    return templates::ceil_div(templates::ceil_div(units, parts), 32) * 32;
}

}  // namespace

variant_spec low_latency_dispatch_spec(target_arch arch, std::int32_t hidden, std::int32_t topk, dtype type,
                                       scale_type scales) {
    variant_spec s = scatter_spec(arch, exchange_kind::lsa, 1, hidden, topk, type, type, scales);
    s.kind = kernel_kind::low_latency_dispatch;
    s.num_ranks = 0;
    s.stages = 0;
    // A warp more for what travels beside the row.
    const templates::row_record record = templates::row_record_of(hidden, static_cast<templates::element>(type),
                                                                  static_cast<templates::group_scale>(scales), topk);
    s.threads = unit_threads(record.units(), 96) + 32;
    return s;
}

variant_spec low_latency_combine_spec(target_arch arch, std::int32_t hidden, std::int32_t topk, dtype type) {
    variant_spec s = row_sum_spec(arch, 1, hidden, topk, type);
    s.kind = kernel_kind::low_latency_combine;
    s.num_ranks = 0;
    s.threads = unit_threads(templates::sum_record_of(hidden, static_cast<templates::element>(type)).units(), 160);
    return s;
}

namespace {

/// What runs load whose exchange takes the knobs of `entry`. Ranks of several hosts are more than those of its key.
void list_tuned(const variant_request& request, const profile_entry& entry, target_arch arch, std::int32_t num_ranks,
                std::vector<variant_spec>& list) {
    const model_shape& m = request.model;
    tuning_key of = entry.key;  // where the request has no say
    of.arch = arch;
    of.hidden = m.hidden;
    of.experts = m.num_experts;
    of.topk = m.topk;
    for (const row_types& t : scatter_types(m, request.set)) {
        for (const dtype combine : gather_types(m, request.set)) {
            of.input = t.input;
            of.dispatch = t.output;
            of.scales = t.scales;
            of.combine = combine;
            if (!serves(entry.key, of) || entry.key.ranks > num_ranks) {
                continue;
            }
            run_request run{.hidden = m.hidden,
                            .num_experts = m.num_experts,
                            .num_slots = m.num_experts,
                            .topk = m.topk,
                            .num_ranks = num_ranks,
                            .arch = arch,
                            .input = t.input,
                            .wire = t.output,
                            .scales = t.scales,
                            .combine = combine,
                            .windows = request.set == variant_set::all,
                            .programs = entry.values};
            for (const exchange_kind kind : {exchange_kind::loopback, exchange_kind::lsa}) {
                run.exchange = kind;
                if (kind != exchange_kind::loopback && num_ranks == 1) {
                    continue;
                }
                for (const variant_spec& spec : run_variants(run)) {
                    append_unique(list, spec);
                }
            }
        }
    }
}

}  // namespace

std::vector<variant_spec> list_variants(const variant_request& request) {
    std::vector<variant_spec> list;
    for (const target_arch arch : request.archs) {
        for (const std::int32_t num_ranks : request.ranks) {
            list_ranks(request, arch, num_ranks, list);
            for (const profile_entry& entry : request.tuned) {
                if (entry.values.has_programs()) {
                    list_tuned(request, entry, arch, num_ranks, list);
                }
            }
        }
    }
    return list;
}

std::vector<variant_spec> run_variants(const run_request& r) {
    if (r.exchange == exchange_kind::host) {
        return {};
    }
    const bool sparse = r.routing == routing_form::sparse;
    std::vector<variant_spec> list;
    const auto scatter = [&](dtype input, dtype output, scale_type scales) {
        append_unique(list, scatter_spec(r.arch, r.exchange, r.num_ranks, r.hidden, r.topk, input, output, scales));
    };
    const bool real = between_real_ranks(r.exchange);
    if (real) {
        list.push_back(exchange_plan_spec(r.arch, r.num_experts, r.num_slots, r.num_ranks, r.topk, sparse));
        list.push_back(gathered_plan_spec(r.arch, r.num_experts, r.num_slots, r.num_ranks, r.topk, sparse));
        list.push_back(exchange_helpers_spec(r.arch, r.num_ranks, r.topk));
    } else {
        list.push_back(plan_spec(r.arch, r.num_experts, r.num_slots, r.num_ranks, r.topk, sparse));
    }
    scatter(r.input, r.wire, r.scales);
    if (real && r.input != r.wire) {
        // Rows cross as they were quantised, or as they came where every row gets a weight before it is quantised.
        scatter(r.wire, r.wire, r.scales);
        scatter(r.input, r.input, scale_type::none);
    }
    if (r.exchange == exchange_kind::lsa) {
        append_dispatch(list, exchange_dispatch_spec(r.arch, r.num_ranks, r.hidden, r.topk, r.wire, r.scales));
        list.push_back(exchange_combine_spec(r.arch, r.num_ranks, r.hidden, r.topk, r.combine));
        if (r.windows) {
            append_dispatch(list, direct_dispatch_spec(r.arch, r.num_ranks, r.hidden, r.topk, r.wire, r.scales));
        }
        if (r.low_latency) {
            list.push_back(low_latency_dispatch_spec(r.arch, r.hidden, r.topk, r.wire, r.scales));
            list.push_back(low_latency_combine_spec(r.arch, r.hidden, r.topk, r.combine));
        }
    }
    list.push_back(gather_spec(r.arch, r.exchange, r.num_ranks, r.hidden, r.topk, r.combine));
    if (r.backward) {
        list.push_back(weight_gradient_spec(r.arch, r.num_ranks, r.hidden, r.topk, r.combine));
        if (real) {
            scatter(r.combine, r.combine, scale_type::none);  // gradients on their way to the rows' holders
        }
    }
    for (variant_spec& spec : list) {
        spec = with_knobs(spec, r.programs);
    }
    return list;
}

}  // namespace epjit::jit
