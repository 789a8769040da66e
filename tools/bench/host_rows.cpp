// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/host_side.hpp"
#include "tools/bench/ranks_suite.hpp"

#include <algorithm>
#include <functional>
#include <vector>

namespace epjit::tools {
namespace {

constexpr int timed_calls = 400;
constexpr int calls_in_flight = 8;  ///< more might wait in the driver for the GPU

struct call_kind {
    const char* name;
    void (*make)(bench_layer&);
};
constexpr call_kind calls[] = {
    {"host side: plan", [](bench_layer& layer) { layer.plan(0); }},
    {"host side: dispatch", [](bench_layer& layer) { layer.dispatch(); }},
    {"host side: combine", [](bench_layer& layer) { layer.combine(); }},
};

}  // namespace

void add_host_rows(bench_machine& machine, const bench_shape& shape, exchange_kind kind, bench_report& report) {
    const auto ranks = static_cast<std::size_t>(machine.num_ranks());
    const bench_routing routing(shape, machine.num_ranks());
    std::vector<std::vector<host_cost>> costs(std::size(calls), std::vector<host_cost>(ranks));
    std::vector<std::uint64_t> launches(std::size(calls));
    machine.team().run([&](int r) {
        bench_layer layer(machine.rank(r), r, shape, routing, kind);
        for (std::size_t i = 0; i < std::size(calls); ++i) {
            machine.team().meet();
            const std::uint64_t launched = machine.rt().counters().launches;
            machine.team().meet();
            costs[i][static_cast<std::size_t>(r)] = cost_of(
                timed_calls,
                [&](int n) {
                    if (n % calls_in_flight == 0) {
                        machine.rank(r).stream.synchronize();
                    }
                },
                [&] { calls[i].make(layer); });
            machine.rank(r).stream.synchronize();
            machine.team().meet();
            if (r == 0) {
                launches[i] = (machine.rt().counters().launches - launched) / timed_calls / ranks;
            }
        }
        machine.team().meet();
    });
    for (std::size_t i = 0; i < std::size(calls); ++i) {
        const auto slowest = std::max_element(costs[i].begin(), costs[i].end(),
                                              [](const auto& a, const auto& b) { return a.own_us < b.own_us; });
        bench_row row;
        row.name = calls[i].name;
        row.us = slowest->own_us;
        row.exchange = name(kind);
        row.shape = shape.text();
        row.launches = launches[i];
        report.rows.push_back(std::move(row));
    }
    report.notes.push_back(
        "host side: wall time of a call less that inside the driver's functions, median, slowest rank");
}

}  // namespace epjit::tools
