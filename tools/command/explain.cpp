// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/profile.hpp"
#include "host/dispatcher/dispatcher.hpp"
#include "host/dispatcher/tuning.hpp"
#include "host/dispatcher/window_way.hpp"
#include "host/exchange/backend.hpp"
#include "host/exchange/validate.hpp"
#include "tools/command/machine.hpp"
#include "tools/command/profile_file.hpp"
#include "tools/command/shape.hpp"
#include "tools/command/table.hpp"
#include "tools/command/values.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <limits>

namespace epjit::tools {
namespace {

constexpr std::int32_t default_tokens = 256;

/// What is explained: this machine, or with --arch, --keys, --hosts, --link-gbps or an exchange through NCCL one that
/// has such GPUs.
struct subject {
    run_options run;
    jit::target_arch arch = default_arch;
    std::int32_t hosts = 1;
    host::exchange_question question;
    exchange_config config;  ///< what knobs and workspace follow from
    jit::tuning_key key;     ///< but for what the exchange decides
    jit::tuned_knobs knobs;
};

/// What predictions are for (docs/scaling.md).
constexpr std::string_view imagined_gpu = "NVIDIA H200";

constexpr exchange_kind kinds_through_nccl[] = {exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense,
                                                exchange_kind::hybrid};

bool through_nccl(exchange_kind kind) {
    return std::find(std::begin(kinds_through_nccl), std::end(kinds_through_nccl), kind) !=
           std::end(kinds_through_nccl);
}

bool real_ranks_are_built() {
    return std::any_of(std::begin(kinds_through_nccl), std::end(kinds_through_nccl),
                       [](exchange_kind kind) { return host::built_exchanges.has(kind); });
}

/// Without the list that follows it, and without the words that announce that.
std::string first_line(std::string_view text) {
    constexpr std::string_view announced = "; tried:";
    text = text.substr(0, text.find('\n'));
    return std::string(text.ends_with(announced) ? text.substr(0, text.size() - announced.size()) : text);
}

std::int32_t hosts_option(const invocation& call, std::int32_t ranks) {
    const std::int64_t hosts = number_option(call, "--hosts", 1, 1, 1 << 20);
    if (hosts > ranks) {
        throw config_error(
            fmt::format("--hosts {} with {} ranks; expected at least one rank on every host", hosts, ranks));
    }
    return static_cast<std::int32_t>(hosts);
}

double link_option(const invocation& call, double fallback) {
    const auto text = call.value("--link-gbps");
    if (!text) {
        return fallback;
    }
    char* end = nullptr;
    const double value = std::strtod(text->c_str(), &end);
    if (end == text->c_str() || *end != 0 || !std::isfinite(value) || value <= 0) {
        refuse_value("--link-gbps", "a number above 0", *text);
    }
    return value;
}

exchange_config config_of(const run_options& run) {
    const jit::run_request request = request_of(run, default_arch);
    exchange_config c;
    c.hidden = request.hidden;
    c.num_experts = request.num_experts;
    c.topk = request.topk;
    c.input_type = request.input;
    c.dispatch_type = request.wire;
    c.scales = request.scales;
    c.combine_type = request.combine;
    c.max_tokens_per_rank = run.tokens.value_or(default_tokens);
    c.ll_max_tokens_per_rank = run.low_latency ? c.max_tokens_per_rank : 0;
    return c;
}

host::workload workload_of(const run_options& run, std::int32_t hosts) {
    host::workload work = host::workload_of(config_of(run));
    work.ranks = run.ranks;
    work.hosts = hosts;
    work.rows = run.layout;
    work.mode = run.mode;
    work.low_latency = run.low_latency;
    return work;
}

subject read_subject(context& ctx) {
    subject s;
    s.run = shape_options(ctx);
    const auto archs = arch_option(ctx.call);
    if (archs.size() > 1) {
        throw config_error("--arch: expected one target");
    }
    const machine here = look_at_machine(ctx);
    const bool elsewhere = !archs.empty() || ctx.call.has("--keys") || ctx.call.has("--hosts") ||
                           ctx.call.has("--link-gbps") || through_nccl(s.run.exchange);
    s.arch = !archs.empty() ? archs.front() : here.archs.empty() ? default_arch : here.archs.front();
    if (s.run.ranks == 0) {
        s.run.ranks = here.num_gpus > 0 ? here.num_gpus : default_ranks;
    }
    if (here.num_gpus == 0 && elsewhere) {
        ctx.log.write(log_level::info, fmt::format("no GPU here: explained for one of {}", s.arch.text()));
    }
    s.hosts = hosts_option(ctx.call, s.run.ranks);
    const bool imagined = elsewhere || here.num_gpus == 0;
    s.key.gpu = !imagined ? here.gpu : s.arch == default_arch ? std::string(imagined_gpu) : std::string();
    s.key.link = imagined ? jit::link_kind::nvlink : here.link;
    s.question.wanted = s.run.exchange;
    s.question.rates.network_gbps = link_option(ctx.call, s.question.rates.network_gbps);
    s.question.largest = workload_of(s.run, s.hosts);
    host::machine_facts& facts = s.question.facts;
    facts.num_ranks = s.run.ranks;
    facts.have_gpu = here.num_gpus > 0 || elsewhere;
    facts.no_gpu_reason = first_line(here.why_none);
    // A GPU for each rank where there are as many, or on the machine that is imagined. Windows are taken for granted:
    // only ranks that run can find out.
    facts.real_ranks = real_ranks_are_built() && (elsewhere || (s.run.ranks > 1 && here.num_gpus >= s.run.ranks)) &&
                       s.run.exchange != exchange_kind::loopback && s.run.exchange != exchange_kind::host;
    facts.have_windows = facts.real_ranks;
    for (std::int32_t rank = 0; rank < s.run.ranks; ++rank) {
        facts.rank_hosts.push_back(static_cast<std::int32_t>(static_cast<std::int64_t>(rank) * s.hosts / s.run.ranks));
    }
    return s;
}

std::uint64_t whole(double bytes) {
    return static_cast<std::uint64_t>(std::llround(bytes));
}

nlohmann::ordered_json traffic_json(const host::traffic& t) {
    return {{"us", std::round(t.us * 10) / 10},
            {"nvlink_bytes", whole(t.nvlink_bytes)},
            {"network_bytes", whole(t.network_bytes)},
            {"local_bytes", whole(t.local_bytes)},
            {"wasted_bytes", whole(t.wasted_bytes)}};
}

nlohmann::ordered_json predictions_json(const std::vector<host::prediction>& predictions) {
    auto list = nlohmann::ordered_json::array();
    for (const host::prediction& p : predictions) {
        list.push_back({{"exchange", name(p.exchange)},
                        {"rows_cross", name(p.crossing)},
                        {"dispatch", traffic_json(p.dispatch)},
                        {"combine", traffic_json(p.combine)}});
    }
    return list;
}

std::string predictions_text(const subject& s, const std::vector<host::prediction>& predictions) {
    const host::workload& w = s.question.largest;
    table rows({{"exchange"},
                {"a row crosses"},
                {"dispatch us", true},
                {"combine us", true},
                {"NVLink", true},
                {"network", true},
                {"local", true},
                {"unused", true}});
    for (const host::prediction& p : predictions) {
        const host::traffic& d = p.dispatch;
        rows.add({std::string(name(p.exchange)), name(p.crossing), fmt::format("{:.1f}", d.us),
                  fmt::format("{:.1f}", p.combine.us), bytes_text(whole(d.nvlink_bytes)),
                  bytes_text(whole(d.network_bytes)), bytes_text(whole(d.local_bytes)),
                  bytes_text(whole(d.wasted_bytes))});
    }
    std::string text = fmt::format("\npredicted for H200s, {} tokens a rank", w.tokens);
    if (s.hosts > 1) {
        text += fmt::format(", {} hosts, {:g} GB/s between them for each GPU", s.hosts, s.question.rates.network_gbps);
    }
    return text + "; bytes of one GPU's dispatch\n\n" + rows.text();
}

void settle_knobs(const context& ctx, subject& s, exchange_kind exchange) {
    const std::optional<jit::profile> own = profile_option(ctx);
    if (exchange == exchange_kind::host) {
        return;  // no kernels
    }
    s.config = config_of(s.run);
    s.config.kind = exchange;
    const bool one_gpu = exchange == exchange_kind::loopback;
    jit::tuning_key key = host::key_of(s.config);
    key.gpu = s.key.gpu;
    key.arch = s.arch;
    key.link = one_gpu ? jit::link_kind::none : s.key.link;
    key.ranks = one_gpu ? s.run.ranks : s.run.ranks / s.hosts;
    s.key = key;
    std::vector<const jit::profile*> profiles{&jit::builtin_profile()};
    if (own) {
        profiles.insert(profiles.begin(), &*own);
    }
    s.knobs = jit::choose_knobs(s.key, profiles);
}

/// The memory of one rank, max_tokens_per_rank being the tokens.
struct workspace {
    std::int32_t window_rows = 0;  ///< with --window those of the rank that may get most; 0: none
    std::uint64_t bytes = 0;
    std::uint64_t halves_bytes = 0;  ///< as exchange_config::halves asks for
    std::int32_t launches = 1;       ///< of a staged call
};

host::resolved_config resolved_of(const subject& s) {
    host::resolved_config resolved;
    resolved.config = s.config;
    resolved.config.staging_bytes = s.run.staging_bytes;
    resolved.num_ranks = s.run.ranks;
    resolved.placement = host::resolve(s.config.placement, s.config.num_experts, s.run.ranks);
    return resolved;
}

/// Empty but for lsa.
std::optional<workspace> workspace_of(const subject& s, exchange_kind exchange) {
    if (exchange != exchange_kind::lsa) {
        return std::nullopt;
    }
    host::resolved_config resolved = resolved_of(s);
    workspace w;
    if (s.run.window) {
        plan_options plan;
        plan.layout = s.run.layout;
        std::int64_t most = 0;
        for (int rank = 0; rank < resolved.num_ranks; ++rank) {
            most = std::max(most, host::worst_case_rows(resolved, rank, plan));
        }
        w.window_rows =
            static_cast<std::int32_t>(std::min<std::int64_t>(most, std::numeric_limits<std::int32_t>::max()));
    }
    resolved.config.window_rows = w.window_rows;
    w.bytes = static_cast<std::uint64_t>(host::lsa_window_bytes(resolved));
    w.launches = host::lsa_launches(resolved, resolved.config.max_tokens_per_rank);
    resolved.config.halves = true;
    w.halves_bytes = static_cast<std::uint64_t>(host::lsa_window_bytes(resolved));
    return w;
}

/// What the ranks of the run tell each other for a plan, "none" where all routing is at hand.
std::string_view source_text(const subject& s, exchange_kind exchange) {
    if (!through_nccl(exchange)) {
        return "none";
    }
    if (exchange == exchange_kind::lsa) {
        return name(host::lsa_plan_source(resolved_of(s), s.run.source));
    }
    return name(s.run.source == plan_source::automatic ? plan_source::counts : s.run.source);
}

/// Of a dispatch into lent outputs; empty but for lsa.
std::optional<host::window_way> window_way(const subject& s, const std::optional<workspace>& memory) {
    if (!memory) {
        return std::nullopt;
    }
    host::workload work = s.question.largest;
    work.hosts = 1;
    work.staged_launches = memory->launches;
    return host::choose_window_way(work, s.question.rates,
                                   s.knobs.launches(s.run.layout, s.key.tokens).window_dispatch);
}

nlohmann::ordered_json window_json(const std::optional<host::window_way>& way) {
    if (!way) {
        return {};
    }
    return {{"straight", way->direct},
            {"why", way->text()},
            {"straight_dispatch", traffic_json(way->straight)},
            {"staged_dispatch", traffic_json(way->staged)}};
}

nlohmann::ordered_json knobs_json(const subject& s) {
    const std::int32_t tokens = s.key.tokens;
    return {{"launches_from", name(s.knobs.launches_from(s.run.layout, tokens))},
            {"launches", json_of(s.knobs.launches(s.run.layout, tokens).of_launches())},
            {"programs_from", name(s.knobs.programs_from())},
            {"programs", json_of(s.knobs.programs().of_programs())}};
}

std::string knobs_text(const subject& s) {
    const jit::knobs& launches = s.knobs.launches(s.run.layout, s.key.tokens);
    std::string text = fmt::format("\nlaunches as {} says: {}\n",
                                   name(s.knobs.launches_from(s.run.layout, s.key.tokens)), jit::describe(launches));
    return text + fmt::format("programs as {} says{}\n", name(s.knobs.programs_from()),
                              s.knobs.programs() == jit::knobs{} ? "" : ": " + jit::describe(s.knobs.programs()));
}

}  // namespace

int explain_command(context& ctx) {
    subject s = read_subject(ctx);
    const host::exchange_choice choice = host::choose_exchange(s.question);
    settle_knobs(ctx, s, choice.exchange);
    const std::optional<workspace> memory = workspace_of(s, choice.exchange);
    const std::optional<host::window_way> windows = window_way(s, memory);
    const auto predictions = host::predict_all(s.question.largest, s.question.rates);

    std::vector<jit::compile_job> jobs;
    if (ctx.call.has("--keys")) {
        run_options run = s.run;
        run.exchange = choice.exchange;
        const jit::template_set templates = open_templates(ctx);
        jit::run_request request = request_of(run, s.arch);
        request.programs = s.knobs.programs();
        for (const jit::variant_spec& spec : jit::run_variants(request)) {
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
        const auto of_memory = [&memory](auto workspace::*field) {
            return memory ? nlohmann::ordered_json((*memory).*field) : nlohmann::ordered_json();
        };
        print_json({{"exchange", name(choice.exchange)},
                    {"reason", choice.reason},
                    {"plan_source", source_text(s, choice.exchange)},
                    {"why_not", std::move(others)},
                    {"keys", std::move(keys)},
                    {"knobs", knobs_json(s)},
                    {"window_rows", of_memory(&workspace::window_rows)},
                    {"workspace_bytes", of_memory(&workspace::bytes)},
                    {"workspace_halves_bytes", of_memory(&workspace::halves_bytes)},
                    {"window_dispatch", window_json(windows)},
                    {"predictions", predictions_json(predictions)},
                    {"floor_us", std::round(host::floor_us(s.question.largest, s.question.rates) * 10) / 10}});
        return exit_done;
    }
    const jit::model_shape& m = s.run.model;
    std::string text = fmt::format(
        "{}: H {}, E {}, K {}; {} ranks on {}\n\nexchange {}: {}\n\n", m.name, m.hidden, m.num_experts, m.topk,
        s.run.ranks, s.question.facts.have_gpu ? s.arch.text() : "the CPU", name(choice.exchange), choice.reason);
    table others({{"not taken"}, {"why"}});
    for (const host::why_not& o : choice.others) {
        others.add({std::string(name(o.exchange)), o.reason});
    }
    text += fmt::format("plan source: {}\n\n", source_text(s, choice.exchange));
    text += others.text();
    if (memory) {
        const std::string lent =
            memory->window_rows != 0 ? fmt::format(" and window_rows {}", memory->window_rows) : "";
        text += fmt::format("\nworkspace of one rank with max_tokens_per_rank {}{}: {}, for halves {}\n", s.key.tokens,
                            lent, bytes_text(memory->bytes), bytes_text(memory->halves_bytes));
    }
    if (windows) {
        text += fmt::format("\ninto lent outputs rows go {}\n", windows->text());
    }
    text += knobs_text(s) + predictions_text(s, predictions);
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
