// SPDX-License-Identifier: Apache-2.0
#include "host/exchange/backend.hpp"
#include "host/ranks/transport.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace epjit::host {
namespace {

constexpr std::int64_t mib = std::int64_t{1} << 20;

resolved_config prefill(std::int32_t ranks, std::int32_t tokens) {
    resolved_config c;
    c.config.kind = exchange_kind::lsa;
    c.config.hidden = 7168;
    c.config.num_experts = 256;
    c.config.topk = 8;
    c.config.max_tokens_per_rank = tokens;
    c.num_ranks = ranks;
    c.placement.num_slots = 256;
    return c;
}

TEST(lsa_workspace, whole_calls_of_8_ranks_and_8192_tokens_take_less_than_600_mib) {
    EXPECT_LT(lsa_window_bytes(prefill(8, 8192)), 600 * mib);
    EXPECT_EQ(shape_travel(prefill(8, 8192)).staged_lines, 4160) << "half of them, and room for a chunk";
}

TEST(lsa_workspace, calls_that_fit_are_one_window) {
    EXPECT_EQ(shape_travel(prefill(2, 8192)).staged_lines, 8192);
    EXPECT_EQ(shape_travel(prefill(8, 1)).staged_lines, 1);
    EXPECT_EQ(shape_travel(prefill(8, 0)).staged_lines, 1);
}

TEST(lsa_workspace, no_call_takes_more_than_two_windows_unless_a_bound_is_given) {
    for (const std::int32_t tokens : {8192, 8191, 4097, 130, 65}) {
        // Whatever chunk a window starts with, up to 64 tokens.
        const std::int32_t staged = shape_travel(prefill(64, tokens)).staged_lines;
        EXPECT_LE(staged, tokens);
        EXPECT_TRUE(staged == tokens || (staged - 63) * 2 >= tokens) << staged << " of " << tokens;
    }
}

TEST(lsa_workspace, is_bounded_by_the_callers_bytes_down_to_a_token_of_every_rank) {
    resolved_config c = prefill(8, 8192);
    c.config.staging_bytes = std::int64_t{8} * 100 * 7168 * 2;
    EXPECT_EQ(shape_travel(c).staged_lines, 100);
    EXPECT_LT(lsa_window_bytes(c), c.config.staging_bytes + 32 * mib);
    c.config.staging_bytes = 1;
    EXPECT_EQ(shape_travel(c).staged_lines, 1);
    // A token's rows of all its experts come back at once where they are summed by row.
    EXPECT_GE(shape_travel(c).region(travel_area::partials), std::int64_t{8} * 7168 * 2);
    c.config.staging_bytes = std::int64_t{1} << 50;
    EXPECT_EQ(shape_travel(c).staged_lines, 8192);
}

TEST(lsa_workspace, says_how_many_launches_a_call_takes) {
    resolved_config c = prefill(8, 8192);
    EXPECT_EQ(lsa_launches(c, 8192), 2);
    EXPECT_EQ(lsa_launches(c, 4160), 1);
    EXPECT_EQ(lsa_launches(c, 0), 1);
    c.config.staging_bytes = std::int64_t{8} * 100 * 7168 * 2;
    EXPECT_EQ(lsa_launches(c, 101), 2);
    EXPECT_EQ(lsa_launches(c, 1000), 10);
}

TEST(lsa_workspace, counts_scales_and_the_longer_of_the_two_rows) {
    resolved_config c = prefill(8, 8192);
    c.config.staging_bytes = std::int64_t{8} * 100 * (7168 + 56 * 4);
    c.config.input_type = c.config.dispatch_type = dtype::fp8_e4m3;
    c.config.scales = scale_type::f32;
    EXPECT_EQ(shape_travel(c).staged_lines, 100 * (7168 + 56 * 4) / (7168 * 2)) << "partial sums are longer";
    c.config.input_type = dtype::f32;
    EXPECT_EQ(shape_travel(c).staged_lines, 100 * (7168 + 56 * 4) / (7168 * 4 + 56 * 4));
}

TEST(lsa_workspace, of_halves_holds_all_tokens_once) {
    resolved_config c = prefill(8, 8192);
    c.config.halves = true;
    EXPECT_EQ(shape_travel(c).staged_lines, 8192);
    EXPECT_LT(lsa_window_bytes(c), 930 * mib);
    c.config.lanes = 2;
    EXPECT_GT(lsa_window_bytes(c), 1790 * mib);
}

TEST(lsa_workspace, other_exchanges_hold_what_max_tokens_per_rank_says) {
    for (const exchange_kind kind : {exchange_kind::sendrecv, exchange_kind::dense, exchange_kind::hybrid}) {
        resolved_config c = prefill(8, 8192);
        c.config.kind = kind;
        c.config.staging_bytes = 1;
        EXPECT_EQ(shape_travel(c).staged_lines, 8192);
    }
}

}  // namespace
}  // namespace epjit::host
