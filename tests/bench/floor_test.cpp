// SPDX-License-Identifier: Apache-2.0
// The arithmetic of floors, and the ranks' threads, without a GPU.
#include "tools/bench/floor.hpp"

#include "tools/bench/baseline.hpp"
#include "tools/bench/layer.hpp"
#include "tools/bench/ranks_suite.hpp"
#include "tools/bench/team.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <stdexcept>

namespace epjit::tools {
namespace {

using ::testing::HasSubstr;

machine_rates rates_of(double peer, double copy, double launch = 2.0, double flag = 2.5) {
    return {peer, copy, launch, flag};
}

TEST(bench_floor, rows_are_counted_once_for_each_rank_that_wants_them) {
    // Two ranks of two experts each: 0, 1 | 2, 3.
    const std::vector<std::vector<std::int64_t>> ids{{0, 1, /**/ 1, 2, /**/ 2, 3}, {3, 0, /**/ -1, 9, /**/ 2, 2}};
    const std::vector<rank_rows> rows = count_rows(ids, 2, 4);
    EXPECT_EQ(rows[0].tokens, 3);
    EXPECT_EQ(rows[0].leaving, 2);   // tokens 1 and 2 go to rank 1
    EXPECT_EQ(rows[0].own, 2);       // tokens 0 and 1 have an expert here
    EXPECT_EQ(rows[0].arriving, 1);  // token 0 of rank 1
    EXPECT_EQ(rows[0].placed, 4);    // 0, 1, 1 of its own and 0 of rank 1
    EXPECT_EQ(rows[1].leaving, 1);
    EXPECT_EQ(rows[1].own, 2);  // tokens 0 and 2; the second mention of 2 does not count, nor do -1 and 9
    EXPECT_EQ(rows[1].arriving, 2);
    EXPECT_EQ(rows[1].placed, 5);
    EXPECT_EQ(output_rows(rows[0], layout::expert_major), 4);
    EXPECT_EQ(output_rows(rows[0], layout::flat), 3);
    EXPECT_EQ(output_rows(rows[1], layout::masked), 5);
}

TEST(bench_floor, the_first_ranks_hold_one_expert_more) {
    const std::vector<std::vector<std::int64_t>> ids{{0, 2, 3, 5, 6}, {}, {}};  // 7 experts on 3 ranks: 0-2, 3-4, 5-6
    const std::vector<rank_rows> rows = count_rows(ids, 1, 7);
    EXPECT_EQ(rows[0].placed, 2);
    EXPECT_EQ(rows[1].placed, 1);
    EXPECT_EQ(rows[2].placed, 2);
    EXPECT_EQ(rows[0].leaving, 3);
    EXPECT_EQ(rows[1].tokens, 0);
}

TEST(bench_floor, bytes_are_those_of_the_rank_with_most) {
    const std::vector<rank_rows> rows{{10, 6, 2, 8, 20}, {10, 2, 6, 9, 50}};
    const operation_bytes placed = bytes_of(rows, layout::expert_major, 100);
    EXPECT_EQ(placed.link, 600u);                   // rank 0 sends 6, rank 1 receives 6
    EXPECT_EQ(placed.local, (10u + 6 + 50) * 100);  // reads its own and what arrives, writes 50
    const operation_bytes flat = bytes_of(rows, layout::flat, 100);
    EXPECT_EQ(flat.local, (10u + 15) * 100);  // what arrives on flat lies in its place
}

TEST(bench_floor, the_job_that_the_goals_were_set_for_has_the_floor_of_the_design) {
    bench_shape s;
    const bench_routing routing(s, 2);
    const operation_bytes bytes =
        bytes_of(routing.rows, layout::expert_major, row_bytes(7168, dtype::bf16, scale_type::none));
    EXPECT_NEAR(static_cast<double>(bytes.link), 58.7e6, 0.6e6);
    EXPECT_NEAR(static_cast<double>(bytes.local), 587e6, 8e6);
    EXPECT_NEAR(floor_of(bytes, rates_of(391, 4100), 1), 150, 1.5);
    // fp8 with scales: 7168 + 56 * 4 bytes a row.
    EXPECT_EQ(row_bytes(7168, dtype::fp8_e4m3, scale_type::f32), 7392);
    EXPECT_EQ(row_bytes(2880, dtype::fp8_e4m3, scale_type::ue8m0), 2880 + 23);
    const operation_bytes fp8 = bytes_of(routing.rows, layout::expert_major, 7392);
    EXPECT_NEAR(floor_of(fp8, rates_of(391, 4100), 1), 77.4, 1);
}

TEST(bench_floor, latency_is_added_once_a_phase_where_bytes_take_less_than_60_us) {
    const machine_rates r = rates_of(400, 4000, 2, 3);
    EXPECT_DOUBLE_EQ(r.t0_us(), 5);
    EXPECT_DOUBLE_EQ(floor_of({40'000'000, 1}, r, 2), 100);
    EXPECT_DOUBLE_EQ(floor_of({4'000'000, 1}, r, 2), 10 + 2 * 5);
    EXPECT_DOUBLE_EQ(floor_of({1, 200'000'000}, r, 1), 50 + 5);
    EXPECT_DOUBLE_EQ(floor_of({0, 0}, r, 2), 10);
    EXPECT_DOUBLE_EQ(floor_of({1, 1}, machine_rates{}, 2), 0) << "no rate, no floor";
}

TEST(bench_floor, a_run_on_a_slower_machine_does_not_count) {
    EXPECT_EQ(rates_too_low(rates_of(391, 4100)), "");
    EXPECT_EQ(rates_too_low(rates_of(372, 3900)), "") << "5 % are tolerated";
    EXPECT_THAT(rates_too_low(rates_of(370, 4100)), HasSubstr("370 GB/s to the peer"));
    EXPECT_THAT(rates_too_low(rates_of(391, 3000)), HasSubstr("3000 GB/s, 4100 are expected"));
    bench_report report;
    add_rates(report, rates_of(100, 4100));
    EXPECT_EQ(report.rates.at("valid"), 0);
    EXPECT_EQ(report.rates.at("peer_copy_gb_per_s"), 100);
    EXPECT_EQ(report.rates.at("t0_us"), 4.5);
    EXPECT_THAT(report.notes.at(0), HasSubstr("not valid"));
}

TEST(bench_floor, medians_are_of_the_slowest_rank_in_each_repetition) {
    EXPECT_DOUBLE_EQ(median_of({3, 1, 2}), 2);
    EXPECT_DOUBLE_EQ(median_of({4, 1, 2, 3}), 2.5);
    EXPECT_DOUBLE_EQ(median_of({}), 0);
    const std::vector<std::vector<double>> us{{1, 9, 1}, {5, 1, 2}};
    EXPECT_DOUBLE_EQ(slowest_median(us), 5);
    EXPECT_THROW(slowest_median(std::vector<std::vector<double>>{{1, 2}, {1}}), std::out_of_range);
}

TEST(bench_routing, ids_are_distinct_in_a_row_differ_by_rank_and_set_and_come_again) {
    bench_shape s;
    s.tokens = 64;
    s.experts = 16;
    for (const char* kind : {"uniform", "zipf"}) {
        s.routing = kind;
        const auto ids = draw_ids(s, 1, 2);
        ASSERT_EQ(ids.size(), 64u * 8);
        for (std::size_t t = 0; t < 64; ++t) {
            const std::set<std::int64_t> row(ids.begin() + t * 8, ids.begin() + t * 8 + 8);
            EXPECT_EQ(row.size(), 8u);
            EXPECT_GE(*row.begin(), 0);
            EXPECT_LT(*row.rbegin(), 16);
        }
        EXPECT_EQ(ids, draw_ids(s, 1, 2));
        EXPECT_NE(ids, draw_ids(s, 0, 2));
        EXPECT_NE(ids, draw_ids(s, 1, 3));
    }
    s.topk = 1;
    const auto zipf = draw_ids(s, 0, 0);
    EXPECT_GT(std::count(zipf.begin(), zipf.end(), 0), 3 * std::count(zipf.begin(), zipf.end(), 15));
}

TEST(bench_routing, capacities_hold_every_set) {
    bench_shape s;
    s.tokens = 8;
    s.experts = 32;
    s.sets = 10;
    s.alignment = 16;
    const bench_routing routing(s, 2);
    ASSERT_EQ(routing.ids.size(), 10u);
    for (const auto& set : routing.ids) {
        const std::vector<rank_rows> rows = count_rows(set, s.topk, s.experts);
        for (int r = 0; r < 2; ++r) {
            std::int64_t padded = 0;
            for (std::int64_t e = 16 * r; e < 16 * r + 16; ++e) {
                std::int64_t n = 0;
                for (const auto& ids : set) {
                    n += std::count(ids.begin(), ids.end(), e);
                }
                padded += (n + 15) / 16 * 16;
            }
            EXPECT_LE(padded, routing.capacity[r]);
            EXPECT_GE(padded, rows[r].placed);
        }
    }
    s.rows = layout::masked;
    EXPECT_EQ(bench_routing(s, 2).capacity[1], 16) << "R x T rows for each slot";
}

TEST(bench_baseline, counts_are_of_rows_for_each_expert_in_the_order_they_travel) {
    // Two ranks of three and two experts: 0 - 2 | 3, 4.
    const std::vector<std::vector<std::int64_t>> ids{{0, 4, /**/ 4, 3}, {3, 1, /**/ 2, 0, /**/ 4, 1}};
    const baseline_counts zero = count_baseline(ids, 5, 0), one = count_baseline(ids, 5, 1);
    EXPECT_THAT(zero.sent, testing::ElementsAre(1, 3));
    EXPECT_THAT(zero.received, testing::ElementsAre(1, 4));
    EXPECT_THAT(zero.arriving_slots, testing::ElementsAre(0, /* from rank 1 */ 0, 1, 1, 2));
    EXPECT_THAT(one.sent, testing::ElementsAre(4, 2));
    EXPECT_THAT(one.received, testing::ElementsAre(3, 2));
    EXPECT_THAT(one.arriving_slots, testing::ElementsAre(0, 1, 1, /* from rank 1 */ 0, 1));
}

TEST(bench_shapes, options_restrict_them_and_equal_ones_are_measured_once) {
    ranks_options o;
    EXPECT_EQ(exchange_shapes(o).size(), 7u);
    EXPECT_EQ(exchange_shapes(o).front().text(), "T=4096 H=7168 K=8 E=256 uniform bf16 expert_major static");
    o.tokens = 512;
    EXPECT_EQ(exchange_shapes(o).size(), 5u) << "three of them differ in tokens only";
    o.model = bench_shape{};
    o.model->hidden = 2048;
    const auto one = exchange_shapes(o);
    ASSERT_EQ(one.size(), 2u) << "uniform and zipf";
    EXPECT_EQ(one[0].hidden, 2048);
    EXPECT_EQ(one[1].routing, "zipf");
    o = {};
    o.num_sms = 16;
    EXPECT_THAT(exchange_shapes(o).front().text(), HasSubstr("sms=16"));

    o = {};
    const auto decode = decode_shapes(o, 2);
    EXPECT_EQ(decode.size(), 12u);
    for (const bench_shape& s : decode) {
        EXPECT_EQ(s.sets, 50);
        EXPECT_EQ(s.mode, mode::fixed);
        EXPECT_TRUE(s.low_latency);
        EXPECT_EQ(s.alignment, s.rows == layout::expert_major ? 16 : 1);
    }
    o.tokens = 100'000;
    EXPECT_EQ(decode_shapes(o, 8).size(), 2u) << "masked would need more memory than there is";
}

TEST(bench_team, ranks_meet_and_agree) {
    rank_team team(4);
    std::atomic<int> before{0}, agreed{0}, refused{0};
    team.run([&](int rank) {
        for (int i = 1; i <= 100; ++i) {
            ++before;
            team.meet();
            EXPECT_EQ(before % 4, 0);
            agreed += team.all(true) ? 1 : 0;
            refused += team.all(rank != 2) ? 0 : 1;
        }
    });
    EXPECT_EQ(before, 400);
    EXPECT_EQ(agreed, 400);
    EXPECT_EQ(refused, 400);
}

TEST(bench_team, one_rank_that_fails_ends_the_others_and_its_error_is_reported) {
    rank_team team(3);
    for (int again = 0; again < 3; ++again) {
        std::atomic<int> passed{0};
        try {
            team.run([&](int rank) {
                team.meet();
                if (rank == 1) {
                    throw std::runtime_error("rank 1 fell");
                }
                team.meet();
                ++passed;
            });
            FAIL() << "no error";
        } catch (const std::runtime_error& e) {
            EXPECT_STREQ(e.what(), "rank 1 fell");
        }
        EXPECT_EQ(passed, 0);
    }
    int ran = 0;
    team.run([&](int rank) {
        team.meet();
        ran += rank == 0 ? 1 : 0;
    });
    EXPECT_EQ(ran, 1) << "the team can be used again";
}

}  // namespace
}  // namespace epjit::tools
