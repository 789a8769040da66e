// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/ranks_suite.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/model.hpp"
#include "tools/command/context.hpp"
#include "tools/command/values.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

namespace epjit::tools {

ranks_options ranks_options_of(const context& ctx) {
    ranks_options o;
    if (ctx.call.has("--quick")) {
        o.n = {3, 10};
    }
    o.n.timed = static_cast<int>(number_option(ctx.call, "--iters", o.n.timed, 1, 100'000));
    const auto wanted = enum_option(ctx.call, "--exchange", exchange_kind::automatic);
    if (wanted == exchange_kind::host || wanted == exchange_kind::loopback) {
        refuse_value("--exchange", "auto, lsa, sendrecv, dense or hybrid, which join GPUs", name(wanted));
    }
    o.kinds = {wanted};
    if (wanted == exchange_kind::automatic) {
        o.kinds = {exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense};
        o.baseline = true;
    }
    if (ctx.call.has("--tokens")) {
        o.tokens = static_cast<std::int32_t>(number_option(ctx.call, "--tokens", 0, 1, 1 << 20));
    }
    if (const auto model = ctx.call.value("--model")) {
        const jit::model_shape& m = jit::find_model(*model);
        bench_shape& s = o.model.emplace();
        s.hidden = m.hidden;
        s.topk = m.topk;
        s.experts = m.num_experts;
    }
    o.ranks = static_cast<std::int32_t>(number_option(ctx.call, "--ranks", 0, 2, 64));
    o.num_sms = static_cast<std::int32_t>(number_option(ctx.call, "--sms", 0, 0, 1024));
    o.source = enum_option(ctx.call, "--plan-source", plan_source::automatic);
    return o;
}

std::vector<bench_shape> exchange_shapes(const ranks_options& options) {
    struct row {
        std::int32_t tokens, hidden, topk, experts;
        const char* routing;
    };
    constexpr row all[] = {{4096, 7168, 8, 256, "uniform"}, {8192, 7168, 8, 256, "uniform"},
                           {1024, 7168, 8, 256, "uniform"}, {4096, 4096, 8, 128, "uniform"},
                           {4096, 2880, 4, 128, "uniform"}, {4096, 2048, 10, 512, "uniform"},
                           {4096, 7168, 8, 256, "zipf"}};
    std::vector<bench_shape> shapes;
    for (const row& w : all) {
        bench_shape s;
        s.tokens = options.tokens.value_or(w.tokens);
        s.hidden = options.model ? options.model->hidden : w.hidden;
        s.topk = options.model ? options.model->topk : w.topk;
        s.experts = options.model ? options.model->experts : w.experts;
        s.routing = w.routing;
        s.num_sms = options.num_sms;
        s.source = options.source;
        // A model or a number of tokens makes some rows alike.
        const bool there = std::any_of(shapes.begin(), shapes.end(),
                                       [&](const bench_shape& other) { return other.text() == s.text(); });
        if (!there) {
            shapes.push_back(std::move(s));
        }
    }
    return shapes;
}

std::vector<bench_shape> decode_shapes(const ranks_options& options, int ranks) {
    std::vector<std::int32_t> tokens{1, 8, 32, 128};
    if (options.tokens) {
        tokens = {*options.tokens};
    }
    std::vector<bench_shape> shapes;
    for (const std::int32_t t : tokens) {
        for (const layout l : {layout::flat, layout::masked, layout::expert_major}) {
            bench_shape s = options.model.value_or(bench_shape{});
            s.tokens = t;
            s.rows = l;
            s.alignment = l == layout::expert_major ? 16 : 1;
            s.num_sms = options.num_sms;
            s.source = options.source;
            s.low_latency = true;
            s.sets = 50;
            const std::int64_t masked = std::int64_t{ranks} * t * ((s.experts + ranks - 1) / ranks) * s.hidden * 2;
            if (l != layout::masked || masked < std::int64_t{16} << 30) {
                shapes.push_back(std::move(s));
            }
        }
    }
    return shapes;
}

void add_rates(bench_report& report, const machine_rates& rates) {
    report.rates["peer_copy_gb_per_s"] = rates.peer_gbps;
    report.rates["copy_read_write_gb_per_s"] = rates.copy_gbps;
    report.rates["empty_launch_us"] = rates.launch_us;
    report.rates["flag_round_trip_us"] = rates.flag_us;
    report.rates["t0_us"] = rates.t0_us();
    const std::string low = rates_too_low(rates);
    report.rates["valid"] = low.empty() ? 1 : 0;
    if (!low.empty()) {
        report.notes.push_back("this run is not valid: " + low + "; is something else using the GPUs?");
    }
}

void note_missing(bench_report& report, exchange_kind kind, const error& e) {
    const std::string note = fmt::format("exchange {} was not measured: {}", name(kind), e.what());
    if (std::find(report.notes.begin(), report.notes.end(), note) == report.notes.end()) {
        report.notes.push_back(note);
    }
}

void refuse_without_rows(const bench_report& report) {
    std::string missing;
    for (const std::string& note : report.notes) {
        if (note.starts_with("exchange ")) {
            missing += (missing.empty() ? "" : "; ") + note;
        }
    }
    throw unsupported_error("no exchange between real ranks could be measured: " + missing, "see `epjit doctor`");
}

host::gpu_graph capture_together(bench_machine& machine, int r, const std::function<void()>& work) {
    bench_rank& me = machine.rank(r);
    // Two votes: a call that meets its peers while it is recorded must not wait for one that cannot record.
    std::optional<host::stream_capture> capture;
    try {
        capture.emplace(me.context, me.stream.get());
    } catch (const error&) {
        capture.reset();
    }
    if (!machine.team().all(capture.has_value())) {
        return {};
    }
    host::gpu_graph graph;
    try {
        work();
        graph = capture->end();
    } catch (const error&) {
        graph = {};
    }
    capture.reset();
    // A graph that waits for a peer without one would wait for its whole limit.
    return machine.team().all(static_cast<bool>(graph)) ? std::move(graph) : host::gpu_graph{};
}

void time_job(bench_machine& machine, int r, const repeats& n, int graph_calls, const std::function<void()>& work,
              job_times& times) {
    const auto repetitions = static_cast<std::uint64_t>(n.warmup) + static_cast<std::uint64_t>(n.timed);
    machine.team().meet();
    const std::uint64_t before = machine.rt().counters().launches;
    machine.team().meet();
    times.us[static_cast<std::size_t>(r)] = machine.time(r, n, work);
    machine.team().meet();
    if (r == 0) {
        times.launches =
            (machine.rt().counters().launches - before) / repetitions / static_cast<std::uint64_t>(machine.num_ranks());
    }
    machine.team().meet();
    if (graph_calls == 0) {
        return;
    }
    const host::gpu_graph graph = capture_together(machine, r, [&] {
        for (int i = 0; i < graph_calls; ++i) {
            work();
        }
    });
    if (graph) {
        const repeats fewer{std::min(n.warmup, 5), std::max(1, n.timed / graph_calls)};
        auto& us = times.kernel_us[static_cast<std::size_t>(r)];
        us = machine.time(r, fewer, [&] { graph.launch(machine.rank(r).stream.get()); });
        std::for_each(us.begin(), us.end(), [&](double& t) { t /= graph_calls; });
    }
}

}  // namespace epjit::tools
