// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/tuner.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/variants.hpp"
#include "host/dispatcher/tuning.hpp"
#include "host/exchange/communicator_state.hpp"

#include <algorithm>
#include <chrono>

namespace epjit::tools {
namespace {

constexpr tuned_job jobs[] = {tuned_job::dispatch, tuned_job::combine};

/// Forces knobs on every rank's communicator for the length of a scope.
class forced {
   public:
    forced(bench_machine& machine, const jit::knobs& values) : machine_(machine) {
        set(jit::tuned_knobs::always(values));
    }
    ~forced() { set(std::nullopt); }
    forced(const forced&) = delete;
    forced& operator=(const forced&) = delete;

   private:
    void set(const std::optional<jit::tuned_knobs>& knobs) {
        for (int r = 0; r < machine_.num_ranks(); ++r) {
            machine_.rank(r).comm.state().forced_knobs = knobs;
        }
    }
    bench_machine& machine_;
};

class shape_tuner {
   public:
    shape_tuner(bench_machine& machine, const bench_shape& shape)
        : machine_(machine),
          shape_(shape),
          routing_(shape, machine.num_ranks()),
          kind_(machine.num_ranks() > 1 ? exchange_kind::lsa : exchange_kind::loopback) {}

    [[nodiscard]] std::vector<jit::knobs> candidates(tuned_job job) {
        const jit::target_arch arch = host::device_arch(context().compute_major(), context().compute_minor());
        const std::int32_t ranks = machine_.num_ranks();
        const dtype type = shape_.dispatch_type();
        if (kind_ == exchange_kind::loopback) {
            const auto rows =
                jit::scatter_spec(arch, kind_, ranks, shape_.hidden, shape_.topk, type, type, shape_.scales());
            const auto sums = jit::gather_spec(arch, kind_, ranks, shape_.hidden, shape_.topk, dtype::bf16);
            return local_candidates(job, rows.stages, sums.threads);
        }
        const auto rows = jit::exchange_dispatch_spec(arch, ranks, shape_.hidden, shape_.topk, type, shape_.scales());
        const auto sums = jit::exchange_combine_spec(arch, ranks, shape_.hidden, shape_.topk, dtype::bf16);
        return exchange_candidates(job, job == tuned_job::dispatch ? rows.stages : sums.stages, sums.threads);
    }

    /// Microseconds, the slowest rank's median. Empty, and `why_not` says why, where these knobs cannot be used.
    std::optional<double> measure(tuned_job job, const jit::knobs& values, int repeats_wanted, std::string& why_not) {
        const auto ranks = static_cast<std::size_t>(machine_.num_ranks());
        std::vector<std::vector<double>> us(ranks);
        std::vector<jit::digest> results(ranks);
        const repeats n{std::max(2, repeats_wanted / 5), repeats_wanted};
        try {
            const forced knobs(machine_, values);
            machine_.team().run([&](int r) {
                bench_layer layer(machine_.rank(r), r, shape_, routing_, kind_);
                results[static_cast<std::size_t>(r)] = layer.result_digest();
                machine_.team().meet();
                us[static_cast<std::size_t>(r)] =
                    machine_.time(r, n, [&] { job == tuned_job::dispatch ? layer.dispatch() : layer.combine(); });
                machine_.rank(r).stream.synchronize();
                machine_.team().meet();  // no rank takes its memory down before all have read it
            });
        } catch (const unsupported_error& e) {
            if (values == jit::knobs{}) {
                throw;  // the exchange itself is not there
            }
            why_not = e.message();
            return std::nullopt;
        } catch (const compile_error& e) {
            if (values == jit::knobs{}) {
                throw;
            }
            why_not = e.message();
            return std::nullopt;
        }
        if (expected_.empty()) {
            expected_ = results;
        } else if (results != expected_) {
            agree_ = false;
            why_not = "its result differs from the cost model's";
            return std::nullopt;
        }
        return slowest_median(us);
    }

    [[nodiscard]] bool agree() const noexcept { return agree_; }
    [[nodiscard]] jit::tuning_key key() {
        exchange_config c;
        c.hidden = shape_.hidden;
        c.num_experts = shape_.experts;
        c.topk = shape_.topk;
        c.max_tokens_per_rank = shape_.tokens;
        c.input_type = c.dispatch_type = shape_.dispatch_type();
        c.scales = shape_.scales();
        jit::tuning_key key = host::key_of(machine_.rank(0).comm.state(), c);
        key.layout = shape_.rows;
        key.tokens = jit::token_class(shape_.tokens);
        return key;
    }

   private:
    [[nodiscard]] const host::device_context& context() { return *machine_.rank(0).context; }

    bench_machine& machine_;
    const bench_shape& shape_;
    bench_routing routing_;
    exchange_kind kind_;
    std::vector<jit::digest> expected_;  ///< [rank], under the cost model's knobs
    bool agree_ = true;
};

}  // namespace

tuning tune_shape(bench_machine& machine, const bench_shape& shape, const tuning_limits& limits,
                  const tuning_progress& progress) {
    using clock = std::chrono::steady_clock;
    const auto start = clock::now();
    tuning made;
    shape_tuner tuner(machine, shape);
    for (const tuned_job job : jobs) {
        const std::chrono::duration<double> share(limits.budget_s * (job == jobs[0] ? 0.5 : 1));
        race_options options;
        options.first_repeats = limits.first_repeats;
        options.most_repeats = limits.most_repeats;
        options.out_of_time = [&] { return clock::now() - start >= share || (limits.cancelled && limits.cancelled()); };
        const std::vector<jit::knobs> values = tuner.candidates(job);
        std::vector<std::string> why_not(values.size());
        const race_result result = race(values.size(), options, [&](std::size_t i, int repeats_wanted) {
            const auto us = tuner.measure(job, values[i], repeats_wanted, why_not[i]);
            progress(job, values[i], us);
            return us;
        });
        made.complete = made.complete && result.complete;
        made.entry.values = jit::filled(made.entry.values, values[result.winner]);
        const double best = result.entries[result.winner].us.value_or(0), base = result.entries[0].us.value_or(0);
        jit::tuning_times& times = made.entry.measured;
        (job == tuned_job::dispatch ? times.dispatch_us : times.combine_us) = best;
        (job == tuned_job::dispatch ? times.cost_model_dispatch_us : times.cost_model_combine_us) = base;
        const auto first = static_cast<std::ptrdiff_t>(made.candidates.size());
        for (std::size_t i = 0; i < values.size(); ++i) {
            made.candidates.push_back({job, values[i], result.entries[i], why_not[i]});
        }
        // Who came further first, then by time: times of one round compare.
        std::stable_sort(made.candidates.begin() + first, made.candidates.end(),
                         [](const tuned_candidate& a, const tuned_candidate& b) {
                             const race_entry &x = a.result, &y = b.result;
                             const bool runs = x.us && !x.refused, other_runs = y.us && !y.refused;
                             if (runs != other_runs) {
                                 return runs;
                             }
                             return x.repeats != y.repeats ? x.repeats > y.repeats : x.us < y.us;
                         });
    }
    made.results_agree = tuner.agree();
    made.entry.key = tuner.key();
    return made;
}

}  // namespace epjit::tools
