// SPDX-License-Identifier: Apache-2.0
// Exchanges of random shapes; on each, steps of one to three layers whose calls interleave in a random order, on one
// lane or two, each layer on a stream of its own. Every rank draws the same and checks what it got itself.
#include "tests/gpu/cases.hpp"
#include "tests/multi_gpu/jobs.hpp"
#include "tests/multi_gpu/pool.hpp"
#include "tools/reference/check.hpp"
#include "tools/reference/oracle.hpp"
#include "tools/run/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>
#include <iostream>
#include <optional>
#include <random>
#include <string_view>

namespace epjit::tests {
namespace {

using tools::reference::problem;
using generator = std::mt19937_64;

constexpr int num_shapes = 15;
constexpr std::int64_t case_elements = 150'000;
constexpr int max_layers = 3;

std::int32_t between(generator& random, std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random);
}
bool chance(generator& random, double p) {
    return std::bernoulli_distribution(p)(random);
}

/// What is left out while an exchange learns to walk: EPJIT_WITHOUT.
struct leave_outs {
    explicit leave_outs(const std::string& list) : list_("," + list + ",") {}
    [[nodiscard]] bool has(std::string_view what) const {
        return list_.find(fmt::format(",{},", what)) != std::string::npos;
    }

   private:
    std::string list_;
};

/// What the exchange cannot do is not drawn.
void leave_out(const leave_outs& without, shape& s) {
    if (without.has("sparse") && s.form == routing_form::sparse) {
        s.form = routing_form::dense;
    }
    if (without.has("slots") && s.form == routing_form::slots) {
        s.form = routing_form::dense;
    }
    if (without.has("replicas")) {
        s.slots = s.experts;
    }
    if (without.has("fp8") && s.dispatch == dtype::fp8_e4m3) {
        s.input = s.dispatch = s.combine;
        s.scales = scale_type::none;
    }
}

/// A call that may be drawn; others are drawn again.
bool wanted(const leave_outs& without, const problem& p) {
    for (const std::string_view name : {name(p.layout), name(p.mode), name(p.reduction), name(p.ids)}) {
        if (without.has(name)) {
            return false;
        }
    }
    return !(without.has("gradients") && p.weight_gradients) &&
           !(without.has("drop") && p.overflow == overflow::drop) && !(without.has("weigh_input") && p.weigh_input);
}

enum class op {
    plan,
    dispatch,
    dispatch_send,
    dispatch_receive,
    experts,
    combine,
    combine_send,
    combine_receive,
    gradients
};

struct drawn_layer {
    problem job;
    tools::layer_options options;
    std::vector<op> ops;  ///< left to do, the next one last
};

/// One exchange and how it is used.
struct drawn_exchange {
    problem job;
    exchange_config config;
    std::int32_t max_tokens = 0;
    bool small_staging = false;  ///< whole calls of most bounds take several windows, and halves are refused
};

/// Memory for the rows of about max_tokens / `windows` tokens a rank at a time.
std::int64_t staging_for(const drawn_exchange& d, std::int32_t windows) {
    const exchange_config& c = d.config;
    const std::int64_t row = c.hidden * std::max(size_of(c.input_type), size_of(c.combine_type));
    const std::int64_t tokens = (d.max_tokens + windows - 1) / windows;
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(d.job.rank_hosts.size()) * tokens * row);
}

drawn_exchange draw_exchange(const shape& s, exchange_kind kind, generator& random, const leave_outs& without) {
    drawn_exchange d;
    d.job = draw_job(s, random);
    if (kind == exchange_kind::hybrid) {
        // Where the ranks are: two hosts, each with the next half of them.
        for (std::size_t r = 0; r < d.job.rank_hosts.size(); ++r) {
            d.job.rank_hosts[r] = static_cast<std::int32_t>(r * 2 / d.job.rank_hosts.size());
        }
    }
    const std::array<std::int32_t, 4> bounds{8, 40, 300, 1200};
    d.max_tokens = bounds[static_cast<std::size_t>(between(random, 0, 3))];
    d.config = tools::config_of(d.job, kind, !without.has("lanes") && chance(random, 0.5) ? 2 : 1);
    d.config.max_tokens_per_rank = d.max_tokens;
    // One block of the plan or several.
    const std::int32_t few = std::min(d.max_tokens, chance(random, 0.6) ? 40 : 100);
    d.config.ll_max_tokens_per_rank = chance(random, 0.6) && !without.has("ll") ? few : 0;
    d.config.backward = !without.has("gradients");
    if (chance(random, 0.7) && !without.has("window")) {
        const std::int64_t row_bytes = d.job.hidden * size_of(d.job.dispatch);
        d.config.window_rows = static_cast<std::int32_t>(
            std::min<std::int64_t>(chance(random, 0.3) ? 500 : 6000, (std::int64_t{64} << 20) / row_bytes));
    }
    if (kind == exchange_kind::lsa) {
        if (chance(random, 0.15) && !without.has("sms")) {
            d.config.num_sms = between(random, 2, 24);
            d.config.expansion_sms = chance(random, 0.5) ? between(random, 1, 64) : 0;
        }
        d.small_staging = chance(random, 0.5) && !without.has("small_staging");
        if (d.small_staging) {
            constexpr std::array windows{2, 3, 5, 9};
            d.config.staging_bytes = staging_for(d, windows[static_cast<std::size_t>(between(random, 0, 3))]);
        } else {
            d.config.halves = chance(random, 0.3);
        }
    }
    return d;
}

/// Into the lane's lent output, which one layer of a step may have, where it is large enough for every rank.
bool takes_window(const drawn_layer& l, const exchange_config& config, std::array<bool, 2>& taken) {
    bool& of_lane = taken[static_cast<std::size_t>(l.options.lane)];
    if (of_lane || tools::window_rows_for(l.job) > config.window_rows) {
        return false;
    }
    of_lane = true;
    return true;
}

std::vector<op> ops_of(const drawn_layer& l, bool split) {
    std::vector<op> ops{op::gradients};
    if (split) {
        ops.insert(ops.end(), {op::combine_receive, op::combine_send, op::experts, op::dispatch_receive,
                               op::dispatch_send, op::plan});
    } else {
        ops.insert(ops.end(), {op::combine, op::experts, op::dispatch, op::plan});
    }
    if (!l.job.weight_gradients) {
        ops.erase(ops.begin());
    }
    return ops;
}

void draw_layers(std::deque<drawn_layer>& layers, const drawn_exchange& ex, generator& random,
                 const leave_outs& without) {
    const int count = without.has("live_plans") ? 1 : between(random, 1, max_layers);
    std::array<bool, 2> taken{};
    for (int i = 0; i < count; ++i) {
        drawn_layer l;
        run_style style;
        const bool small = ex.config.ll_max_tokens_per_rank > 0 && chance(random, 0.5);
        const std::int32_t bound = small ? ex.config.ll_max_tokens_per_rank : ex.max_tokens;
        do {
            l.job = ex.job;
            draw_call(l.job, random, {case_elements, bound}, style);
        } while (!wanted(without, l.job));
        l.options.iters = style.iterations;
        l.options.lane = between(random, 0, ex.config.lanes - 1);
        l.options.source =
            without.has("gathered") ? plan_source::counts : static_cast<plan_source>(between(random, 0, 2));
        l.options.token_bound = small || chance(random, 0.2) ? bound : 0;
        l.options.misalignment = chance(random, 0.2) && !without.has("misaligned") ? between(random, 1, 7) : 0;
        l.options.halves = style.halves && !without.has("halves") && !ex.small_staging;
        if (chance(random, 0.6) && !without.has("window") && takes_window(l, ex.config, taken)) {
            l.options.into_window = true;
            l.job.dispatch_stride = l.job.hidden;
        }
        l.options.plan_again = chance(random, 0.5) && !without.has("follows");
        l.options.weights_dispatched = chance(random, 0.5) && !without.has("weights_dispatched");
        l.ops = ops_of(l, l.options.halves && chance(random, 0.7));
        layers.push_back(std::move(l));
    }
}

void issue(op what, tools::layer& l) {
    switch (what) {
        case op::plan: l.make_plan(); break;
        case op::dispatch: l.dispatch(); break;
        case op::dispatch_send: l.dispatch_send(); break;
        case op::dispatch_receive: l.dispatch_receive(); break;
        case op::experts: l.run_experts(); break;
        case op::combine: l.combine(); break;
        case op::combine_send: l.combine_send(); break;
        case op::combine_receive: l.combine_receive(); break;
        case op::gradients: l.weight_gradients(); break;
    }
}

constexpr bool sends(op what) {
    return what == op::dispatch_send || what == op::combine_send;
}

class property_run {
   public:
    property_run(rank_world& world, const job_settings& settings, job_report& report)
        : world_(world), settings_(settings), report_(report), without_(settings.without) {
        for (int i = 0; i < max_layers; ++i) {
            spaces_.push_back(world.make_memory());
        }
        pieces_.emplace(*spaces_.front());
    }

    void run() {
        generator shapes_random(settings_.seed);
        std::vector<shape> shapes = draw_shapes(shapes_random, num_shapes);
        const std::int64_t of_each = (settings_.cases + num_shapes - 1) / num_shapes;
        // Far apart, so that a step's number does not depend on how many cases there are.
        for (std::size_t i = 0; i < shapes.size(); ++i) {
            const auto first_step = static_cast<std::int64_t>(i) * 100'000;
            if (settings_.only >= 0 && settings_.only / 100'000 != static_cast<std::int64_t>(i)) {
                continue;
            }
            shapes[i].ranks = world_.ranks();
            leave_out(without_, shapes[i]);
            run_shape(shapes[i], settings_.seed * 7919 + i, first_step, of_each);
        }
    }

   private:
    void run_shape(const shape& s, std::uint64_t seed, std::int64_t first_step, std::int64_t cases) {
        generator random(seed);
        const drawn_exchange drawn = draw_exchange(s, settings_.exchange, random, without_);
        exchange ex = world_.make_exchange(drawn.config);
        ex.prepare();
        ++report_.counts["exchanges"];
        for (std::int64_t done = 0, step = first_step; done < cases; ++step) {
            generator step_random(settings_.seed * 1'000'003 + static_cast<std::uint64_t>(step));
            std::deque<drawn_layer> layers;
            draw_layers(layers, drawn, step_random, without_);
            done += static_cast<std::int64_t>(layers.size());
            report_.counts["small staging"] += drawn.small_staging ? layers.size() : 0;
            if (settings_.only < 0 || settings_.only == step) {
                run_step(ex, step, layers, step_random);
            }
        }
        for (const auto& space : spaces_) {
            space->synchronize();
        }
        world_.barrier();  // nobody's exchange goes while a peer still works
    }

    /// Every rank stops at the first step that throws: its peers would wait for calls that do not come.
    void run_step(exchange& ex, std::int64_t step, std::deque<drawn_layer>& drawn, generator& random) {
        std::string order;
        try {
            std::vector<std::unique_ptr<pooled_space>> memory;
            std::vector<tools::layer> layers;
            for (std::size_t i = 0; i < drawn.size(); ++i) {
                memory.push_back(std::make_unique<pooled_space>(*spaces_[i], *pieces_));
                layers.emplace_back(ex, *memory.back(), drawn[i].job, drawn[i].options);
                layers.back().upload();
            }
            interleave(layers, drawn, random, order);
            for (std::size_t i = 0; i < layers.size(); ++i) {
                check(step, drawn[i], layers[i].finish(), order);
            }
        } catch (const std::exception& e) {
            throw std::runtime_error(where(step, drawn.front(), order) + e.what());
        }
        pieces_->reset();
    }

    void interleave(std::vector<tools::layer>& layers, std::deque<drawn_layer>& drawn, generator& random,
                    std::string& order) const {
        std::array<std::optional<std::size_t>, 2> sending;  // by lane: the layer between its halves
        for (;;) {
            std::vector<std::size_t> ready;
            for (std::size_t i = 0; i < drawn.size(); ++i) {
                const auto& held = sending[static_cast<std::size_t>(drawn[i].options.lane)];
                if (!drawn[i].ops.empty() && (!held || *held == i)) {
                    ready.push_back(i);
                }
            }
            if (ready.empty()) {
                return;
            }
            const std::size_t i =
                ready[static_cast<std::size_t>(between(random, 0, static_cast<std::int32_t>(ready.size()) - 1))];
            const op what = drawn[i].ops.back();
            drawn[i].ops.pop_back();
            order += fmt::format(" {}{}", static_cast<int>(what), static_cast<char>('a' + i));
            issue(what, layers[i]);
            auto& held = sending[static_cast<std::size_t>(drawn[i].options.lane)];
            held = sends(what) ? std::optional(i) : std::nullopt;
        }
    }

    void check(std::int64_t step, const drawn_layer& l, const tools::reference::observation& seen,
               const std::string& order) {
        const tools::reference::oracle oracle(l.job);
        const tools::reference::report found = tools::reference::check_all(oracle, seen);
        if (!found.ok()) {
            report_.fail(where(step, l, order) + fmt::format("{} of {} rows differ: {}", found.mismatched_rows,
                                                             found.checked_rows, found.first_mismatch));
        }
        if (settings_.only >= 0) {
            std::cout << where(step, l, order) << '\n';
        }
        auto& counts = report_.counts;
        ++counts["cases"];
        counts["rows"] += found.checked_rows;
        counts["dropped"] += oracle.dropped_rows;
        counts["bad_ids"] += oracle.bad_ids;
        counts["duplicates"] += oracle.duplicate_ids;
        counts["gradients"] += l.job.weight_gradients ? 1 : 0;
        ++counts[fmt::format("layout {}", name(l.job.layout))];
        ++counts[fmt::format("mode {}", name(l.job.mode))];
        ++counts[fmt::format("reduction {}", name(l.job.reduction))];
        ++counts[fmt::format("lane {}", l.options.lane)];
        ++counts[fmt::format("source {}", name(l.options.source))];
        counts["halves"] += l.options.halves ? 1 : 0;
        counts["window"] += l.options.into_window ? 1 : 0;
        counts["follows"] += l.options.plan_again ? 1 : 0;
        counts["weights dispatched"] += l.options.weights_dispatched && l.job.weigh_combine ? 1 : 0;
    }

    [[nodiscard]] std::string where(std::int64_t step, const drawn_layer& l, const std::string& order) const {
        return fmt::format(
            "rank {}, EPJIT_GPU_SEED={} EPJIT_GPU_ONLY={}, {}, lane {}, {} iterations{}{}{}{}, bound {}, source {}, "
            "calls{}: ",
            world_.rank(), settings_.seed, step, l.job.text, l.options.lane, l.options.iters,
            l.options.halves ? " in halves" : "", l.options.into_window ? " into the window" : "",
            l.options.plan_again ? " follows" : "", l.options.weights_dispatched ? " weights dispatched" : "",
            l.options.token_bound, name(l.options.source), order);
    }

    rank_world& world_;
    const job_settings& settings_;
    job_report& report_;
    leave_outs without_;
    std::vector<std::unique_ptr<tools::memory_space>> spaces_;
    std::optional<arena> pieces_;
};

}  // namespace

void property_job(rank_world& world, const job_settings& settings, job_report& report) {
    property_run(world, settings, report).run();
}

}  // namespace epjit::tests
