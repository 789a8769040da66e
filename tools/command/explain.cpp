// SPDX-License-Identifier: Apache-2.0
#include "host/dispatcher/dispatcher.hpp"
#include "tools/command/machine.hpp"
#include "tools/command/shape.hpp"
#include "tools/command/table.hpp"
#include "tools/command/values.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdlib>

namespace epjit::tools {
namespace {

/// What is explained: this machine, or with --arch, --keys, --hosts or --link-gbps one that has such GPUs.
struct subject {
    run_options run;
    jit::target_arch arch = default_arch;
    bool have_gpu = false;
    std::string no_gpu_reason;
};

void check_hosts(const context& ctx, std::int32_t ranks) {
    const std::int64_t hosts = number_option(ctx.call, "--hosts", 1, 1, 1 << 20);
    if (hosts > ranks) {
        throw config_error(
            fmt::format("--hosts {} with {} ranks; expected at least one rank on every host", hosts, ranks));
    }
    if (const auto text = ctx.call.value("--link-gbps")) {
        char* end = nullptr;
        const double value = std::strtod(text->c_str(), &end);
        if (end == text->c_str() || *end != 0 || !std::isfinite(value) || value <= 0) {
            refuse_value("--link-gbps", "a number above 0", *text);
        }
    }
}

subject read_subject(context& ctx) {
    subject s;
    s.run = shape_options(ctx);
    const auto archs = arch_option(ctx.call);
    if (archs.size() > 1) {
        throw config_error("--arch: expected one target");
    }
    const machine here = look_at_machine(ctx);
    const bool elsewhere =
        !archs.empty() || ctx.call.has("--keys") || ctx.call.has("--hosts") || ctx.call.has("--link-gbps");
    s.arch = !archs.empty() ? archs.front() : here.archs.empty() ? default_arch : here.archs.front();
    s.have_gpu = here.num_gpus > 0 || elsewhere;
    s.no_gpu_reason = here.why_none;
    if (s.run.ranks == 0) {
        s.run.ranks = here.num_gpus > 0 ? here.num_gpus : default_ranks;
    }
    if (here.num_gpus == 0 && elsewhere) {
        ctx.log.write(log_level::info, fmt::format("no GPU here: explained for one of {}", s.arch.text()));
    }
    return s;
}

}  // namespace

int explain_command(context& ctx) {
    const subject s = read_subject(ctx);
    check_hosts(ctx, s.run.ranks);
    host::exchange_question question;
    question.wanted = s.run.exchange;
    question.num_ranks = s.run.ranks;
    question.have_gpu = s.have_gpu;
    question.no_gpu_reason = s.no_gpu_reason.substr(0, s.no_gpu_reason.find('\n'));
    const host::exchange_choice choice = host::choose_exchange(question);

    std::vector<jit::compile_job> jobs;
    if (ctx.call.has("--keys")) {
        run_options run = s.run;
        run.exchange = choice.exchange;
        const jit::template_set templates = open_templates(ctx);
        for (const jit::variant_spec& spec : jit::run_variants(request_of(run, s.arch))) {
            jobs.push_back({spec, jit::variant_key(spec, templates)});
        }
    }
    if (ctx.json) {
        auto others = nlohmann::ordered_json::array();
        for (const host::why_not& o : choice.others) {
            others.push_back({{"exchange", name(o.exchange)}, {"reason", o.reason}});
        }
        auto keys = nlohmann::ordered_json::array();
        for (const auto& job : jobs) {
            keys.push_back(job.key.hex());
        }
        print_json({{"exchange", name(choice.exchange)}, {"why_not", std::move(others)}, {"keys", std::move(keys)}});
        return exit_done;
    }
    const jit::model_shape& m = s.run.model;
    std::string text =
        fmt::format("{}: H {}, E {}, K {}; {} ranks on {}\n\nexchange {}: {}\n\n", m.name, m.hidden, m.num_experts,
                    m.topk, s.run.ranks, s.have_gpu ? s.arch.text() : "the CPU", name(choice.exchange), choice.reason);
    table others({{"not taken"}, {"why"}});
    for (const host::why_not& o : choice.others) {
        others.add({std::string(name(o.exchange)), o.reason});
    }
    text += others.text();
    if (ctx.call.has("--keys")) {
        table keys({{"key"}, {"variant"}});
        for (const auto& job : jobs) {
            keys.add({job.key.hex(), jit::describe(job.spec)});
        }
        text += jobs.empty() ? fmt::format("\nexchange {} loads no kernels\n", name(choice.exchange))
                             : fmt::format("\n{}", keys.text());
    }
    print(text);
    return exit_done;
}

}  // namespace epjit::tools
