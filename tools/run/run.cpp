// SPDX-License-Identifier: Apache-2.0
#include "tools/run/run.hpp"

#include "epjit/error.hpp"
#include "host/dispatcher/dispatcher.hpp"
#include "host/driver/api.hpp"
#include "host/runtime/runtime_state.hpp"
#include "tools/reference/check.hpp"
#include "tools/reference/expert.hpp"
#include "tools/run/dump.hpp"
#include "tools/run/experts.hpp"
#include "tools/run/launcher.hpp"
#include "tools/run/layer.hpp"
#include "tools/run/memory.hpp"
#include "tools/run/ranks.hpp"
#include "tools/run/routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>

namespace epjit::tools {
namespace {

using reference::problem;

constexpr std::int32_t default_tokens = 256;
constexpr std::int32_t default_ranks = 8;

/// What carries the rows, and how many ranks there are.
struct setting {
    exchange_kind kind = exchange_kind::host;  ///< automatic: the dispatcher chooses among those of real ranks
    std::int32_t ranks = default_ranks;
    bool real = false;      ///< ranks with a GPU each
    bool launched = false;  ///< this process is one of them, else threads are
    std::string note;
};

constexpr bool between_real_ranks(exchange_kind kind) {
    return kind != exchange_kind::automatic && kind != exchange_kind::host && kind != exchange_kind::loopback;
}

constexpr bool any_real_exchange =
    host::built_exchanges.has(exchange_kind::lsa) || host::built_exchanges.has(exchange_kind::sendrecv) ||
    host::built_exchanges.has(exchange_kind::dense) || host::built_exchanges.has(exchange_kind::hybrid);

setting place_in_launcher(const launcher_place& place, const run_options& options, exchange_kind wanted) {
    if (options.ranks != 0 && options.ranks != place.size) {
        throw config_error(fmt::format("--ranks {} in one of {} processes ({}={})", options.ranks, place.size,
                                       place.variable, place.size),
                           "leave --ranks out under a launcher, or name host or loopback, which one process drives");
    }
    return {wanted, place.size, true, true, fmt::format("{} processes of a launcher", place.size)};
}

/// Whether a thread for each GPU can be ranks; `note` says why not.
bool can_use_threads(runtime& rt, const run_options& options, int gpus, std::string& note) {
    const std::int32_t ranks = options.ranks != 0 ? options.ranks : gpus;
    if (!any_real_exchange || gpus < 2 || ranks < 2 || ranks > gpus) {
        return false;
    }
    try {
        static_cast<void>(rt.state().nccl());
    } catch (const error& e) {
        note = fmt::format("{} GPUs, but {}", gpus, e.message().substr(0, e.message().find('\n')));
        return false;
    }
    return true;
}

setting choose_setting(runtime& rt, const run_options& options) {
    exchange_kind wanted = options.exchange;
    if (wanted == exchange_kind::automatic) {
        wanted = rt.state().options.exchange;
    }
    const bool could_be_real = wanted == exchange_kind::automatic || between_real_ranks(wanted);
    if (const auto place = could_be_real ? find_launcher() : std::nullopt) {
        return place_in_launcher(*place, options, wanted);
    }
    host::exchange_question question;
    question.wanted = wanted;
    int gpus = 0;
    if (wanted != exchange_kind::host) {
        try {
            gpus = rt.state().driver()->num_devices;
        } catch (const error& e) {
            question.facts.no_gpu_reason = e.message();
            if (wanted == exchange_kind::loopback) {
                throw;
            }
        }
    }
    question.facts.have_gpu = gpus > 0;
    setting s;
    s.ranks = options.ranks != 0 ? options.ranks : gpus > 0 ? gpus : default_ranks;
    question.facts.num_ranks = s.ranks;
    if (between_real_ranks(wanted) && host::built_exchanges.has(wanted) && gpus > 0) {
        if (s.ranks > gpus) {
            throw config_error(
                fmt::format("--ranks {} with exchange {}: this machine has {} GPU(s), one for each rank", s.ranks,
                            name(wanted), gpus),
                fmt::format("use --ranks {}, start processes on several machines, or use loopback (virtual ranks)",
                            gpus));
        }
        return {wanted, s.ranks, true, false, {}};
    }
    std::string why_not;
    if (wanted == exchange_kind::automatic && can_use_threads(rt, options, gpus, why_not)) {
        return {wanted, s.ranks, true, false, fmt::format("a thread for each of {} GPUs", s.ranks)};
    }
    const host::exchange_choice choice = host::choose_exchange(question);
    s.kind = choice.exchange;
    if (wanted == exchange_kind::automatic) {
        s.note = why_not.empty() ? choice.reason : why_not;
    }
    return s;
}

void check_options(const run_options& o) {
    const auto refuse = [](const std::string& what, const char* remedy) { throw config_error(what, remedy); };
    if (o.ranks < 0 || o.ranks > 64) {
        refuse(fmt::format("--ranks {}", o.ranks), "use 1 to 64");
    }
    if (o.tokens && *o.tokens < 0) {
        refuse(fmt::format("--tokens {}", *o.tokens), "use 0 or more");
    }
    if (o.iters < 1) {
        refuse(fmt::format("--iters {}", o.iters), "use 1 or more");
    }
    if (o.layout == layout::flat && o.reduction == reduction::per_row) {
        refuse("--reduction per_row on --layout flat: one row serves several experts",
               "use --reduction per_rank or --layout expert_major");
    }
    if (o.graph && o.mode == mode::exact) {
        refuse("--graph with --mode exact: the host waits for the counts, which cannot be captured",
               "use --mode static, or leave --mode out");
    }
}

problem describe(const run_options& o, std::int32_t ranks) {
    problem p;
    p.ranks = ranks;
    p.experts = o.model.num_experts;
    p.topk = o.model.topk;
    p.hidden = o.model.hidden;
    const dtype type = o.type.value_or(o.model.token_type);
    const bool quantised = type == dtype::fp8_e4m3;
    const dtype wide = o.model.token_type == dtype::fp8_e4m3 ? dtype::bf16 : o.model.token_type;
    p.input = p.combine = quantised ? wide : type;
    p.dispatch = type;
    p.scales = !quantised                               ? scale_type::none
               : o.model.fp8_scales == scale_type::none ? scale_type::f32
                                                        : o.model.fp8_scales;
    p.layout = o.layout;
    p.mode = o.mode;
    p.reduction = o.reduction;
    p.input_stride = p.dispatch_stride = p.combine_stride = p.hidden;
    p.weigh_combine = true;
    place_by_default(p);
    // Two hosts where the order of a sum can show them.
    for (std::int32_t rank = 0; o.reduction == reduction::per_host && rank < ranks; ++rank) {
        p.rank_hosts.push_back(rank >= (ranks + 1) / 2 ? 1 : 0);
    }
    p.inputs.resize(static_cast<std::size_t>(ranks));
    p.text = fmt::format("{} R={} E={} K={} H={}", o.model.name, ranks, p.experts, p.topk, p.hidden);
    return p;
}

/// Ids, weights, rows, experts and capacities of a run.
problem make_problem(const run_options& o, std::int32_t ranks) {
    problem p = describe(o, ranks);
    if (o.routing.size() > 4 && o.routing.ends_with(".npy")) {
        read_routing(p, o.routing, o.seed);
        if (o.tokens && *o.tokens != p.max_tokens()) {
            throw config_error(
                fmt::format("--tokens {} but {} routes {} tokens a rank", *o.tokens, o.routing, p.max_tokens()),
                "leave --tokens out, or cut the file");
        }
    } else {
        for (auto& in : p.inputs) {
            in.tokens = o.tokens.value_or(default_tokens);
        }
        generate_routing(p, o.routing, o.seed);
    }
    generate_inputs(p, o.seed);
    reference::make_experts(p, o.seed);
    // Room for the rows that come, and a few more so that there is a tail; at least one row.
    const std::vector<std::int32_t> needed = reference::needed_rows(p);
    for (std::size_t rank = 0; rank < p.inputs.size(); ++rank) {
        p.inputs[rank].capacity = (needed[rank] / 8 + 1) * 8;
    }
    return p;
}

double median(std::vector<double> values) {
    if (values.empty()) {
        return 0;
    }
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::map<std::string, std::uint64_t> launches_of(const runtime& rt) {
    std::map<std::string, std::uint64_t> launches;
    rt.visit_launches(
        [](void* user, std::string_view kernel, std::uint64_t count) {
            (*static_cast<std::map<std::string, std::uint64_t>*>(user))[std::string(kernel)] = count;
        },
        &launches);
    return launches;
}

void compare(const problem& p, const reference::observation& seen, run_result& result) {
    const reference::oracle oracle(p);
    const reference::report report = reference::check_all(oracle, seen);
    result.checked_rows = report.checked_rows;
    result.mismatched_rows = report.mismatched_rows;
    result.max_error = report.max_error;
    result.first_mismatch = report.first_mismatch;
    result.ok = report.ok();
}

/// Times, counts and the check of the ranks that `comm` drives.
run_result run_driven(communicator& comm, exchange_kind kind, const problem& p, const run_options& options) {
    const resident_experts experts(comm, p);
    exchange_config config = config_of(p, kind);
    config.window_rows = options.window ? window_rows_for(p) : 0;
    config.staging_bytes = options.staging_bytes;
    config.ll_max_tokens_per_rank = options.low_latency ? config.max_tokens_per_rank : 0;
    exchange ex(comm, config);
    ex.prepare();
    const std::unique_ptr<memory_space> memory = make_memory_space(comm);
    layer_options layer;
    layer.iters = options.iters;
    layer.graph = options.graph;
    layer.source = options.source;
    layer.into_window = options.window;
    layer.follows_plan = true;
    layer.weights_dispatched = true;
    layer.experts = &experts;
    layer.cancel = options.cancel;
    layer_times times;
    const reference::observation seen = run_problem(ex, *memory, p, layer, &times);

    run_result result;
    result.exchange = ex.kind();
    result.plan_us = median(times.plan_us);
    result.dispatch_us = median(times.dispatch_us);
    result.combine_us = median(times.combine_us);
    for (const reference::rank_output& out : seen.ranks) {
        if (p.layout == layout::flat) {
            result.rows += static_cast<std::uint64_t>(out.num_rows);
        } else {
            for (const std::int32_t count : out.counts) {
                result.rows += static_cast<std::uint64_t>(count);
            }
        }
    }
    result.status = {seen.bad_ids, seen.duplicate_ids, seen.excess_ids, seen.dropped_rows};
    if (options.check && p.reduction == reduction::per_host && p.rank_hosts.empty()) {
        problem placed = p;
        placed.rank_hosts.assign(ex.config().rank_hosts, ex.config().rank_hosts + p.ranks);
        compare(placed, seen, result);
    } else if (options.check) {
        compare(p, seen, result);
    }
    if (!options.dump_dir.empty()) {
        write_dump(options.dump_dir, p, seen);
    }
    return result;
}

/// Runs `work` and adds what this process counted meanwhile.
run_result counted(runtime& rt, const std::function<run_result()>& work) {
    const counters before = rt.counters();
    const auto launched_before = launches_of(rt);
    run_result result = work();
    const counters after = rt.counters();
    result.allocations = after.allocations - before.allocations;
    result.host_waits = after.host_waits - before.host_waits;
    for (const auto& [kernel, count] : launches_of(rt)) {
        const auto old = launched_before.find(kernel);
        const std::uint64_t launches = count - (old != launched_before.end() ? old->second : 0);
        if (launches > 0) {
            result.launches.emplace_back(kernel, launches);
        }
    }
    return result;
}

run_result run_virtual(runtime& rt, const setting& s, const problem& p, const run_options& options) {
    communicator comm =
        s.kind == exchange_kind::host ? communicator::host(rt, s.ranks) : communicator::loopback(rt, s.ranks);
    return counted(rt, [&] { return run_driven(comm, s.kind, p, options); });
}

run_result run_real(runtime& rt, const setting& s, const problem& p, const run_options& options) {
    if (s.launched) {
        communicator comm = communicator::from_launcher(rt);
        const rank_outcome mine =
            outcome_of([&] { return counted(rt, [&] { return run_driven(comm, s.kind, p, options); }); });
        return merge_outcomes(gather_outcomes(comm, mine));
    }
    return counted(rt, [&] {
        return merge_outcomes(
            run_threads(rt, s.ranks, [&](communicator& comm) { return run_driven(comm, s.kind, p, options); }));
    });
}

}  // namespace

run_result run_layer(runtime& rt, const run_options& options) {
    check_options(options);
    const setting s = choose_setting(rt, options);
    problem p = make_problem(options, s.ranks);
    if (s.launched) {
        p.rank_hosts.clear();  // the exchange knows where the ranks are
    }
    run_result result = s.real ? run_real(rt, s, p, options) : run_virtual(rt, s, p, options);
    result.note = s.note;
    result.ranks = s.ranks;
    for (const reference::rank_input& in : p.inputs) {
        result.tokens.push_back(in.tokens);
    }
    return result;
}

}  // namespace epjit::tools
