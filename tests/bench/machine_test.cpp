// SPDX-License-Identifier: Apache-2.0
// The ranks of the bench on two fake GPUs and a stub NCCL: threads, gates, rates, graphs and the baseline's own steps.
// What a fake driver cannot show is a time: every pair of its events is 1500 us apart.
#include "tools/bench/machine.hpp"

#include "epjit/error.hpp"
#include "host/runtime/runtime_state.hpp"
#include "tests/bench/fake_gpus.hpp"
#include "tools/bench/baseline.hpp"
#include "tools/bench/host_side.hpp"
#include "tools/bench/ranks_suite.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>

namespace epjit::tools {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST_F(two_gpus, every_repetition_of_every_rank_is_timed_after_the_warm_up) {
    bench_machine machine(rt, 0);
    ASSERT_EQ(machine.num_ranks(), 2);
    std::atomic<int> calls{0};
    const auto us = machine.time_all({7, 60}, [&](bench_rank& me, int r) {
        EXPECT_EQ(&me, &machine.rank(r));
        ++calls;
    });
    EXPECT_EQ(calls, 2 * 67);
    EXPECT_THAT(us, Each(SizeIs(60)));
    EXPECT_THAT(us[0], Each(1500.0));
}

TEST_F(two_gpus, rates_come_from_the_copies_and_the_probes) {
    bench_machine machine(rt, 2);
    const machine_rates rates = machine.measure({1, 3});
    EXPECT_DOUBLE_EQ(rates.copy_gbps, 2.0 * bench_copy_bytes / 1500 * 1e-3);
    EXPECT_DOUBLE_EQ(rates.peer_gbps, 1.0 * bench_copy_bytes / 1500 * 1e-3);
    EXPECT_DOUBLE_EQ(rates.launch_us, 1500);
    EXPECT_DOUBLE_EQ(rates.flag_us, 2);
    bench_report report;
    add_rates(report, rates);
    EXPECT_EQ(report.rates.at("valid"), 0);
}

TEST_F(two_gpus, machines_that_cannot_be_measured_are_refused_with_the_reason) {
    EXPECT_THROW(bench_machine(rt, 3), config_error);
    setenv("FAKE_CUDA_NO_PEERS", "1", 1);
    try {
        bench_machine machine(rt, 2);
        FAIL() << "no error";
    } catch (const unsupported_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("GPU 0 cannot reach the memory of GPU 1"));
    }
    unsetenv("FAKE_CUDA_NO_PEERS");
    setenv("FAKE_CUDA_DEVICES", "1", 1);
    runtime other(with_fakes());
    try {
        bench_machine machine(other, 0);
        FAIL() << "no error";
    } catch (const unsupported_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("this machine has 1 GPU:"));
        EXPECT_THAT(e.remedy(), HasSubstr("--suite route"));
    }
}

TEST_F(two_gpus, the_baseline_makes_its_steps_and_its_launches_are_counted) {
    bench_machine machine(rt, 0);
    bench_shape shape;
    shape.tokens = 16;
    shape.hidden = 64;
    shape.experts = 8;
    shape.topk = 2;
    const bench_routing routing(shape, 2);
    const repeats n{1, 4};
    job_times plan_and_dispatch, combine;
    for (job_times* t : {&plan_and_dispatch, &combine}) {
        *t = {std::vector<std::vector<double>>(2), std::vector<std::vector<double>>(2), 0};
    }
    machine.team().run([&](int r) {
        nccl_baseline layer(machine.rank(r), r, shape, routing, rt);
        time_job(
            machine, r, n, 0,
            [&] {
                layer.plan(0);
                layer.dispatch();
            },
            plan_and_dispatch);
        // The fake driver records one stream at a time: one rank cannot, so none does, and none waits for it.
        time_job(
            machine, r, n, 2, [&] { layer.combine(); }, combine);
        machine.team().meet();
    });
    EXPECT_THAT(plan_and_dispatch.us, Each(SizeIs(4)));
    EXPECT_EQ(plan_and_dispatch.launches, 4u) << "two plans, two permutes";
    EXPECT_EQ(combine.launches, 2u);
    EXPECT_THAT(combine.us, Each(SizeIs(4)));
    EXPECT_THAT(combine.kernel_us, Each(SizeIs(0)));
}

TEST_F(two_gpus, the_host_side_of_every_call_has_its_launches_and_its_own_time) {
    watch_driver(rt);
    bench_machine machine(rt, 0);
    bench_shape shape;
    shape.tokens = 16;
    shape.hidden = 64;
    shape.experts = 8;
    shape.topk = 2;
    bench_report report;
    add_host_rows(machine, shape, exchange_kind::lsa, report);
    ASSERT_EQ(report.rows.size(), 3U);
    for (const bench_row& row : report.rows) {
        EXPECT_GT(*row.us, 0) << row.name;
        EXPECT_GE(*row.launches, 1U) << row.name;
        EXPECT_LE(*row.launches, 2U) << row.name;
    }
    EXPECT_EQ(report.rows[1].launches, 1U) << "a dispatch through windows is one launch";
}

TEST(host_side, what_is_inside_the_driver_is_not_the_calls_own) {
    setenv("FAKE_CUDA_DEVICES", "1", 1);
    runtime rt(with_fakes());
    watch_driver(rt);
    watch_driver(rt);  // once more changes nothing
    const auto driver = rt.state().driver();
    int before = 0;
    const host_cost cost = cost_of(
        5, [&](int) { ++before; },
        [&] {
            int devices = 0;
            driver->check(driver->device_count(&devices), "cuDeviceGetCount");
            EXPECT_EQ(devices, 1);
        });
    EXPECT_EQ(before, 5);
    EXPECT_GT(cost.driver_us, 0);
    EXPECT_GE(cost.own_us, 0);
}

TEST_F(two_gpus, a_graph_is_taken_only_where_every_rank_has_one) {
    bench_machine machine(rt, 0);
    std::atomic<int> with{0}, without{0};
    machine.team().run([&](int r) {
        const host::gpu_graph none = capture_together(machine, r, [&] {
            if (r == 1) {
                throw cuda_error("cannot be captured", 900);
            }
        });
        without += none ? 0 : 1;
        // One after the other: the fake driver records one stream at a time.
        host::gpu_graph graph;
        for (int turn = 0; turn < 2; ++turn) {
            machine.team().meet();
            if (turn == r) {
                host::stream_capture capture(machine.rank(r).context, machine.rank(r).stream.get());
                graph = capture.end();
            }
        }
        with += machine.team().all(static_cast<bool>(graph)) ? 1 : 0;
    });
    EXPECT_EQ(without, 2);
    EXPECT_EQ(with, 2);
}

}  // namespace
}  // namespace epjit::tools
