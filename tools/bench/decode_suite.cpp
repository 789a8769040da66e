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

/// Microseconds of a pair; empty where the calls cannot be captured. @throws unsupported_error where `kind` is not
/// there.
job_times time_pairs(bench_machine& machine, const bench_shape& shape, const bench_routing& routing, exchange_kind kind,
                     const repeats& n) {
    const auto ranks = static_cast<std::size_t>(machine.num_ranks());
    job_times times{std::vector<std::vector<double>>(ranks), {}, 0};
    machine.team().run([&](int r) {
        bench_layer layer(machine.rank(r), r, shape, routing, kind);
        const auto pairs = [&] {
            for (int set = 0; set < shape.sets; ++set) {
                layer.plan(set);
                layer.dispatch();
                layer.combine();
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
            job_times times;
            try {
                times = time_pairs(machine, shape, routing, kind, n);
            } catch (const unsupported_error& e) {
                note_missing(report, kind, e);
                continue;
            }
            if (times.us.front().empty()) {
                note_missing(report, kind,
                             error(error_kind::unsupported, "its calls could not be captured in a graph"));
                continue;
            }
            const operation_bytes bytes =
                bytes_of(routing.rows, shape.rows, row_bytes(shape.hidden, dtype::bf16, scale_type::none));
            bench_row r;
            r.name = fmt::format("decode pair {}", name(shape.rows));
            r.us = slowest_median(times.us);
            // Bytes both ways, then what no message is faster than, once for each phase.
            r.floor_us = 2 * floor_of(bytes, rates, 0) + phases * rates.t0_us();
            r.bytes = 2 * bytes.link;
            r.exchange = name(kind);
            r.shape = shape.text();
            r.launches = times.launches;
            report.rows.push_back(std::move(r));
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
