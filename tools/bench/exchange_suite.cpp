// SPDX-License-Identifier: Apache-2.0
// Dispatch and combine between the GPUs of this machine, beside the floors of links and memory measured in the same
// run.
#include "epjit/error.hpp"
#include "tools/bench/baseline.hpp"
#include "tools/bench/host_side.hpp"
#include "tools/bench/ranks_suite.hpp"
#include "tools/command/context.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace epjit::tools {
namespace {

constexpr int graph_calls = 8;
constexpr std::int32_t few_sms = 16;    ///< of communication
constexpr std::int32_t all_sms = 1024;  ///< of expansion beside it: more than a GPU has
constexpr const char* baseline_name = "nccl + permutes";

enum class job : std::size_t { plan_and_dispatch, dispatch, combine };
constexpr const char* job_names[] = {"dispatch, plan included", "dispatch, plan reused", "combine, weighted"};
constexpr std::size_t num_jobs = std::size(job_names);

/// All jobs of one shape on one exchange. fp8 rows go one way only.
class shape_bench {
   public:
    shape_bench(bench_machine& machine, const bench_shape& shape, const repeats& n)
        : machine_(machine), shape_(shape), n_(n), routing_(shape, machine.num_ranks()) {}

    /// @throws unsupported_error where the exchange is not there.
    void run(exchange_kind kind) {
        run_layers([&](int r) { return bench_layer(machine_.rank(r), r, shape_, routing_, kind); });
    }
    void run_baseline() {
        run_layers([&](int r) { return nccl_baseline(machine_.rank(r), r, shape_, routing_, machine_.rt()); });
    }

    void report(std::string_view exchange, const machine_rates& rates, bench_report& out) const {
        for (std::size_t j = 0; j < num_jobs; ++j) {
            if (times_[j].us.front().empty()) {
                continue;
            }
            const bool back = j == static_cast<std::size_t>(job::combine);
            const std::int64_t row = back ? row_bytes(shape_.hidden, dtype::bf16, scale_type::none)
                                          : row_bytes(shape_.hidden, shape_.dispatch_type(), shape_.scales());
            const operation_bytes bytes = bytes_of(routing_.rows, shape_.rows, row);
            bench_row r;
            r.name = fmt::format("{}{}", shape_.fp8 ? "fp8 " : "", job_names[j]);
            r.us = slowest_median(times_[j].us);
            if (!times_[j].kernel_us.front().empty()) {
                r.kernel_us = slowest_median(times_[j].kernel_us);
            }
            r.floor_us = floor_of(bytes, rates, 1);
            r.bytes = bytes.link;
            r.sms = shape_.num_sms != 0 ? std::optional(shape_.num_sms) : std::nullopt;
            r.exchange = exchange;
            r.shape = shape_.text();
            r.launches = times_[j].launches;
            out.rows.push_back(std::move(r));
        }
    }

   private:
    /// `make(rank)` is a rank's layer: plan, dispatch and combine.
    template <class Make>
    void run_layers(Make make) {
        const auto ranks = static_cast<std::size_t>(machine_.num_ranks());
        for (job_times& t : times_) {
            t = {std::vector<std::vector<double>>(ranks), std::vector<std::vector<double>>(ranks), 0};
        }
        machine_.team().run([&](int r) {
            auto layer = make(r);
            const auto timed = [&](job j, const std::function<void()>& work) {
                const int calls = shape_.mode == mode::fixed ? graph_calls : 0;
                time_job(machine_, r, n_, calls, work, times_[static_cast<std::size_t>(j)]);
            };
            timed(job::plan_and_dispatch, [&] {
                layer.plan(0);
                layer.dispatch();
            });
            timed(job::dispatch, [&] { layer.dispatch(); });
            if (!shape_.fp8 && !shape_.window) {
                timed(job::combine, [&] { layer.combine(); });
            }
            machine_.rank(r).stream.synchronize();
            machine_.team().meet();  // no rank takes its memory down before all have read it
        });
    }

    bench_machine& machine_;
    const bench_shape& shape_;
    const repeats& n_;
    bench_routing routing_;
    job_times times_[num_jobs];
};

void bench_one(bench_machine& machine, const ranks_options& options, const machine_rates& rates,
               const bench_shape& shape, bench_report& report) {
    shape_bench bench(machine, shape, options.n);
    for (const exchange_kind kind : options.kinds) {
        try {
            bench.run(kind);
        } catch (const unsupported_error& e) {
            note_missing(report, kind, e);
            continue;
        }
        bench.report(name(kind), rates, report);
    }
    if (options.baseline && !shape.fp8 && shape.mode == mode::fixed) {
        bench.run_baseline();
        bench.report(baseline_name, rates, report);
    }
}

bool measures_lsa(const ranks_options& options) {
    return std::find(options.kinds.begin(), options.kinds.end(), exchange_kind::lsa) != options.kinds.end();
}

ranks_options lsa_alone(ranks_options options) {
    options.kinds = {exchange_kind::lsa};
    options.baseline = false;
    return options;
}

/// The crossing by itself: on flat a row that arrives is in its place. With all SMs and with a few.
void bench_sm_budget(bench_machine& machine, const ranks_options& options, const machine_rates& rates,
                     const bench_shape& shape, bench_report& report) {
    if (options.num_sms != 0 || !measures_lsa(options)) {
        return;
    }
    const ranks_options lsa = lsa_alone(options);
    for (const std::int32_t num_sms : {0, few_sms}) {
        bench_shape flat = shape;
        flat.rows = layout::flat;
        flat.num_sms = num_sms;
        flat.expansion_sms = num_sms != 0 ? all_sms : 0;
        bench_one(machine, lsa, rates, flat, report);
    }
}

/// Into outputs that the exchange lends: on flat rows go straight to their places.
void bench_windows(bench_machine& machine, const ranks_options& options, const machine_rates& rates,
                   const bench_shape& shape, bench_report& report) {
    if (!measures_lsa(options)) {
        return;
    }
    const ranks_options lsa = lsa_alone(options);
    bench_shape lent = shape;
    lent.window = true;
    bench_one(machine, lsa, rates, lent, report);
    lent.rows = layout::flat;
    bench_one(machine, lsa, rates, lent, report);
    lent.fp8 = true;
    bench_one(machine, lsa, rates, lent, report);
}

/// In a runtime of its own: the driver's functions are slower while they are watched.
void bench_host_side(const context& ctx, const ranks_options& options, const bench_shape& shape, bench_report& report) {
    if (!measures_lsa(options)) {
        return;
    }
    runtime rt(ctx.runtime_options());
    watch_driver(rt);
    bench_machine machine(rt, options.ranks);
    try {
        add_host_rows(machine, shape, exchange_kind::lsa, report);
    } catch (const unsupported_error& e) {
        note_missing(report, exchange_kind::lsa, e);
    }
}

}  // namespace

void exchange_suite(const context& ctx, bench_report& report) {
    const ranks_options options = ranks_options_of(ctx);
    runtime rt(ctx.runtime_options());
    bench_machine machine(rt, options.ranks);
    const machine_rates rates = machine.measure(options.n);
    add_rates(report, rates);
    const std::size_t rows_before = report.rows.size();
    const std::vector<bench_shape> shapes = exchange_shapes(options);
    for (bench_shape shape : shapes) {
        bench_one(machine, options, rates, shape, report);
        shape.fp8 = true;
        bench_one(machine, options, rates, shape, report);
    }
    bench_shape exact = shapes.front();
    exact.mode = mode::exact;
    bench_one(machine, options, rates, exact, report);
    bench_shape apart = shapes.front();
    apart.apart = true;
    bench_one(machine, options, rates, apart, report);
    bench_sm_budget(machine, options, rates, shapes.front(), report);
    bench_windows(machine, options, rates, shapes.front(), report);
    const bool measured = std::any_of(report.rows.begin() + static_cast<std::ptrdiff_t>(rows_before), report.rows.end(),
                                      [](const bench_row& r) { return r.exchange != baseline_name; });
    if (!measured) {
        refuse_without_rows(report);
    }
    bench_host_side(ctx, options, shapes.front(), report);
    report.notes.push_back(
        fmt::format("exchange on {} x {}: time between events, all launches included, the slowest rank of each "
                    "repetition; kernel us: "
                    "the same calls replayed from a graph; bytes: over NVLink, of the rank and direction with most",
                    machine.num_ranks(), machine.rank(0).context->name()));
}

}  // namespace epjit::tools
