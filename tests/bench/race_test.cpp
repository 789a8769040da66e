// SPDX-License-Identifier: Apache-2.0
// Successive halving on numbers, and the knobs that are tried.
#include "tools/bench/race.hpp"

#include "tools/bench/tuner.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

namespace epjit::tools {
namespace {

using testing::ElementsAre;

/// Candidates of fixed times that remember how often they ran with how many repetitions.
struct runners {
    std::vector<double> us;
    std::vector<std::vector<int>> runs = std::vector<std::vector<int>>(us.size());
    std::optional<double> operator()(std::size_t i, int repeats) {
        runs[i].push_back(repeats);
        return us[i] > 0 ? std::optional(us[i]) : std::nullopt;
    }
};

race_result run(runners& r, race_options options = {}) {
    return race(r.us.size(), options, [&](std::size_t i, int repeats) { return r(i, repeats); });
}

TEST(race, halves_the_field_and_doubles_the_repetitions) {
    runners r{{50, 10, 80, 20, 70, 30, 60, 40}};
    const race_result result = run(r);
    EXPECT_EQ(result.winner, 1U);
    EXPECT_TRUE(result.complete);
    EXPECT_THAT(r.runs[1], ElementsAre(10, 20, 40));
    EXPECT_THAT(r.runs[0], ElementsAre(10, 20, 40)) << "the first one is there to the end";
    EXPECT_THAT(r.runs[3], ElementsAre(10, 20)) << "its place in the last round went to the first one";
    EXPECT_THAT(r.runs[2], ElementsAre(10));
    EXPECT_EQ(result.entries[3].repeats, 20);
    EXPECT_EQ(result.entries[2].us, 80);
}

TEST(race, the_first_one_stays_unless_it_is_beaten_by_the_margin) {
    runners close{{100, 99.5, 120}};
    EXPECT_EQ(run(close).winner, 0U);
    runners clear{{100, 98, 120}};
    EXPECT_EQ(run(clear).winner, 1U);
    runners alone{{100}};
    EXPECT_EQ(run(alone).winner, 0U);
}

TEST(race, who_cannot_run_is_out_also_the_first_one) {
    runners r{{0, 30, 0, 20, 10}};
    const race_result result = run(r);
    EXPECT_EQ(result.winner, 4U);
    EXPECT_TRUE(result.entries[0].refused);
    EXPECT_TRUE(result.entries[2].refused);
    EXPECT_THAT(r.runs[2], ElementsAre(10));
    runners none{{0, 0}};
    EXPECT_EQ(run(none).winner, 0U);
}

TEST(race, repetitions_have_a_bound) {
    runners r{{9, 8, 7, 6, 5, 4, 3, 2, 1}};
    race_options options;
    options.most_repeats = 15;
    const race_result result = run(r, options);
    EXPECT_EQ(result.winner, 8U);
    EXPECT_THAT(r.runs[8], ElementsAre(10, 15));
}

TEST(race, out_of_time_the_last_whole_round_decides) {
    runners r{{50, 40, 30, 20, 10, 60, 70, 80}};
    int calls = 0;
    race_options options;
    options.out_of_time = [&] { return ++calls > 9; };  // in the second round
    race_result result = run(r, options);
    EXPECT_FALSE(result.complete);
    EXPECT_EQ(result.winner, 4U);
    calls = 100;
    runners first_round{{50, 40, 30}};
    result = run(first_round, options);
    EXPECT_EQ(result.winner, 0U) << "one was measured";
    EXPECT_THAT(first_round.runs[1], ElementsAre());
}

TEST(candidates, begin_with_the_cost_models_are_within_bounds_and_each_is_there_once) {
    for (const tuned_job job : {tuned_job::dispatch, tuned_job::combine}) {
        for (const std::int32_t stages : {0, 2, 15, 48}) {
            for (const auto& list : {exchange_candidates(job, stages, 128), local_candidates(job, stages, 128)}) {
                ASSERT_FALSE(list.empty());
                EXPECT_EQ(list.front(), jit::knobs{});
                EXPECT_LE(list.size(), 60U);
                for (std::size_t i = 0; i < list.size(); ++i) {
                    EXPECT_EQ(std::count(list.begin(), list.end(), list[i]), 1) << jit::describe(list[i]);
                    for (const jit::knob_info& k : jit::knob_infos()) {
                        const std::int32_t value = list[i].*k.field;
                        EXPECT_TRUE(value == 0 || (value >= k.least && value <= k.most && value % k.step == 0))
                            << k.name << " " << value;
                    }
                    EXPECT_EQ(list[i].combine_threads == 128 || list[i].gather_threads == 128, false)
                        << "the cost model's own";
                }
            }
        }
    }
    EXPECT_EQ(local_candidates(tuned_job::dispatch, 0, 128).size(), 1U) << "no bulk copies, no ring";
}

}  // namespace
}  // namespace epjit::tools
