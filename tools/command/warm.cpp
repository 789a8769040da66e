// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/variants.hpp"
#include "tools/command/context.hpp"
#include "tools/command/machine.hpp"
#include "tools/command/progress.hpp"
#include "tools/command/signals.hpp"
#include "tools/command/table.hpp"
#include "tools/command/values.hpp"
#include "tools/worker/worker.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <thread>

namespace epjit::tools {
namespace {

using clock = std::chrono::steady_clock;

double ms_since(clock::time_point start) {
    return std::chrono::duration<double, std::milli>(clock::now() - start).count();
}

jit::variant_request read_request(context& ctx) {
    jit::variant_request request;
    request.model = model_option(ctx.call);
    request.tuned = jit::builtin_profile().entries;
    if (const auto profile = profile_option(ctx)) {
        request.tuned.insert(request.tuned.end(), profile->entries.begin(), profile->entries.end());
    }
    request.archs = arch_option(ctx.call);
    for (const std::string& text : ctx.call.values("--ranks")) {
        const auto value = whole_number(text);
        if (!value || *value < 1 || *value > std::numeric_limits<std::int32_t>::max()) {
            refuse_value("--ranks", "whole numbers, 1 or more, separated by commas", text);
        }
        request.ranks.push_back(static_cast<std::int32_t>(*value));
    }
    if (const auto set = ctx.call.value("--set")) {
        if (*set != "default" && *set != "all") {
            refuse_value("--set", choices(ctx.call, "--set"), *set);
        }
        request.set = *set == "all" ? jit::variant_set::all : jit::variant_set::base;
    }
    if (request.archs.empty() || request.ranks.empty()) {  // opening a driver may take long
        const machine here = look_at_machine(ctx);
        if (request.archs.empty()) {
            request.archs = here.archs.empty() ? std::vector{default_arch} : here.archs;
        }
        if (request.ranks.empty()) {
            request.ranks = {here.num_gpus > 0 ? here.num_gpus : default_ranks};
        }
    }
    return request;
}

std::vector<jit::compile_job> make_jobs(const context& ctx, const jit::variant_request& request,
                                        const jit::template_set& templates) {
    const std::string only = ctx.call.value("--only").value_or("");
    std::vector<jit::compile_job> jobs;
    for (const jit::variant_spec& spec : jit::list_variants(request)) {
        if (jit::describe(spec).starts_with(only)) {
            jobs.push_back({spec, jit::variant_key(spec, templates)});
        }
    }
    if (jobs.empty()) {
        refuse_value("--only", "the beginning of a variant's description, such as \"plan\"", only);
    }
    return jobs;
}

std::unique_ptr<cache::store> open_store(const context& ctx) {
    auto store = open_strict_store(ctx, true);
    if (store->written_layer().empty() && !ctx.env.offline) {  // offline nothing is compiled: a miss says more
        throw command_error(exit_missing, error_kind::cache, "there is no place to store what would be compiled",
                            "set HOME, XDG_CACHE_HOME or EPJIT_CACHE_PATH to a directory you own, or give --cache-dir");
    }
    return store;
}

struct tally {
    std::size_t compiled = 0, hits = 0, failed = 0, not_stored = 0;
    bool interrupted = false;
    bool missing = true;  ///< every failure is something that this machine lacks
    std::uint64_t bytes = 0;
};

tally count(const std::vector<cache::served>& served) {
    tally t;
    for (const cache::served& s : served) {
        if (s.failure) {
            ++t.failed;
            const error_kind kind = describe_failure(s.failure).kind;
            t.interrupted = t.interrupted || kind == error_kind::cancelled;
            t.missing = t.missing && status_of(kind) == exit_missing;
            continue;
        }
        t.bytes += s.value->cubin.size();
        ++(s.from == cache::origin::compiled ? t.compiled : t.hits);
        t.not_stored += s.stored ? 0 : 1;
    }
    return t;
}

const char* text_of(cache::origin from) {
    return from == cache::origin::compiled ? "compiled" : from == cache::origin::disk ? "disk" : "memory";
}

struct resources {
    std::uint32_t registers = 0, spill_bytes = 0;
};
resources most_of(const jit::artifact& a) {
    resources r;
    for (const jit::kernel_info& k : a.kernels) {
        r.registers = std::max(r.registers, k.registers);
        r.spill_bytes += k.spill_bytes;
    }
    return r;
}

nlohmann::ordered_json variant_json(const jit::compile_job& job, const cache::served& s) {
    if (s.failure) {
        return {{"key", job.key.hex()},
                {"kernels", nlohmann::ordered_json::array()},
                {"arch", job.spec.arch.text()},
                {"from", "failed"},
                {"compile_ms", 0},
                {"cubin_bytes", 0},
                {"registers", 0},
                {"spill_bytes", 0},
                {"spill_exception", ""},
                {"error", error_json(s.failure)}};
    }
    const jit::artifact& a = *s.value;
    auto kernels = nlohmann::ordered_json::array();
    for (const jit::kernel_info& k : a.kernels) {
        kernels.push_back(k.name);
    }
    const resources most = most_of(a);
    return {{"key", job.key.hex()},
            {"kernels", kernels},
            {"arch", a.arch},
            {"from", text_of(s.from)},
            {"compile_ms", a.compile_ms},
            {"cubin_bytes", a.cubin.size()},
            {"registers", most.registers},
            {"spill_bytes", most.spill_bytes},
            {"spill_exception", a.spill_exception}};
}

std::string row_text(const jit::artifact& a, std::string_view from) {
    const resources most = most_of(a);
    return fmt::format("{:8} {:.0f} ms, {}, {} registers{}: {}", from, a.compile_ms, bytes_text(a.cubin.size()),
                       most.registers, most.spill_bytes == 0 ? "" : fmt::format(", {} bytes spilled", most.spill_bytes),
                       a.spec);
}

std::string result_table(const std::vector<jit::compile_job>& jobs, const std::vector<cache::served>& served) {
    table t({{"from"}, {"ms", true}, {"cubin", true}, {"regs", true}, {"spill", true}, {"variant"}});
    for (std::size_t i = 0; i < jobs.size(); ++i) {
        if (served[i].failure) {
            t.add({"failed", "-", "-", "-", "-", jit::describe(jobs[i].spec)});
            continue;
        }
        const jit::artifact& a = *served[i].value;
        const resources most = most_of(a);
        t.add({text_of(served[i].from), fmt::format("{:.0f}", a.compile_ms), bytes_text(a.cubin.size()),
               std::to_string(most.registers), std::to_string(most.spill_bytes), a.spec});
    }
    return t.text();
}

/// Each different failure once, with how many variants it cost.
void report_failures(const std::vector<cache::served>& served) {
    std::map<std::string, std::size_t> seen;
    std::vector<failure_text> order;
    for (const cache::served& s : served) {
        if (s.failure) {
            failure_text text = describe_failure(s.failure);
            if (seen[text.message]++ == 0) {
                order.push_back(std::move(text));
            }
        }
    }
    for (const failure_text& text : order) {
        const std::size_t n = seen[text.message];
        std::string line =
            fmt::format("epjit: error: {}{}\n", n > 1 ? fmt::format("{} variants: ", n) : "", text.message);
        if (!text.remedy.empty()) {
            line += fmt::format("  remedy: {}\n", text.remedy);
        }
        std::fputs(line.c_str(), stderr);
    }
}

/// With failures: what to tell of all of them. Empty when there is nothing to tell.
nlohmann::ordered_json summary_error(const tally& t, const std::vector<cache::served>& served) {
    if (t.failed > 0) {
        const auto first =
            std::find_if(served.begin(), served.end(), [](const auto& s) { return s.failure != nullptr; });
        nlohmann::ordered_json e = error_json(first->failure);
        e["message"] = fmt::format("{} of {} variants failed; the first: {}", t.failed, served.size(),
                                   e["message"].get<std::string>());
        return e;
    }
    if (t.not_stored > 0) {
        return {{"kind", "cache"},
                {"message", fmt::format("{} of {} variants were compiled but not stored", t.not_stored, served.size())},
                {"remedy", "see the warning on stderr, mend the cache directory and run again"}};
    }
    return nullptr;
}

int status_of(const tally& t) {
    if (t.failed > 0) {
        return t.missing ? exit_missing : exit_check_failed;
    }
    return t.not_stored > 0 ? exit_check_failed : exit_done;
}

/// What NVRTC offers, in worker processes; null when it is not there, and then `why` says so.
std::shared_ptr<jit::compiler> open_compiler(const context& ctx, const jit::template_set& templates,
                                             std::exception_ptr& why) {
    if (ctx.env.offline) {
        return nullptr;
    }
    try {
        return make_process_compiler(jit::open_nvrtc({ctx.env.nvrtc_library, ctx.log}, templates), ctx.log);
    } catch (const library_error&) {
        why = std::current_exception();
        return nullptr;
    }
}

}  // namespace

int warm_command(context& ctx) {
    const auto start = clock::now();
    const auto cpus = static_cast<std::int64_t>(std::max(1u, std::thread::hardware_concurrency()));
    const auto parallelism = static_cast<int>(number_option(ctx.call, "--jobs", cpus, 1, 1024));
    const jit::variant_request request = read_request(ctx);
    const jit::template_set templates = open_templates(ctx);
    const std::vector<jit::compile_job> jobs = make_jobs(ctx, request, templates);
    const auto store = open_store(ctx);

    interruptible scope;
    std::exception_ptr no_compiler;
    const auto compiler = open_compiler(ctx, templates, no_compiler);
    std::vector<cache::served> served;
    {
        progress bar(jobs.size());
        const auto done = [&](std::size_t i, const cache::served& s) {
            const bool compiled = !s.failure && s.from == cache::origin::compiled;
            bar.advance(jit::describe(jobs[i].spec),
                        compiled    ? row_text(*s.value, "compiled")
                        : s.failure ? fmt::format("failed   {}", jit::describe(jobs[i].spec))
                                    : std::string(),
                        compiled);
        };
        served = store->get(jobs, compiler.get(), parallelism, done, [] { return interruptible::interrupted(); });
    }
    if (no_compiler) {  // the places tried say more than "not stored"
        for (cache::served& s : served) {
            if (s.failure) {
                s.failure = no_compiler;
            }
        }
    }
    const tally t = count(served);
    if (t.interrupted || (interruptible::interrupted() && t.failed > 0)) {
        throw error(error_kind::cancelled,
                    fmt::format("interrupted: {} of {} variants are stored", t.compiled + t.hits, jobs.size()),
                    "run the command again: what is stored is not compiled again");
    }
    const double wall_ms = ms_since(start);
    report_failures(served);
    if (ctx.json) {
        auto variants = nlohmann::ordered_json::array();
        for (std::size_t i = 0; i < jobs.size(); ++i) {
            variants.push_back(variant_json(jobs[i], served[i]));
        }
        nlohmann::ordered_json result{{"compiled", t.compiled},     {"hits", t.hits},     {"failed", t.failed},
                                      {"not_stored", t.not_stored}, {"wall_ms", wall_ms}, {"variants", variants}};
        if (auto e = summary_error(t, served); !e.is_null()) {
            result["error"] = std::move(e);
        }
        print_json(result);
    } else {
        const jit::model_shape& m = request.model;
        print(
            fmt::format("{}: H {}, E {}, K {}, {}{}\n\n{}\n{} variants: {} compiled, {} from the cache, {} failed; {} "
                        "in {} ({:.2f} s)\n",
                        m.name, m.hidden, m.num_experts, m.topk, name(m.token_type),
                        m.fp8_dispatch ? " and fp8 dispatch" : "", result_table(jobs, served), jobs.size(), t.compiled,
                        t.hits, t.failed, bytes_text(t.bytes), store->written_layer(), wall_ms / 1e3));
        if (t.not_stored > 0) {
            print(fmt::format("{} were compiled but not stored\n", t.not_stored));
        }
    }
    return status_of(t);
}

}  // namespace epjit::tools
