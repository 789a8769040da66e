// SPDX-License-Identifier: Apache-2.0
// Real ranks as far as no GPU is needed: which process of a launcher this is, and one result from what the ranks
// report.
#include "tools/run/ranks.hpp"

#include "epjit/error.hpp"
#include "tools/run/launcher.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace epjit {
namespace {

using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

constexpr const char* launcher_variables[] = {
    "RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"};

class launcher : public testing::Test {
   protected:
    launcher() { clear(); }
    ~launcher() override { clear(); }
    static void clear() {
        for (const char* name : launcher_variables) {
            unsetenv(name);
        }
    }
    static std::string failure_with(const std::vector<std::pair<const char*, const char*>>& variables) {
        clear();
        for (const auto& [name, value] : variables) {
            setenv(name, value, 1);
        }
        try {
            tools::find_launcher();
        } catch (const config_error& e) {
            return e.what();
        }
        return "no error";
    }
};

TEST_F(launcher, is_found_by_its_variables) {
    EXPECT_FALSE(tools::find_launcher());
    for (const auto& [rank, size] : {std::pair{"RANK", "WORLD_SIZE"},
                                     {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                     {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"}}) {
        clear();
        setenv(rank, "3", 1);
        setenv(size, "4", 1);
        const auto place = tools::find_launcher();
        ASSERT_TRUE(place) << size;
        EXPECT_EQ(place->rank, 3);
        EXPECT_EQ(place->size, 4);
        EXPECT_EQ(place->variable, size);
    }
}

TEST_F(launcher, one_process_is_none) {
    setenv("RANK", "0", 1);
    setenv("WORLD_SIZE", "1", 1);
    EXPECT_FALSE(tools::find_launcher());
    setenv("WORLD_SIZE", "", 1);
    EXPECT_FALSE(tools::find_launcher());
}

TEST_F(launcher, odd_variables_are_named_with_their_value) {
    EXPECT_THAT(failure_with({{"WORLD_SIZE", "two"}, {"RANK", "0"}}), HasSubstr("WORLD_SIZE is 'two'"));
    EXPECT_THAT(failure_with({{"WORLD_SIZE", "2"}, {"RANK", "2"}}),
                HasSubstr("RANK is '2', expected a whole number of 0 to 1"));
    EXPECT_THAT(failure_with({{"WORLD_SIZE", "2"}}), HasSubstr("RANK does not say which"));
    EXPECT_THAT(failure_with({{"OMPI_COMM_WORLD_SIZE", "-1"}}), HasSubstr("OMPI_COMM_WORLD_SIZE is '-1'"));
}

tools::run_result result_of(int rank) {
    tools::run_result r;
    r.exchange = exchange_kind::sendrecv;
    r.checked_rows = 100;
    r.mismatched_rows = rank == 1 ? 2 : 0;
    r.first_mismatch = rank == 1 ? "row 7" : "";
    r.max_error = 0.5 * rank;
    r.plan_us = 10 + rank;
    r.dispatch_us = 30 - rank;
    r.combine_us = 5;
    r.rows = 40;
    r.allocations = 3;
    r.host_waits = 1;
    r.status.bad_ids = 4;
    r.launches = {{"plan_kernel", 2}, {rank == 0 ? "only_first" : "only_second", 1}};
    return r;
}

TEST(outcomes, of_all_ranks_become_one_result) {
    std::vector<tools::rank_outcome> ranks;
    for (int rank = 0; rank < 2; ++rank) {
        ranks.push_back(tools::outcome_of([&] { return result_of(rank); }));
    }
    const tools::run_result r = tools::merge_outcomes(ranks);
    EXPECT_FALSE(r.ok);
    EXPECT_EQ(r.exchange, exchange_kind::sendrecv);
    EXPECT_EQ(r.checked_rows, 200u);
    EXPECT_EQ(r.mismatched_rows, 2u);
    EXPECT_EQ(r.first_mismatch, "row 7");
    EXPECT_EQ(r.max_error, 0.5);
    EXPECT_EQ(r.plan_us, 11);
    EXPECT_EQ(r.dispatch_us, 30);
    EXPECT_EQ(r.combine_us, 5);
    EXPECT_EQ(r.rows, 80u);
    EXPECT_EQ(r.allocations, 6u);
    EXPECT_EQ(r.host_waits, 2u);
    EXPECT_EQ(r.status.bad_ids, 4u) << "each rank knows all of them";
    EXPECT_THAT(r.launches,
                UnorderedElementsAre(Pair("plan_kernel", 4u), Pair("only_first", 1u), Pair("only_second", 1u)));
}

TEST(outcomes, the_error_that_started_it_is_told_with_its_rank) {
    std::vector<tools::rank_outcome> ranks{
        tools::outcome_of([]() -> tools::run_result { throw timeout_error("waited for rank 1", "look there"); }),
        tools::outcome_of([]() -> tools::run_result { throw capacity_error("3 rows did not fit", "raise it"); }),
        tools::outcome_of([] { return result_of(2); })};
    try {
        tools::merge_outcomes(ranks);
        FAIL() << "no error";
    } catch (const error& e) {
        EXPECT_EQ(e.kind(), error_kind::capacity);
        EXPECT_EQ(e.message(), "rank 1: 3 rows did not fit");
        EXPECT_EQ(e.remedy(), "raise it");
    }
    ranks.erase(ranks.begin() + 1);
    try {
        tools::merge_outcomes(ranks);
        FAIL() << "no error";
    } catch (const error& e) {
        EXPECT_EQ(e.kind(), error_kind::timeout);
        EXPECT_EQ(e.message(), "rank 0: waited for rank 1");
    }
}

TEST(outcomes, long_texts_and_many_kernels_are_cut) {
    const tools::rank_outcome outcome = tools::outcome_of([] {
        tools::run_result r = result_of(0);
        r.first_mismatch = std::string(5000, 'x');
        r.launches.assign(100, {std::string(500, 'k'), 1});
        return r;
    });
    const tools::run_result r = tools::merge_outcomes({&outcome, 1});
    EXPECT_LT(r.first_mismatch.size(), 1000u);
    ASSERT_EQ(r.launches.size(), 1u);
    EXPECT_LT(r.launches[0].first.size(), 100u);
    EXPECT_EQ(tools::outcome_of([]() -> tools::run_result { throw std::bad_alloc(); }).kind,
              static_cast<int>(error_kind::internal));
}

}  // namespace
}  // namespace epjit
