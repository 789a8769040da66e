// SPDX-License-Identifier: Apache-2.0
// Which plans are made of the routing of all ranks, and what their rows take.
#include "epjit/error.hpp"
#include "epjit/jit/variants.hpp"
#include "host/exchange/launch.hpp"
#include "host/ranks/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epjit::host {
namespace {

constexpr auto few = exchange_path::low_latency;
constexpr auto many = exchange_path::high_throughput;

templates::plan_config shape(std::int32_t experts, std::int32_t ranks, std::int32_t topk) {
    return plan_config_of(jit::exchange_plan_spec({90, 'a'}, experts, experts, ranks, topk, false));
}

TEST(plan_source, is_what_the_caller_says) {
    for (const bool windows : {false, true}) {
        for (const exchange_path path : {few, many}) {
            EXPECT_TRUE(is_gathered(plan_source::gathered, windows, path, shape(256, 8, 8), 4096));
            EXPECT_FALSE(is_gathered(plan_source::counts, windows, path, shape(256, 8, 8), 8));
        }
    }
}

TEST(plan_source, automatic_gathers_few_tokens_where_kernels_write_the_peers) {
    EXPECT_TRUE(is_gathered(plan_source::automatic, true, few, shape(256, 2, 8), 128));
    EXPECT_TRUE(is_gathered(plan_source::automatic, true, few, shape(256, 8, 8), 128));
    EXPECT_TRUE(is_gathered(plan_source::automatic, true, few, shape(512, 8, 10), 128));
    EXPECT_FALSE(is_gathered(plan_source::automatic, false, few, shape(256, 2, 8), 128)) << "NCCL moves them";
    EXPECT_FALSE(is_gathered(plan_source::automatic, true, many, shape(256, 2, 8), 128));
    EXPECT_FALSE(is_gathered(plan_source::automatic, true, few, shape(256, 64, 8), 128)) << "too many for one block";
}

TEST(plan_source, rows_are_whole_vectors_of_16_bytes_whatever_the_row) {
    EXPECT_EQ(templates::gathered_bytes(128, 8, true), 16 * (3 + 171));  // six ids and the number of the gathering
    EXPECT_EQ(templates::gathered_bytes(128, 8, false), 48 + 128 * 8 * 2);
    for (const std::int32_t topk : {1, 3, 7, 8, 32}) {
        for (const std::int32_t bound : {1, 5, 128, 1003}) {
            const std::int64_t bytes = templates::gathered_bytes(bound, topk, false);
            EXPECT_EQ(bytes % 16, 0);
            EXPECT_GE(bytes, 48 + 2 * bound * topk);
            EXPECT_LT(bytes, 48 + 2 * bound * topk + 16);
        }
    }
}

TEST(plan_source, few_tokens_are_placed_in_one_round_by_as_many_blocks_as_that_takes) {
    EXPECT_EQ(templates::gathered_blocks(shape(256, 2, 8), 1), 1);
    EXPECT_EQ(templates::gathered_blocks(shape(256, 2, 8), 32), 1);
    EXPECT_EQ(templates::gathered_blocks(shape(256, 2, 8), 33), 2);
    EXPECT_EQ(templates::gathered_blocks(shape(256, 2, 8), 128), 4);
    EXPECT_EQ(templates::gathered_blocks(shape(512, 8, 10), 64), 16) << "32 tokens a round";
    EXPECT_EQ(templates::gathered_blocks(shape(256, 32, 8), 64), 16) << "no more than that";
}

TEST(plan_source, quick_division_is_exact_for_all_that_a_plan_at_once_divides) {
    for (std::int32_t divisor = 1; divisor <= 1500; ++divisor) {
        const templates::quick_divisor by = templates::divide_by(divisor);
        for (std::int32_t n = 0; n <= 32 * divisor; n += 1 + n / 64) {
            ASSERT_EQ(by.of(n), n / divisor) << n << " / " << divisor;
        }
        for (std::int32_t n = divisor; n <= 32 * divisor; n += divisor) {
            ASSERT_EQ(by.of(n - 1), n / divisor - 1) << n - 1 << " / " << divisor;
        }
    }
}

TEST(plan_source, slots_that_do_not_fit_16_bits_are_refused_by_number) {
    try {
        jit::exchange_plan_spec({90, 'a'}, 256, 32768, 8, 8, false);
        FAIL() << "accepted";
    } catch (const config_error& e) {
        EXPECT_THAT(e.what(), testing::HasSubstr("the number of expert slots is 32768"));
    }
}

}  // namespace
}  // namespace epjit::host
