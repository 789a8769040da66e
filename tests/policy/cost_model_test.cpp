// SPDX-License-Identifier: Apache-2.0
// The cost model against what was measured on two H200s over NVLink, and its formulas worked out by hand.
#include "host/dispatcher/cost_model.hpp"

#include "host/dispatcher/window_way.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epjit::host {
namespace {

const link_rates rates;

/// `predicted` within `percent` of `measured`.
testing::AssertionResult within(double predicted, double measured, double percent) {
    if (std::abs(predicted - measured) <= measured * percent / 100) {
        return testing::AssertionSuccess();
    }
    return testing::AssertionFailure() << predicted << " is not within " << percent << " % of " << measured;
}

/// 4096 tokens a rank, H 7168, bf16, K 8: the job of the measurements.
workload measured_job(std::int32_t ranks = 2, std::int32_t hosts = 1) {
    workload w;
    w.ranks = ranks;
    w.hosts = hosts;
    w.topk = 8;
    w.tokens = 4096;
    w.dispatch_row_bytes = w.combine_row_bytes = 14336;
    return w;
}

TEST(cost_model, distinct_ranks_of_a_token) {
    EXPECT_DOUBLE_EQ(expected_distinct(1, 8), 1);
    EXPECT_DOUBLE_EQ(expected_distinct(8, 1), 1);
    EXPECT_NEAR(expected_distinct(2, 8), 2 * (1 - 1 / 256.0), 1e-12);
    EXPECT_NEAR(expected_distinct(8, 8), 5.2511, 1e-4);
    EXPECT_NEAR(expected_distinct(256, 8), 7.8915, 1e-4);
}

TEST(cost_model, bytes_of_the_measured_job) {
    const prediction lsa = predict(exchange_kind::lsa, crossing::once_per_rank, measured_job(), rates);
    EXPECT_TRUE(within(lsa.dispatch.nvlink_bytes, 58.7e6, 1));
    EXPECT_EQ(lsa.dispatch.network_bytes, 0);
    EXPECT_EQ(lsa.dispatch.wasted_bytes, 0);
    // 117 MB read and 470 MB written to expand; before that the rows are read once to be sent and written once.
    EXPECT_TRUE(within(lsa.dispatch.local_bytes, 117e6 + 470e6 + 2 * 58.7e6, 1));
    EXPECT_TRUE(within(floor_us(measured_job(), rates), 150, 1));
}

TEST(cost_model, times_measured_between_two_gpus) {
    // Sending alone took 169 us, expanding alone 167, both in one kernel 191.
    workload flat = measured_job();
    flat.rows = layout::flat;
    EXPECT_TRUE(within(predict(exchange_kind::lsa, crossing::once_per_rank, flat, rates).dispatch.us, 169, 5));
    EXPECT_TRUE(within((117.4e6 + 469.8e6) / (rates.expand_gbps * 1e3) + rates.launch_us, 167, 5));
    EXPECT_TRUE(
        within(predict(exchange_kind::lsa, crossing::once_per_rank, measured_job(), rates).dispatch.us, 191, 5));
    // Grouped ncclSend and ncclRecv both ways.
    EXPECT_TRUE(within(nccl_us(1e3), 13.6, 1));
    EXPECT_TRUE(within(nccl_us(1.8e6), 25.6, 1));
    EXPECT_TRUE(within(nccl_us(58.7e6), 224, 1));
    EXPECT_GT(nccl_us(1e9), nccl_us(58.7e6));
}

TEST(cost_model, packets_measured_between_two_gpus) {
    // docs/performance.md: kernels of few tokens alone, one behind another.
    struct measured {
        std::int64_t tokens;
        layout rows;
        double dispatch_us, combine_us;
    };
    for (const measured& m : {measured{8, layout::flat, 4.0, 4.4}, measured{8, layout::masked, 4.0, 4.7},
                              measured{128, layout::masked, 10.8, 11.4}}) {
        workload w = measured_job();
        w.tokens = m.tokens;
        w.rows = m.rows;
        const prediction p = predict(exchange_kind::lsa, crossing::as_packets, w, rates);
        EXPECT_TRUE(within(p.dispatch.us, m.dispatch_us, 15)) << m.tokens;
        EXPECT_TRUE(within(p.combine.us, m.combine_us, 15)) << m.tokens;
    }
    // 2.0 MB leave a rank in the dispatch of 128 tokens, 2.1 in the combine.
    workload w = measured_job();
    w.tokens = 128;
    const prediction p = predict(exchange_kind::lsa, crossing::as_packets, w, rates);
    EXPECT_TRUE(within(p.dispatch.nvlink_bytes, 2.0e6, 3));
    EXPECT_TRUE(within(p.combine.nvlink_bytes, 2.1e6, 3));
}

TEST(cost_model, packets_are_offered_where_they_are_asked_for) {
    const auto packets = [](const workload& w) {
        const std::vector<prediction> all = predict_all(w, rates);
        return std::count_if(all.begin(), all.end(),
                             [](const prediction& p) { return p.crossing == crossing::as_packets; });
    };
    workload w = measured_job(8);
    EXPECT_EQ(packets(w), 0);
    w.low_latency = true;
    EXPECT_EQ(packets(w), 1);
    w.hosts = 2;
    EXPECT_EQ(packets(w), 0) << "windows do not reach another host";
    EXPECT_EQ(predict(exchange_kind::lsa, crossing::as_packets, w, rates).us(), 0);
    EXPECT_EQ(predict(exchange_kind::sendrecv, crossing::as_packets, w, rates).us(), 0);
}

TEST(cost_model, a_budget_of_sms_bounds_both_links) {
    workload flat = measured_job();
    flat.rows = layout::flat;
    const auto us = [&](std::int32_t sms) {
        flat.num_sms = sms;
        return predict(exchange_kind::lsa, crossing::once_per_rank, flat, rates).dispatch.us;
    };
    EXPECT_GE(us(1), 58.5e6 / 46e3);
    EXPECT_GT(us(1), us(4));
    EXPECT_GT(us(4), us(32));
    EXPECT_DOUBLE_EQ(us(132), us(0));
}

TEST(cost_model, no_prediction_beats_the_floor) {
    for (const std::int32_t ranks : {2, 4, 8, 16, 72}) {
        for (const std::int64_t tokens : {1, 128, 4096, 65536}) {
            workload w = measured_job(ranks);
            w.tokens = tokens;
            for (const prediction& p : predict_all(w, rates)) {
                EXPECT_GE(p.dispatch.us, floor_us(w, rates)) << ranks << " ranks, " << name(p.exchange);
                EXPECT_GT(p.combine.us, 0);
            }
        }
    }
}

TEST(cost_model, a_row_crosses_once_per_rank_where_that_saves_more_than_the_second_pass_costs) {
    EXPECT_EQ(choose_crossing(exchange_kind::lsa, measured_job(2), rates), crossing::once_per_rank);
    EXPECT_EQ(choose_crossing(exchange_kind::lsa, measured_job(8), rates), crossing::once_per_rank);
    workload many = measured_job(2048);
    many.tokens = 1024;
    EXPECT_EQ(choose_crossing(exchange_kind::lsa, many, rates), crossing::once_per_slot);
    workload decode = measured_job(8);
    decode.tokens = 8;
    EXPECT_EQ(choose_crossing(exchange_kind::lsa, decode, rates), crossing::once_per_slot);
    EXPECT_EQ(choose_crossing(exchange_kind::sendrecv, decode, rates), crossing::once_per_rank);
    // A row for each slot is what flat does not have.
    workload flat = measured_job(64);
    flat.rows = layout::flat;
    EXPECT_EQ(choose_crossing(exchange_kind::lsa, flat, rates), crossing::once_per_rank);
    for (const prediction& p : predict_all(flat, rates)) {
        EXPECT_NE(p.crossing, crossing::once_per_slot);
    }
    const auto bytes = [](std::int32_t ranks, crossing c) {
        return predict(exchange_kind::lsa, c, measured_job(ranks), rates).dispatch.nvlink_bytes;
    };
    // Two ranks: each row once instead of four times. 64 ranks: hardly any difference is left.
    EXPECT_TRUE(within(bytes(2, crossing::once_per_slot), 4 * 58.7e6, 1));
    EXPECT_LT(bytes(2, crossing::once_per_rank), 0.26 * bytes(2, crossing::once_per_slot));
    EXPECT_GT(bytes(64, crossing::once_per_rank), 0.94 * bytes(64, crossing::once_per_slot));
}

TEST(cost_model, hybrid_crosses_the_network_once_per_host) {
    const workload w = measured_job(16, 2);
    const prediction hybrid = predict(exchange_kind::hybrid, crossing::once_per_host, w, rates);
    const prediction sendrecv = predict(exchange_kind::sendrecv, crossing::once_per_rank, w, rates);
    // One other host, wanted by all tokens but one in 256; eight other-host ranks, each wanted with 1 - (15/16)^8.
    EXPECT_TRUE(within(hybrid.dispatch.network_bytes, 58.7e6, 0.1));
    EXPECT_TRUE(within(hybrid.dispatch.wasted_bytes, 58.7e6 / 256, 0.1));
    EXPECT_TRUE(within(sendrecv.dispatch.network_bytes, 58.7e6 * 8 * 0.40327, 0.1));
    EXPECT_LT(hybrid.us(), sendrecv.us());
    // What stays inside hosts: the tokens of each of 2 ranks that share a place, to 7 others.
    EXPECT_TRUE(within(hybrid.dispatch.nvlink_bytes, 58.7e6 * 14 * 0.40327, 0.1));
}

TEST(cost_model, hybrid_sends_every_token_to_every_host) {
    const auto network = [](exchange_kind kind, crossing c, std::int32_t hosts, mode m) {
        workload w = measured_job(8 * hosts, hosts);
        w.mode = m;
        return predict(kind, c, w, rates).dispatch.network_bytes;
    };
    for (const std::int32_t hosts : {2, 8, 256}) {
        for (const mode m : {mode::exact, mode::fixed}) {
            EXPECT_TRUE(
                within(network(exchange_kind::hybrid, crossing::once_per_host, hosts, m), (hosts - 1) * 58.7e6, 0.1));
        }
    }
    EXPECT_LT(network(exchange_kind::sendrecv, crossing::once_per_rank, 256, mode::exact), 8 * 58.7e6);
}

TEST(cost_model, fixed_slots_waste_what_no_row_fills) {
    workload w = measured_job(8);
    w.mode = mode::fixed;
    const prediction fixed = predict(exchange_kind::sendrecv, crossing::once_per_rank, w, rates);
    EXPECT_TRUE(within(fixed.dispatch.nvlink_bytes, 7 * 58.7e6, 0.1));
    EXPECT_TRUE(within(fixed.dispatch.wasted_bytes, 7 * 58.7e6 * (1 - 5.2511 / 8), 0.1));
    EXPECT_EQ(predict(exchange_kind::lsa, crossing::once_per_rank, w, rates).dispatch.wasted_bytes, 0);
    w.mode = mode::exact;
    EXPECT_EQ(predict(exchange_kind::sendrecv, crossing::once_per_rank, w, rates).dispatch.wasted_bytes, 0);
}

TEST(cost_model, a_slower_network_costs_time_and_no_bytes) {
    const workload w = measured_job(64, 8);
    link_rates slow;
    slow.network_gbps = 12.5;
    for (const auto& [kind, c] : {std::pair{exchange_kind::hybrid, crossing::once_per_host},
                                  std::pair{exchange_kind::sendrecv, crossing::once_per_rank},
                                  std::pair{exchange_kind::dense, crossing::to_every_rank}}) {
        const prediction fast = predict(kind, c, w, rates), behind = predict(kind, c, w, slow);
        EXPECT_GT(behind.us(), fast.us()) << name(kind);
        EXPECT_EQ(behind.dispatch.network_bytes, fast.dispatch.network_bytes);
    }
}

TEST(cost_model, the_ends_of_the_range) {
    workload none;
    none.ranks = 0;
    EXPECT_TRUE(predict_all(none, rates).empty());
    workload idle = measured_job(2048, 256);
    idle.tokens = 0;
    for (const prediction& p : predict_all(idle, rates)) {
        EXPECT_EQ(p.dispatch.nvlink_bytes + p.dispatch.network_bytes + p.combine.local_bytes, 0);
        EXPECT_GT(p.us(), 0);
    }
    // One rank: nothing leaves it.
    for (const prediction& p : predict_all(measured_job(1), rates)) {
        EXPECT_EQ(p.dispatch.nvlink_bytes + p.dispatch.network_bytes, 0) << name(p.exchange);
    }
    EXPECT_EQ(predict(exchange_kind::lsa, crossing::once_per_rank, measured_job(16, 2), rates).us(), 0);
    EXPECT_EQ(predict(exchange_kind::host, crossing::once_per_rank, measured_job(), rates).us(), 0);
}

TEST(window_way, on_flat_no_more_bytes_cross_straight_and_a_pass_is_saved) {
    for (const std::int32_t ranks : {2, 8, 64}) {
        for (const std::int64_t tokens : {1, 128, 4096}) {
            workload w = measured_job(ranks);
            w.tokens = tokens;
            w.rows = layout::flat;
            const window_way way = choose_window_way(w, rates, 0);
            EXPECT_TRUE(way.direct) << ranks << " ranks, " << tokens << " tokens";
            EXPECT_FALSE(way.told);
            EXPECT_DOUBLE_EQ(way.straight.nvlink_bytes, way.staged.nvlink_bytes);
            EXPECT_LT(way.straight.local_bytes, way.staged.local_bytes);
            EXPECT_EQ(way.straight.us, predict(exchange_kind::lsa, crossing::once_per_rank, w, rates).dispatch.us);
        }
    }
}

TEST(window_way, of_several_places_a_rank_the_link_decides) {
    const window_way two = choose_window_way(measured_job(2), rates, 0);
    EXPECT_FALSE(two.direct) << "four copies of a row would cross instead of one";
    EXPECT_TRUE(within(two.straight.nvlink_bytes, 4 * 58.7e6, 1));
    EXPECT_EQ(two.staged.us, predict(exchange_kind::lsa, crossing::once_per_rank, measured_job(2), rates).dispatch.us);
    EXPECT_THAT(two.text(), testing::AllOf(testing::StartsWith("once per rank, then expanded: predicted 197"),
                                           testing::HasSubstr("straight to every place 650")));
    workload few = measured_job(2);
    few.tokens = 8;
    EXPECT_TRUE(choose_window_way(few, rates, 0).direct) << "the second pass costs more than the bytes";
    workload many = measured_job(2048);
    many.tokens = 1024;
    EXPECT_TRUE(choose_window_way(many, rates, 0).direct) << "hardly two experts of a token share a rank";
}

TEST(window_way, a_knob_says_otherwise) {
    workload flat = measured_job(2);
    flat.rows = layout::flat;
    const window_way staged = choose_window_way(flat, rates, 1);
    EXPECT_FALSE(staged.direct);
    EXPECT_THAT(staged.text(), testing::HasSubstr("as the knob window_dispatch says; "));
    EXPECT_TRUE(choose_window_way(measured_job(2), rates, 2).direct);
}

TEST(window_way, of_a_staged_call_every_launch_more_costs_its_ends) {
    workload w = measured_job(2);
    const window_way one = choose_window_way(w, rates, 0);
    w.staged_launches = 3;
    const window_way three = choose_window_way(w, rates, 0);
    EXPECT_NEAR(three.staged.us - one.staged.us, 2 * 17, 1e-9);
    EXPECT_EQ(three.straight.us, one.straight.us);
    w.staged_launches = 1000;
    EXPECT_FALSE(one.direct);
    EXPECT_TRUE(choose_window_way(w, rates, 0).direct);
}

TEST(window_way, is_of_ranks_that_reach_each_other) {
    EXPECT_EQ(predict_window_dispatch(true, measured_job(8, 2), rates).us, 0);
    exchange_config c;
    c.hidden = 7168;
    c.topk = 8;
    c.max_tokens_per_rank = 4096;
    c.input_type = c.dispatch_type = dtype::fp8_e4m3;
    c.scales = scale_type::f32;
    const workload w = workload_of(c);
    EXPECT_EQ(w.dispatch_row_bytes, 7168 + 56 * 4);
    EXPECT_EQ(w.combine_row_bytes, 14336);
    EXPECT_EQ(w.tokens, 4096);
}

}  // namespace
}  // namespace epjit::host
