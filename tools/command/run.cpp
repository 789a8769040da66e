// SPDX-License-Identifier: Apache-2.0
#include "tools/run/run.hpp"

#include "tools/command/shape.hpp"
#include "tools/command/signals.hpp"
#include "tools/command/table.hpp"
#include "tools/run/launcher.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <numeric>

namespace epjit::tools {
namespace {

/// Among a launcher's processes that are the ranks of one run, rank 0 prints for all.
bool is_quiet_rank(const run_options& options) {
    if (options.exchange == exchange_kind::host || options.exchange == exchange_kind::loopback) {
        return false;
    }
    const auto place = find_launcher();
    return place && place->rank != 0;
}

nlohmann::ordered_json result_json(const run_result& r) {
    auto launches = nlohmann::ordered_json::object();
    for (const auto& [kernel, count] : r.launches) {
        launches[kernel] = count;
    }
    return {{"ok", r.ok},
            {"exchange", name(r.exchange)},
            {"checked_rows", r.checked_rows},
            {"mismatched_rows", r.mismatched_rows},
            {"max_error", r.max_error},
            {"dispatch_us", r.dispatch_us},
            {"combine_us", r.combine_us},
            {"launches", std::move(launches)},
            {"allocations", r.allocations},
            {"host_waits", r.host_waits}};
}

std::string tokens_text(const std::vector<std::int32_t>& tokens) {
    for (const std::int32_t t : tokens) {
        if (t != tokens.front()) {
            return fmt::format("{} tokens in all", std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}));
        }
    }
    return fmt::format("{} tokens each", tokens.empty() ? 0 : tokens.front());
}

std::string result_text(const run_options& o, const run_result& r) {
    const jit::model_shape& m = o.model;
    std::string text =
        fmt::format("{}: H {}, E {}, K {}; exchange {}, {} ranks, {}, {} routing, {}\n\n", m.name, m.hidden,
                    m.num_experts, m.topk, name(r.exchange), r.ranks, tokens_text(r.tokens), o.routing, name(o.layout));
    table times({{"step"}, {"us", true}});
    times.add({"plan", fmt::format("{:.1f}", r.plan_us)});
    times.add({"dispatch", fmt::format("{:.1f}", r.dispatch_us)});
    times.add({"combine", fmt::format("{:.1f}", r.combine_us)});
    text += times.text() + (o.graph ? "of the last replay of a graph\n\n" : "\n");
    text += fmt::format("{} rows dispatched", r.rows);
    if (r.status.bad_ids + r.status.duplicate_ids + r.status.excess_ids + r.status.dropped_rows > 0) {
        text += fmt::format("; {} bad ids, {} duplicate ids, {} ids beyond K, {} rows over capacity", r.status.bad_ids,
                            r.status.duplicate_ids, r.status.excess_ids, r.status.dropped_rows);
    }
    text += "\n";
    if (!r.launches.empty()) {
        table launches({{"kernel"}, {"launches", true}});
        for (const auto& [kernel, count] : r.launches) {
            launches.add({kernel, std::to_string(count)});
        }
        text += fmt::format("{} allocations, {} host waits\n\n{}\n", r.allocations, r.host_waits, launches.text());
    }
    if (o.check) {
        text += r.ok ? fmt::format("check passed: {} rows equal the reference\n", r.checked_rows)
                     : fmt::format("check FAILED: {} of {} rows differ, largest difference {:g}\n{}\n",
                                   r.mismatched_rows, r.checked_rows, r.max_error, r.first_mismatch);
    }
    if (!o.dump_dir.empty()) {
        text += fmt::format("dumped to {}\n", o.dump_dir);
    }
    return text;
}

int run_and_print(context& ctx, const run_options& options) {
    runtime rt(ctx.runtime_options());
    const run_result result = run_layer(rt, options);
    const int status = result.ok ? exit_done : exit_check_failed;
    if (is_quiet_rank(options)) {
        return status;
    }
    if (!result.note.empty()) {
        std::fputs(fmt::format("epjit: exchange {}: {}\n", name(result.exchange),
                               result.note.substr(0, result.note.find('\n')))
                       .c_str(),
                   stderr);
    }
    if (ctx.json) {
        print_json(result_json(result));
    } else {
        print(result_text(options, result));
    }
    return status;
}

}  // namespace

int run_command(context& ctx) {
    run_options options = shape_options(ctx);
    options.check = ctx.call.has("--check");
    options.dump_dir = ctx.call.value("--dump").value_or("");
    interruptible scope;
    options.cancel = &interruptible::flag();
    if (!is_quiet_rank(options)) {
        return run_and_print(ctx, options);
    }
    try {
        return run_and_print(ctx, options);
    } catch (...) {
        const failure_text text = describe_failure(std::current_exception());
        std::fputs(fmt::format("epjit: rank {}: error: {}\n", find_launcher()->rank, text.message).c_str(), stderr);
        return status_of(text.kind);
    }
}

}  // namespace epjit::tools
