// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/tuner.hpp"
#include "tools/command/context.hpp"
#include "tools/command/machine.hpp"
#include "tools/command/profile_file.hpp"
#include "tools/command/signals.hpp"
#include "tools/command/table.hpp"
#include "tools/command/values.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <memory>

namespace epjit::tools {
namespace {

constexpr std::int64_t default_tokens = 4096;
constexpr std::size_t shown = 5;  ///< candidates of a job in the table

struct tune_request {
    jit::model_shape model;
    std::vector<bench_shape> shapes;
    int ranks = 0;
    double budget_s = 0;
    tuning_limits limits;
    std::string out;  ///< empty: nothing is written
};

tune_request read_request(const context& ctx) {
    const invocation& call = ctx.call;
    tune_request request;
    request.model = model_option(call);
    bench_shape shape;
    shape.hidden = request.model.hidden;
    shape.experts = request.model.num_experts;
    shape.topk = request.model.topk;
    shape.rows = enum_option(call, "--layout", layout::expert_major);
    shape.varied = true;
    const std::string type = call.value("--dtype").value_or("bf16");
    if (type != "bf16" && type != "fp8") {
        refuse_value("--dtype", choices(call, "--dtype"), type);
    }
    shape.fp8 = type == "fp8";
    std::vector<std::string> tokens = call.values("--tokens");
    if (tokens.empty()) {
        tokens.push_back(std::to_string(default_tokens));
    }
    for (const std::string& text : tokens) {
        const auto value = whole_number(text);
        if (!value || *value < 1 || *value > 1 << 20) {
            refuse_value("--tokens", "whole numbers of 1 to 1048576, separated by commas", text);
        }
        shape.tokens = static_cast<std::int32_t>(*value);
        request.shapes.push_back(shape);
    }
    request.ranks = static_cast<int>(number_option(call, "--ranks", 0, 1, 64));
    request.budget_s = static_cast<double>(number_option(call, "--budget", 120, 1, 86'400));
    request.limits.most_repeats = static_cast<int>(number_option(call, "--iters", 160, 1, 100'000));
    request.limits.first_repeats = std::min(10, request.limits.most_repeats);
    request.out = call.value("--out").value_or(ctx.env.profile);
    return request;
}

std::unique_ptr<bench_machine> open_machine(const context& ctx, runtime& rt, const tune_request& request) {
    const machine here = look_at_machine(ctx);
    if (here.num_gpus == 0) {
        throw unsupported_error(
            "`epjit tune` times kernels on this machine's GPUs, and there is none: " + here.why_none,
            "tune on a machine like the one that will run; without a profile the built-in one and "
            "the cost model set the knobs");
    }
    if (request.ranks > here.num_gpus) {
        throw unsupported_error(
            fmt::format("--ranks {} takes {} GPUs, this machine has {}", request.ranks, request.ranks, here.num_gpus),
            fmt::format("use --ranks {} or fewer, or tune on a larger machine", here.num_gpus));
    }
    const int ranks = request.ranks != 0 ? request.ranks : here.num_gpus;
    return ranks == 1 ? std::make_unique<bench_machine>(rt, one_gpu{}) : std::make_unique<bench_machine>(rt, ranks);
}

nlohmann::ordered_json to_json(const std::vector<bench_shape>& shapes, const std::vector<tuning>& tunings,
                               const std::string& out) {
    std::vector<jit::profile_entry> entries;
    auto candidates = nlohmann::ordered_json::array();
    bool complete = true, agree = true;
    for (std::size_t i = 0; i < tunings.size(); ++i) {
        entries.push_back(tunings[i].entry);
        complete = complete && tunings[i].complete;
        agree = agree && tunings[i].results_agree;
        for (const tuned_candidate& c : tunings[i].candidates) {
            candidates.push_back({{"shape", shapes[i].text()},
                                  {"tokens", shapes[i].tokens},
                                  {"job", name(c.job)},
                                  {"knobs", json_of(c.values)},
                                  {"us", c.result.us && !c.result.refused ? nlohmann::ordered_json(*c.result.us)
                                                                          : nlohmann::ordered_json()},
                                  {"repeats", c.result.repeats},
                                  {"why_not", c.why_not}});
        }
    }
    return {{"entries", nlohmann::ordered_json::parse(jit::profile_text(entries))["entries"]},
            {"candidates", std::move(candidates)},
            {"complete", complete},
            {"results_agree", agree},
            {"out", out.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(out)}};
}

std::string to_text(const bench_shape& shape, const tuning& t) {
    table rows({{"job"}, {"us", true}, {"repeats", true}, {"knobs (the rest is the cost model's)"}});
    std::size_t of_job = 0;
    for (std::size_t i = 0; i < t.candidates.size(); ++i) {
        const tuned_candidate& c = t.candidates[i];
        of_job = i > 0 && t.candidates[i - 1].job == c.job ? of_job + 1 : 0;
        const bool runs = c.result.us && !c.result.refused;
        if (of_job < shown || c.values == jit::knobs{} || !c.why_not.empty()) {
            rows.add({name(c.job), runs ? fmt::format("{:.1f}", *c.result.us) : "-", std::to_string(c.result.repeats),
                      c.why_not.empty() ? jit::describe(c.values)
                                        : fmt::format("{}: {}", jit::describe(c.values), c.why_not)});
        }
    }
    const jit::tuning_times& m = t.entry.measured;
    return fmt::format(
        "{}\n\n{}\ntaken: {} (dispatch {:.1f} us, the cost model's {:.1f}; combine {:.1f} us, {:.1f}){}\n\n",
        shape.text(), rows.text(), jit::describe(t.entry.values), m.dispatch_us, m.cost_model_dispatch_us, m.combine_us,
        m.cost_model_combine_us, t.complete ? "" : "; time ran out before the last round");
}

}  // namespace

int tune_command(context& ctx) {
    tune_request request = read_request(ctx);
    if (!request.out.empty()) {
        require_writable(request.out);
        static_cast<void>(existing_profile(request.out));  // refused now rather than after the work
    }
    epjit::runtime_options options = ctx.runtime_options();
    options.profile = "";
    runtime rt(options);
    const std::unique_ptr<bench_machine> machine = open_machine(ctx, rt, request);
    interruptible scope;
    request.limits.cancelled = [] { return interruptible::interrupted(); };
    const auto start = std::chrono::steady_clock::now();
    std::vector<tuning> tunings;
    for (std::size_t i = 0; i < request.shapes.size(); ++i) {
        // What one shape leaves of its share the others get.
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        request.limits.budget_s = (request.budget_s - spent.count()) / static_cast<double>(request.shapes.size() - i);
        tunings.push_back(tune_shape(*machine, request.shapes[i], request.limits,
                                     [&](tuned_job job, const jit::knobs& values, std::optional<double> us) {
                                         ctx.log.write(log_level::info,
                                                       fmt::format("{} {}: {}", name(job), jit::describe(values),
                                                                   us ? fmt::format("{:.1f} us", *us) : "cannot run"));
                                     }));
        if (interruptible::interrupted()) {
            throw error(error_kind::cancelled, "interrupted: no profile was written", "run the command again");
        }
    }
    const bool agree = std::all_of(tunings.begin(), tunings.end(), [](const tuning& t) { return t.results_agree; });
    if (!request.out.empty()) {
        std::vector<jit::profile_entry> entries;
        for (const tuning& t : tunings) {
            entries.push_back(t.entry);
        }
        write_profile(request.out, entries);
    }
    if (ctx.json) {
        print_json(to_json(request.shapes, tunings, request.out));
    } else {
        std::string text;
        for (std::size_t i = 0; i < tunings.size(); ++i) {
            text += to_text(request.shapes[i], tunings[i]);
        }
        print(text + (request.out.empty() ? "nothing was written: name a file with --out or EPJIT_PROFILE\n"
                                          : fmt::format("written to {}\n", request.out)));
    }
    return agree ? exit_done : exit_check_failed;
}

}  // namespace epjit::tools
