// SPDX-License-Identifier: Apache-2.0
// Decode steps: plan, dispatch and combine of few tokens, 50 pairs of them in one graph, each with another routing.
#include "epjit/error.hpp"
#include "tools/bench/ranks_suite.hpp"
#include "tools/command/context.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::tools {
namespace {

constexpr int phases = 2;  ///< a dispatch and a combine, each a launch and a flag to the peer and back

/// Calls of one step that are timed: all, or one of them on a plan that stands.
enum class step_part : std::uint8_t { pair, plan, dispatch, combine };

std::string_view text(step_part part) {
    switch (part) {
        case step_part::pair: return "pair";
        case step_part::plan: return "plan alone";
        case step_part::dispatch: return "dispatch alone";
        case step_part::combine: return "combine alone";
    }
    return "";
}

/// Microseconds of a step; empty where the calls cannot be captured. @throws unsupported_error where `kind` is not
/// there.
job_times time_steps(bench_machine& machine, const bench_shape& shape, const bench_routing& routing, exchange_kind kind,
                     const repeats& n, step_part part) {
    const auto ranks = static_cast<std::size_t>(machine.num_ranks());
    job_times times{std::vector<std::vector<double>>(ranks), {}, 0};
    machine.team().run([&](int r) {
        bench_layer layer(machine.rank(r), r, shape, routing, kind);
        const auto pairs = [&] {
            for (int set = 0; set < shape.sets; ++set) {
                if (part == step_part::pair || part == step_part::plan) {
                    layer.plan(set);
                }
                if (part == step_part::pair || part == step_part::dispatch) {
                    layer.dispatch();
                }
                if (part == step_part::pair || part == step_part::combine) {
                    layer.combine();
                }
            }
        };
        machine.team().meet();
        const std::uint64_t before = machine.rt().counters().launches;
        machine.team().meet();
        pairs();
        machine.rank(r).stream.synchronize();
        machine.team().meet();
        if (r == 0) {
            times.launches =
                (machine.rt().counters().launches - before) / ranks / static_cast<std::uint64_t>(shape.sets);
        }
        const host::gpu_graph graph = capture_together(machine, r, pairs);
        if (graph) {
            auto& us = times.us[static_cast<std::size_t>(r)];
            us = machine.time(r, n, [&] { graph.launch(machine.rank(r).stream.get()); });
            std::for_each(us.begin(), us.end(), [&](double& t) { t /= shape.sets; });
        }
        machine.rank(r).stream.synchronize();
        machine.team().meet();
    });
    return times;
}

/// False: there is nothing to time with `kind`.
bool add_steps(bench_report& report, bench_machine& machine, const machine_rates& rates, const bench_shape& shape,
               const bench_routing& routing, exchange_kind kind, const repeats& n, step_part part) {
    job_times times;
    try {
        times = time_steps(machine, shape, routing, kind, n, part);
    } catch (const unsupported_error& e) {
        note_missing(report, kind, e);
        return false;
    }
    if (times.us.front().empty()) {
        note_missing(report, kind, error(error_kind::unsupported, "its calls could not be captured in a graph"));
        return false;
    }
    bench_row r;
    r.name = fmt::format("decode {} {}", text(part), name(shape.rows));
    r.us = slowest_median(times.us);
    r.exchange = name(kind);
    r.shape = shape.text();
    r.launches = times.launches;
    if (part == step_part::pair) {
        const operation_bytes bytes =
            bytes_of(routing.rows, shape.rows, row_bytes(shape.hidden, dtype::bf16, scale_type::none));
        // Bytes both ways, then what no message is faster than, once for each phase.
        r.floor_us = 2 * floor_of(bytes, rates, 0) + phases * rates.t0_us();
        r.bytes = 2 * bytes.link;
    }
    report.rows.push_back(std::move(r));
    return true;
}

}  // namespace

void decode_suite(const context& ctx, bench_report& report) {
    const ranks_options options = ranks_options_of(ctx);
    runtime rt(ctx.runtime_options());
    bench_machine machine(rt, options.ranks);
    const machine_rates rates = machine.measure(options.n);
    add_rates(report, rates);
    // A graph holds 50 pairs, so fewer replays say as much.
    const repeats n{std::max(1, options.n.warmup / 10), std::max(1, options.n.timed / 5)};
    const std::size_t rows_before = report.rows.size();
    for (const bench_shape& shape : decode_shapes(options, machine.num_ranks())) {
        const bench_routing routing(shape, machine.num_ranks());
        for (const exchange_kind kind : options.kinds) {
            for (const step_part part : {step_part::pair, step_part::plan, step_part::dispatch, step_part::combine}) {
                if (part != step_part::pair && shape.rows == layout::expert_major) {
                    continue;
                }
                if (!add_steps(report, machine, rates, shape, routing, kind, n, part)) {
                    break;
                }
            }
        }
    }
    if (report.rows.size() == rows_before) {
        refuse_without_rows(report);
    }
    report.notes.push_back(fmt::format(
        "decode on {} x {}: plan, dispatch and combine, 50 pairs in one graph, each with another routing; us "
        "of one pair, the slowest rank of each replay",
        machine.num_ranks(), machine.rank(0).context->name()));
}

}  // namespace epjit::tools
