// SPDX-License-Identifier: Apache-2.0
// Tuning over fake GPUs: every pair of their events is 1500 us apart and their kernels compute nothing, so that what is
// seen is which exchanges were made, with which knobs, and what becomes of them.
#include "tools/bench/tuner.hpp"

#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"
#include "tests/bench/fake_gpus.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace epjit::tools {
namespace {

bench_shape small_shape() {
    bench_shape s;
    s.tokens = 12;
    s.hidden = 2048;
    s.experts = 8;
    s.topk = 2;
    s.varied = true;
    return s;
}

class tuner : public two_gpus {
   protected:
    const tuning_limits limits{.budget_s = 600, .first_repeats = 1, .most_repeats = 2, .cancelled = {}};

    void check(const tuning& made, std::size_t dispatches, std::size_t combines) {
        EXPECT_TRUE(made.complete);
        EXPECT_TRUE(made.results_agree);
        EXPECT_EQ(made.entry.values, jit::knobs{}) << "all are equally fast: the cost model's stay";
        EXPECT_EQ(made.entry.measured.dispatch_us, 1500);
        EXPECT_EQ(made.entry.measured.cost_model_combine_us, 1500);
        EXPECT_EQ(made.candidates.size(), dispatches + combines);
        EXPECT_EQ(made.entry.key.gpu, "Fake GPU");
        EXPECT_EQ(made.entry.key.tokens, 16);
        EXPECT_EQ(made.entry.key.layout, layout::expert_major);
        EXPECT_EQ(jit::parse_profile(jit::profile_text({&made.entry, 1}), "written").entries.front(), made.entry);
    }
};

TEST_F(tuner, one_gpu_tries_permutes_and_unpermutes) {
    bench_machine machine(rt, one_gpu{});
    ASSERT_EQ(machine.num_ranks(), 1);
    std::set<std::string> tried;
    const tuning made =
        tune_shape(machine, small_shape(), limits, [&](tuned_job job, const jit::knobs& values, std::optional<double>) {
            tried.insert(std::string(name(job)) + " " + jit::describe(values));
        });
    check(made, local_candidates(tuned_job::dispatch, 48, 128).size(),
          local_candidates(tuned_job::combine, 48, 128).size());
    EXPECT_EQ(tried.size(), made.candidates.size());
    EXPECT_EQ(made.entry.key.link, jit::link_kind::none);
    EXPECT_EQ(made.entry.key.ranks, 1);
    EXPECT_FALSE(machine.rank(0).comm.state().forced_knobs) << "later exchanges take profiles again";
}

TEST_F(tuner, two_gpus_try_whole_exchanges) {
    bench_machine machine(rt, 2);
    const tuning made =
        tune_shape(machine, small_shape(), limits, [](tuned_job, const jit::knobs&, std::optional<double>) {});
    check(made, exchange_candidates(tuned_job::dispatch, 48, 128).size(),
          exchange_candidates(tuned_job::combine, 48, 128).size());
    EXPECT_EQ(made.entry.key.link, jit::link_kind::nvlink);
    EXPECT_EQ(made.entry.key.ranks, 2);
    // One launch or two halves: the knob reaches the exchange.
    std::uint64_t halves = 0;
    rt.visit_launches(
        [](void* user, std::string_view kernel, std::uint64_t launches) {
            *static_cast<std::uint64_t*>(user) += kernel == "sync_kernel" ? launches : 0;
        },
        &halves);
    EXPECT_GT(halves, 0U);
}

TEST_F(tuner, a_budget_ends_it_with_what_it_has) {
    bench_machine machine(rt, one_gpu{});
    tuning_limits none = limits;
    none.budget_s = 0;
    int measured = 0;
    const tuning made = tune_shape(machine, small_shape(), none,
                                   [&](tuned_job, const jit::knobs&, std::optional<double>) { ++measured; });
    EXPECT_FALSE(made.complete);
    EXPECT_EQ(measured, 2) << "the cost model's own, once for each job";
    EXPECT_EQ(made.entry.values, jit::knobs{});
}

}  // namespace
}  // namespace epjit::tools
