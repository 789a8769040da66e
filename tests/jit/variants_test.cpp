// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/variants.hpp"

#include "epjit/error.hpp"
#include "exchange/dispatch_layout.cuh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace epjit::jit {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr target_arch hopper{90, 'a'};
constexpr target_arch ampere{80, 0};
constexpr target_arch blackwell_workstation{120, 'a'};

variant_spec bf16_rows(target_arch arch, int hidden, int ranks = 1) {
    return scatter_spec(arch, exchange_kind::loopback, ranks, hidden, 4, dtype::bf16, dtype::bf16, scale_type::none);
}

TEST(specs, zero_what_does_not_matter_to_the_kind) {
    const auto plan = plan_spec(hopper, 256, 288, 8, 8, true);
    EXPECT_EQ(plan.hidden, 0);
    EXPECT_EQ(plan.stages, 0);
    EXPECT_EQ(plan.exchange, exchange_kind::automatic);
    const auto rows = bf16_rows(hopper, 7168);
    EXPECT_EQ(rows.kind, kernel_kind::permute_dispatch);
    EXPECT_EQ(rows.exchange, exchange_kind::automatic);
    EXPECT_EQ(rows.num_experts, 0);
    EXPECT_EQ(rows.num_slots, 0);
    const auto combine = gather_spec(hopper, exchange_kind::loopback, 4, 7168, 8, dtype::f32);
    EXPECT_EQ(combine.kind, kernel_kind::unpermute_combine);
    EXPECT_EQ(combine.num_experts, 0);
    const auto gradient = weight_gradient_spec(hopper, 4, 7168, 8, dtype::f32);
    EXPECT_EQ(gradient.kind, kernel_kind::weight_gradient);
    EXPECT_EQ(gradient.exchange, exchange_kind::automatic) << "one program for every exchange";
}

TEST(specs, of_rows_are_shared_by_runs_of_up_to_8_32_and_64_ranks) {
    const auto combine = [](int ranks) {
        return gather_spec(hopper, exchange_kind::loopback, ranks, 7168, 8, dtype::bf16);
    };
    EXPECT_EQ(combine(1), combine(8)) << "unpermute is combine of one rank";
    EXPECT_EQ(bf16_rows(hopper, 7168, 1), bf16_rows(hopper, 7168, 8));
    EXPECT_NE(combine(8), combine(9));
    EXPECT_EQ(combine(9), combine(32));
    EXPECT_NE(combine(32), combine(33));
    EXPECT_EQ(combine(33), combine(64));
    EXPECT_NE(plan_spec(hopper, 64, 64, 1, 8, false), plan_spec(hopper, 64, 64, 8, 8, false));
}

TEST(specs, refuse_what_is_out_of_bounds_with_the_value_and_the_bounds) {
    EXPECT_THAT([] { plan_spec(hopper, 2049, 2049, 8, 8, false); },
                ThrowsMessage<config_error>(AllOf(HasSubstr("experts is 2049"), HasSubstr("1 to 2048"))));
    EXPECT_THROW(plan_spec(hopper, 0, 0, 8, 1, false), config_error);
    EXPECT_THROW(plan_spec(hopper, 256, 255, 8, 8, false), config_error);
    EXPECT_THROW(plan_spec(hopper, 256, 8193, 8, 8, false), config_error);
    EXPECT_THROW(plan_spec(hopper, 256, 256, 0, 8, false), config_error);
    EXPECT_THROW(plan_spec(hopper, 256, 256, 65, 8, false), config_error);
    EXPECT_THROW(plan_spec(hopper, 256, 256, 8, 33, false), config_error);
    EXPECT_THROW(plan_spec(hopper, 4, 4, 8, 5, false), config_error) << "K > E";
    EXPECT_THROW(bf16_rows(hopper, 0), config_error);
    EXPECT_THROW(bf16_rows(hopper, -8), config_error);
    EXPECT_THROW(bf16_rows(hopper, max_hidden + 1), config_error);
    EXPECT_THROW(bf16_rows(hopper, 64, 65), config_error);
    EXPECT_THROW(gather_spec(hopper, exchange_kind::loopback, 8, 64, 0, dtype::bf16), config_error);
    EXPECT_NO_THROW(plan_spec(hopper, 2048, 8192, 64, 32, true));
    EXPECT_NO_THROW(bf16_rows(hopper, 1));
}

TEST(specs, refuse_types_that_do_not_go_together) {
    const auto rows = [](dtype input, dtype output, scale_type scales) {
        return scatter_spec(hopper, exchange_kind::loopback, 8, 1024, 4, input, output, scales);
    };
    EXPECT_THROW(rows(dtype::bf16, dtype::f32, scale_type::none), config_error);
    EXPECT_THROW(rows(dtype::fp8_e4m3, dtype::bf16, scale_type::f32), config_error);
    EXPECT_THROW(rows(dtype::bf16, dtype::bf16, scale_type::f32), config_error);
    EXPECT_THROW(rows(dtype::bf16, dtype::fp8_e4m3, scale_type::none), config_error);
    EXPECT_NO_THROW(rows(dtype::fp8_e4m3, dtype::fp8_e4m3, scale_type::none)) << "opaque rows pass through";
    EXPECT_NO_THROW(rows(dtype::fp8_e4m3, dtype::fp8_e4m3, scale_type::ue8m0));
    EXPECT_NO_THROW(rows(dtype::f32, dtype::fp8_e4m3, scale_type::f32));
    EXPECT_THROW(gather_spec(hopper, exchange_kind::loopback, 8, 1024, 4, dtype::fp8_e4m3), config_error);
}

TEST(specs, name_the_exchange_that_has_no_kernels) {
    EXPECT_EQ(gather_spec(hopper, exchange_kind::lsa, 8, 64, 4, dtype::bf16),
              gather_spec(hopper, exchange_kind::loopback, 8, 64, 4, dtype::bf16))
        << "real ranks sum with the same program";
    EXPECT_THROW(gather_spec(hopper, exchange_kind::automatic, 8, 64, 4, dtype::bf16), config_error);
    EXPECT_THROW(gather_spec(hopper, exchange_kind::host, 8, 64, 4, dtype::bf16), config_error);
}

TEST(knobs, bulk_stages_fit_shared_memory_and_exist_only_where_bulk_copies_do) {
    EXPECT_EQ(bf16_rows(hopper, 7168).stages, 15);
    EXPECT_EQ(bf16_rows(hopper, 2048).stages, 48);
    EXPECT_EQ(bf16_rows(hopper, 16384).stages, 6);
    EXPECT_EQ(bf16_rows(hopper, 51200).stages, 2);
    EXPECT_EQ(bf16_rows(hopper, 56320).stages, 2);
    EXPECT_EQ(bf16_rows(hopper, 56328).stages, 0) << "rows over 110 KB";
    EXPECT_EQ(bf16_rows(hopper, 2049).stages, 0) << "rows that are no multiple of 16 bytes";
    EXPECT_EQ(bf16_rows(ampere, 7168).stages, 0);
    EXPECT_EQ(bf16_rows(blackwell_workstation, 7168).stages, 6);
    EXPECT_EQ(
        scatter_spec(hopper, exchange_kind::loopback, 1, 7168, 8, dtype::bf16, dtype::fp8_e4m3, scale_type::f32).stages,
        0);
    for (const target_arch arch : {hopper, target_arch{100, 'a'}, target_arch{103, 'a'}, blackwell_workstation}) {
        const int limit = arch.number >= 120 ? 99 * 1024 : 227 * 1024;
        for (int hidden = 8; hidden <= 131072; hidden += 8) {
            EXPECT_LE(bf16_rows(arch, hidden).stages * 2 * hidden, limit - 1024) << hidden;
            EXPECT_LE(bf16_rows(arch, hidden).stages, 48);
        }
    }
}

TEST(knobs, a_combines_teams_fit_the_block_and_its_shared_memory) {
    const auto sums = [](target_arch arch, std::int32_t hidden, dtype type) {
        return exchange_combine_spec(arch, 2, hidden, 8, type);
    };
    const variant_spec wide = sums(hopper, 7168, dtype::bf16);
    EXPECT_EQ(wide.stages, 15);
    EXPECT_EQ(wide.movers, 1);
    EXPECT_EQ(wide.threads, 448) << "16 elements a thread";
    const variant_spec narrow = sums(hopper, 2048, dtype::bf16);
    EXPECT_EQ(narrow.stages, 48);
    EXPECT_EQ(narrow.movers, 3) << "four and the warp that tells would have too few registers";
    EXPECT_EQ(narrow.threads, 128);
    EXPECT_EQ(sums(ampere, 7168, dtype::bf16).stages, 0) << "no bulk copies";
    EXPECT_EQ(sums(hopper, 7169, dtype::bf16).stages, 0) << "rows that are no multiple of 16 bytes";
    EXPECT_EQ(sums(hopper, 16384, dtype::bf16).stages, 0) << "sums that registers do not hold";
    for (const target_arch arch : {hopper, blackwell_workstation}) {
        const std::int32_t limit = arch == hopper ? 227 * 1024 : 99 * 1024;
        for (std::int32_t hidden = 8; hidden <= 8192; hidden += 8) {
            for (const dtype type : {dtype::bf16, dtype::f32}) {
                const variant_spec s = sums(arch, hidden, type);
                if (s.stages == 0) {
                    continue;
                }
                templates::gather_config c{};
                c.hidden = hidden;
                c.type = static_cast<templates::element>(type);
                c.threads = s.threads;
                c.stages = s.stages;
                c.teams = s.movers;
                EXPECT_LE(templates::combine_shared_bytes(c), limit - 1024) << hidden;
                EXPECT_LE(templates::combine_threads(c), 768) << hidden;
                EXPECT_GE(templates::combine_team_of(c).stages, 4) << hidden;
                EXPECT_GE(16 * s.threads, hidden);
            }
        }
    }
}

TEST(knobs, threads_are_whole_warps_that_divide_the_row_well) {
    EXPECT_EQ(bf16_rows(hopper, 7168).threads, 224);
    EXPECT_EQ(bf16_rows(hopper, 2048).threads, 256);
    EXPECT_EQ(bf16_rows(hopper, 4096).threads, 256);
    EXPECT_EQ(bf16_rows(hopper, 1).threads, 32);
    for (int hidden = 1; hidden < 9000; ++hidden) {
        const int threads = bf16_rows(hopper, hidden).threads;
        const int vectors = (2 * hidden + 15) / 16;
        EXPECT_EQ(threads % 32, 0);
        EXPECT_GE(threads, 32);
        EXPECT_LE(threads, 256);
        const auto lanes = [vectors](int t) { return (vectors + t - 1) / t * t; };
        for (int other = 32; other <= 256; other += 32) {
            EXPECT_LE(lanes(threads), lanes(other)) << "hidden " << hidden << ", " << other << " threads idle less";
        }
    }
}

model_shape test_model(bool fp8, dtype type = dtype::bf16) {
    model_shape m;
    m.name = "test";
    m.hidden = 2048;
    m.num_experts = 128;
    m.topk = 8;
    m.token_type = type;
    m.fp8_dispatch = fp8;
    return m;
}

std::vector<kernel_kind> kinds(const std::vector<variant_spec>& list) {
    std::vector<kernel_kind> found;
    for (const auto& spec : list) {
        found.push_back(spec.kind);
    }
    return found;
}

TEST(variants, the_base_set_of_a_model_is_small_and_complete) {
    using enum kernel_kind;
    const auto list = list_variants({test_model(false), {8}, {hopper}, variant_set::base});
    EXPECT_THAT(kinds(list), testing::ElementsAre(plan, exchange_plan, gathered_plan, exchange_helpers,
                                                  exchange_dispatch, low_latency_dispatch, permute_dispatch,
                                                  unpermute_combine, exchange_combine, low_latency_combine));
    const auto two = list_variants({test_model(false), {1, 8}, {hopper}, variant_set::base});
    EXPECT_THAT(kinds(two), testing::ElementsAre(plan, permute_dispatch, unpermute_combine, plan, exchange_plan,
                                                 gathered_plan, exchange_helpers, exchange_dispatch,
                                                 low_latency_dispatch, exchange_combine, low_latency_combine));
    const auto fp8 = list_variants({test_model(true), {8}, {hopper}, variant_set::base});
    EXPECT_THAT(kinds(fp8),
                testing::ElementsAre(plan, exchange_plan, gathered_plan, exchange_helpers, exchange_dispatch,
                                     low_latency_dispatch, permute_dispatch, permute_dispatch, exchange_dispatch,
                                     low_latency_dispatch, permute_dispatch, unpermute_combine, exchange_combine,
                                     low_latency_combine));
}

TEST(variants, are_listed_once_each_in_a_stable_order) {
    for (const auto set : {variant_set::base, variant_set::all}) {
        const variant_request request{test_model(true), {8, 1, 8, 2}, {hopper, ampere, hopper}, set};
        const auto list = list_variants(request);
        EXPECT_EQ(std::set<variant_spec>(list.begin(), list.end()).size(), list.size());
        EXPECT_EQ(list, list_variants(request));
    }
}

TEST(variants, all_holds_base) {
    const auto base = list_variants({test_model(true), {4}, {hopper}, variant_set::base});
    const auto all = list_variants({test_model(true), {4}, {hopper}, variant_set::all});
    for (const auto& spec : base) {
        EXPECT_THAT(all, testing::Contains(spec)) << describe(spec);
    }
    EXPECT_TRUE(std::any_of(all.begin(), all.end(), [](const variant_spec& s) { return s.sparse; }));
}

TEST(variants, rows_go_straight_to_their_places_only_where_outputs_are_lent) {
    const auto is_direct = [](const variant_spec& s) { return s.kind == kernel_kind::direct_dispatch; };
    const auto all = list_variants({test_model(true), {4}, {hopper}, variant_set::all});
    const auto base = list_variants({test_model(true), {4}, {hopper}, variant_set::base});
    EXPECT_TRUE(std::any_of(all.begin(), all.end(), is_direct));
    EXPECT_TRUE(std::none_of(base.begin(), base.end(), is_direct));
    run_request run{.hidden = 2048, .num_experts = 128, .num_slots = 128, .topk = 8, .num_ranks = 4, .arch = hopper};
    run.exchange = exchange_kind::lsa;
    const auto without = run_variants(run);
    run.windows = true;
    const auto with = run_variants(run);
    ASSERT_EQ(with.size(), without.size() + 1);
    const auto direct = std::find_if(with.begin(), with.end(), is_direct);
    ASSERT_NE(direct, with.end());
    EXPECT_THAT(all, testing::Contains(*direct)) << describe(*direct);
    run.hidden = 7;  // bulk copies cannot take such rows
    const auto odd = run_variants(run);
    EXPECT_TRUE(std::none_of(odd.begin(), odd.end(), is_direct));
    run.hidden = 2048;
    run.exchange = exchange_kind::sendrecv;
    const auto other = run_variants(run);
    EXPECT_TRUE(std::none_of(other.begin(), other.end(), is_direct));
}

TEST(variants, host_needs_none) {
    run_request run{.hidden = 64, .num_experts = 8, .num_slots = 8, .topk = 2, .num_ranks = 8, .arch = hopper};
    run.exchange = exchange_kind::host;
    EXPECT_TRUE(run_variants(run).empty());
}

}  // namespace
}  // namespace epjit::jit
