// SPDX-License-Identifier: Apache-2.0
// The suites of real ranks, tested without a GPU: the random layers over threads that meet in the host exchange, and
// the driving of child processes.
#include "epjit/error.hpp"
#include "tests/gpu/environment.hpp"
#include "tests/multi_gpu/fixed_layer.hpp"
#include "tests/multi_gpu/foreign_kernel.hpp"
#include "tests/multi_gpu/ranks.hpp"
#include "tests/multi_gpu/rendezvous.hpp"
#include "tests/multi_gpu/run_request.hpp"
#include "tests/multi_gpu/scripted_ranks.hpp"
#include "tools/run/layer.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>
#include <unistd.h>

namespace epjit::tests {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

job_report on_threads(int ranks, job work, const job_settings& settings,
                      std::chrono::milliseconds limit = std::chrono::seconds(60)) {
    runtime_options options;
    options.cache_path = "";
    options.log_level = 0;
    runtime rt(options);
    auto worlds = make_rendezvous(rt, ranks, limit);
    job_report all;
    std::mutex mutex;
    std::vector<std::thread> threads;
    for (auto& world : worlds) {
        threads.emplace_back([&, w = world.get()] {
            const job_report one = run_job(work, *w, settings);
            const std::lock_guard lock(mutex);
            all.add(one);
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    return all;
}

job_settings small_settings() {
    job_settings s;
    s.exchange = exchange_kind::host;
    s.seed = static_cast<std::uint64_t>(number_from("EPJIT_TEST_SEED", std::random_device{}()));
    s.cases = number_from("EPJIT_TEST_CASES", 60);
    s.only = number_from("EPJIT_GPU_ONLY", -1);
    std::printf("EPJIT_TEST_SEED=%llu\n", static_cast<unsigned long long>(s.seed));
    return s;
}

TEST(property_suite, passes_on_ranks_that_drive_one_each) {
    for (const int ranks : {2, 4}) {
        const job_settings s = small_settings();
        const job_report report = on_threads(ranks, property_job, s);
        EXPECT_THAT(report.failures, ElementsAre());
        EXPECT_GE(report.counts.at("cases"), static_cast<std::uint64_t>(s.cases * ranks));
        EXPECT_GT(report.counts.at("rows"), 1000U);
        EXPECT_GT(report.counts.at("halves"), 0U);
        EXPECT_GT(report.counts.at("lane 1"), 0U);
        EXPECT_GT(report.counts.at("gradients"), 0U);
        EXPECT_GT(report.counts.at("window"), 0U);
        for (const char* what : {"layout flat", "layout masked", "layout expert_major", "mode static", "mode exact"}) {
            EXPECT_TRUE(report.counts.contains(what)) << what;
        }
    }
}

TEST(property_suite, leaves_out_what_it_is_told_to) {
    job_settings s = small_settings();
    s.without = "flat,exact,gradients,halves,lanes,live_plans,sparse,slots,replicas,fp8,drop,per_row,i16,window";
    const job_report report = on_threads(2, property_job, s);
    EXPECT_THAT(report.failures, ElementsAre());
    for (const char* what : {"layout flat", "mode exact", "reduction per_row", "lane 1"}) {
        EXPECT_FALSE(report.counts.contains(what)) << what;
    }
    EXPECT_EQ(report.counts.at("gradients") + report.counts.at("halves") + report.counts.at("dropped") +
                  report.counts.at("window"),
              0U);
}

TEST(property_suite, a_rank_that_leaves_is_reported_by_all) {
    const auto leave = [](rank_world& world, const job_settings& settings, job_report& report) {
        if (world.rank() == 1) {
            throw std::runtime_error("left");
        }
        property_job(world, settings, report);
    };
    const job_report report = on_threads(2, leave, small_settings(), std::chrono::milliseconds(100));
    ASSERT_EQ(report.failures.size(), 2U);
    EXPECT_THAT(report.failures[0] + report.failures[1], testing::AllOf(HasSubstr("left"), HasSubstr("waited 100 ms")));
}

TEST(endurance_suites, pass_on_ranks_that_drive_one_each) {
    job_settings s = small_settings();
    s.iterations = 60;
    const job_report stress = on_threads(2, stress_job, s);
    EXPECT_THAT(stress.failures, ElementsAre());
    EXPECT_EQ(stress.counts.at("layers"), 120U);
    EXPECT_GE(stress.counts.at("checked"), 2U);
    s.iterations = 10;
    const job_report cycles = on_threads(2, create_destroy_job, s);
    EXPECT_THAT(cycles.failures, ElementsAre());
    EXPECT_EQ(cycles.counts.at("cycles"), 20U);
    const job_report tags = on_threads(2, packet_tags_job, s);
    EXPECT_THAT(tags.failures, ElementsAre());
    EXPECT_EQ(tags.counts.at("checked"), 20U);
    const job_report overflow = on_threads(3, overflow_job, s);
    EXPECT_THAT(overflow.failures, ElementsAre());
    EXPECT_EQ(overflow.counts.at("capacity errors"), 3U);
    const job_report hot = on_threads(2, hot_path_job, s);
    EXPECT_THAT(hot.failures, ElementsAre());
    EXPECT_EQ(hot.counts.at("layers"), 80U);
    const job_report graph = on_threads(2, graph_job, s);
    ASSERT_FALSE(graph.failures.empty());
    EXPECT_THAT(graph.failures[0], HasSubstr("host exchange has no graphs"));
}

TEST(long_prompts, pass_on_ranks_that_drive_one_each) {
    job_settings s = small_settings();
    s.iterations = 500;
    for (const int ranks : {1, 2, 3}) {
        const job_report report = on_threads(ranks, long_prompts_job, s);
        EXPECT_THAT(report.failures, ElementsAre()) << ranks;
        EXPECT_GT(report.counts.at("rows"), 2U * 500U);
    }
}

TEST(whole_worlds, run_the_same_jobs_with_all_ranks_in_one_thread) {
    runtime rt;
    job_settings s = small_settings();
    s.cases = 30;
    s.iterations = 20;
    for (const char* name : {"property", "stress", "create_destroy", "overflow", "hot_path"}) {
        const auto world = make_whole_world(rt, communicator::host(rt, 3));
        EXPECT_THAT(run_job(find_job(name), *world, s).failures, ElementsAre()) << name;
    }
    EXPECT_EQ(find_job("nothing"), nullptr);
}

TEST(rendezvous, different_calls_are_an_error_on_every_rank) {
    const auto mixed = [](rank_world& world, const job_settings&, job_report&) {
        const tools::reference::problem p = make_fixed({}, world.ranks(), 5);
        exchange ex = world.make_exchange(tools::config_of(p, exchange_kind::host));
        const auto memory = world.make_memory();
        tools::layer l(ex, *memory, p);
        l.upload();
        l.make_plan();
        l.dispatch();
        if (world.rank() == 0) {
            l.dispatch();
        } else {
            l.run_experts();
            l.combine();
        }
    };
    const job_report report = on_threads(2, mixed, small_settings());
    ASSERT_EQ(report.failures.size(), 2U);
    for (const std::string& text : report.failures) {
        EXPECT_THAT(text, testing::AllOf(HasSubstr("dispatch"), HasSubstr("combine"))) << text;
    }
}

// A wrong row on one rank is reported by that rank, with what repeats it.
TEST(fixed_layers, a_wrong_result_is_told) {
    runtime rt;
    auto worlds = make_rendezvous(rt, 1);
    const tools::reference::problem p = make_fixed({}, 1, 9);
    exchange ex = worlds[0]->make_exchange(tools::config_of(p, exchange_kind::host));
    const auto memory = worlds[0]->make_memory();
    tools::reference::observation seen = tools::run_problem(ex, *memory, p);
    EXPECT_EQ(compare_with_oracle(p, seen), "");
    seen.ranks[0].result[10] ^= std::byte{1};
    EXPECT_THAT(compare_with_oracle(p, seen),
                testing::AllOf(HasSubstr("seed 9"), HasSubstr("combine, rank 0, token 0")));
}

int echo_child(child_io& io) {
    while (const auto line = io.receive()) {
        if (*line == "environment") {
            const char* rank = std::getenv("RANK");
            io.send(rank != nullptr ? rank : "none");
        } else if (*line == "crash") {
            ::raise(SIGKILL);
        } else if (*line == "throw") {
            throw std::runtime_error("a\tb\nc\\d");
        } else if (*line == "report") {
            job_report report;
            report.fail("first\nsecond");
            report.counts["rows"] = 7;
            report.launches["plan_kernel"] = 2;
            send_report(io, report);
        } else {
            io.send("heard " + *line);
        }
    }
    return 5;
}
const register_child echo("echo", echo_child);

TEST(child_process, talks_in_lines_and_has_its_environment) {
    child_process child("echo", {{"RANK", "3"}});
    ASSERT_TRUE(child.send("hello"));
    EXPECT_EQ(child.receive(in_ms(10'000)), "heard hello");
    child.send("environment");
    EXPECT_EQ(child.receive(in_ms(10'000)), "3");
    child.send("report");
    job_report report;
    ASSERT_TRUE(receive_report(child, in_ms(10'000), report));
    EXPECT_THAT(report.failures, ElementsAre("first\nsecond"));
    EXPECT_EQ(report.counts.at("rows"), 7U);
    EXPECT_EQ(report.launches.at("plan_kernel"), 2U);
}

TEST(child_process, its_end_is_seen) {
    child_process crashing("echo", {});
    crashing.send("crash");
    EXPECT_FALSE(crashing.receive(in_ms(10'000)));
    EXPECT_EQ(crashing.wait(in_ms(10'000)).status, 128 + SIGKILL);

    child_process throwing("echo", {});
    throwing.send("throw");
    job_report report;
    EXPECT_FALSE(receive_report(throwing, in_ms(10'000), report));
    EXPECT_THAT(report.failures, ElementsAre("a\tb\nc\\d"));
    EXPECT_EQ(throwing.wait(in_ms(10'000)).status, 1);

    child_process unknown("nobody", {});
    EXPECT_EQ(unknown.wait(in_ms(10'000)).status, 2);
}

TEST(child_process, one_that_is_stopped_is_killed_at_the_deadline) {
    child_process child("echo", {});
    child.send("hello");
    ASSERT_TRUE(child.receive(in_ms(10'000)));
    child.signal(SIGSTOP);
    child.send("hello");
    EXPECT_FALSE(child.receive(in_ms(50)));
    child.signal(SIGCONT);
    EXPECT_EQ(child.receive(in_ms(10'000)), "heard hello");
    child.signal(SIGSTOP);
    const child_process::ending ending = child.wait(in_ms(50));
    EXPECT_FALSE(ending.in_time);
    EXPECT_EQ(ending.status, 128 + SIGKILL);
}

TEST(rank_setup, four_ranks_on_two_gpus_are_two_hosts) {
    const auto value = [](const environment_changes& changes, const std::string& name) -> std::string {
        for (const auto& [key, text] : changes) {
            if (key == name) {
                return text;
            }
        }
        return "none";
    };
    const rank_setup setup{4, true, true, 1000};
    std::string seen;
    for (int rank = 0; rank < 4; ++rank) {
        const environment_changes e = launcher_environment(setup, rank, 12345);
        seen += fmt::format("{} of {} on {} {}, ", value(e, "RANK"), value(e, "WORLD_SIZE"), value(e, "LOCAL_RANK"),
                            value(e, "NCCL_HOSTID"));
    }
    EXPECT_EQ(
        seen,
        "0 of 4 on 0 epjit-host-a, 1 of 4 on 1 epjit-host-a, 2 of 4 on 0 epjit-host-b, 3 of 4 on 1 epjit-host-b, ");
    EXPECT_EQ(value(launcher_environment({2, true, false, 1000}, 1, 7), "NCCL_HOSTID"), "none");
    EXPECT_NE(next_port(), next_port());
}

TEST(rank_setup, settings_travel_through_the_environment) {
    job_settings s;
    s.exchange = exchange_kind::dense;
    s.seed = 0xfedcba9876543210U;
    s.cases = 17;
    s.only = 400'003;
    s.iterations = 9;
    s.without = "flat,fp8";
    for (const auto& [key, text] : settings_environment("graph", s)) {
        setenv(key.c_str(), text.c_str(), 1);
    }
    std::string job_name;
    const job_settings back = settings_from_environment(job_name);
    EXPECT_EQ(job_name, "graph");
    EXPECT_EQ(back.exchange, s.exchange);
    EXPECT_EQ(back.seed, s.seed);
    EXPECT_EQ(back.cases, s.cases);
    EXPECT_EQ(back.only, s.only);
    EXPECT_EQ(back.iterations, s.iterations);
    EXPECT_EQ(back.without, s.without);
}

TEST(rank_setup, ranks_without_a_gpu_fail_with_a_reason_and_end) {
    setenv("EPJIT_CUDA_LIBRARY", "/nowhere/libcuda.so.1", 1);
    setenv("EPJIT_NCCL_LIBRARY", "/nowhere/libnccl.so.2", 1);
    job_settings s;
    s.exchange = exchange_kind::lsa;
    for (const bool processes : {true, false}) {
        const job_report report = run_ranks({2, processes, false, 30'000}, "property", s);
        ASSERT_FALSE(report.failures.empty());
        EXPECT_THAT(report.failures[0], HasSubstr("/nowhere/"));
    }
    unsetenv("EPJIT_CUDA_LIBRARY");
    unsetenv("EPJIT_NCCL_LIBRARY");
}

TEST(scripted_ranks, do_what_they_are_told_and_answer_with_the_error) {
    scripted_ranks ranks({1, true, false, 0}, {{"EPJIT_TEST_HOST_WORLD", "1"}});
    ranks.all("connect");
    ranks.all("exchange 0 lanes=2 max_tokens=64");
    ranks.all("layer a lane=0 seed=11 mode=exact");
    ranks.all("layer b lane=1 seed=12 layout=masked reduction=per_row bad_ids_of_rank=0");
    for (const char* command :
         {"plan a", "plan b", "dispatch_send a", "dispatch b", "dispatch_receive a", "experts a", "experts b",
          "combine b", "combine_send a", "combine_receive a", "sync a", "look a", "barrier"}) {
        ranks.all(command);
    }
    EXPECT_EQ(ranks.ask(0, "check a").text, "bad_ids=0");
    EXPECT_EQ(ranks.ask(0, "check b").text, "bad_ids=1");
    ranks.all("whole a");
    ranks.all("check a");
    const answer refused = ranks.ask(0, "combine_receive a");
    EXPECT_FALSE(refused.ok);
    EXPECT_EQ(refused.kind, "config");
    EXPECT_THAT(refused.text, HasSubstr("without its combine_send"));
    for (const char* mode : {"exact", "static"}) {
        ranks.all(std::string("layer d seed=5 bad_ids_of_rank=0 mode=") + mode);
        ranks.all("whole d");
        EXPECT_EQ(ranks.ask(0, "check d").text, "bad_ids=1") << mode;
    }
    EXPECT_EQ(ranks.ask(0, "lend d view").kind, "unsupported");
    EXPECT_EQ(ranks.ask(0, "use_lent view").kind, "exception");
    ranks.all("layer c more_tokens_on_rank=0 more=100");
    const answer many = ranks.ask(0, "plan c");
    EXPECT_EQ(many.kind, "config");
    EXPECT_THAT(many.text, testing::AllOf(HasSubstr("164"), HasSubstr("64")));
    EXPECT_EQ(ranks.ask(0, "nonsense a").kind, "exception");
    EXPECT_EQ(ranks.first_failure(0, {"plan a", "combine_receive a", "exit"}, 10'000).kind, "config");
    EXPECT_TRUE(ranks.first_failure(0, {"sleep ms=30", "sleep ms=20"}, 10'000).ms >= 50);
    const answer slept = ranks.ask(0, "sleep ms=1");
    EXPECT_EQ(ranks.failure_after(slept, 0, {"sleep ms=1", "combine_receive a"}, 10'000).kind, "config");
    EXPECT_EQ(ranks.failure_after(refused, 0, {"exit"}, 10'000).text, refused.text);
    ranks.all("drop_exchange 0");
    ranks.tell(0, "exit");
    const answer gone = ranks.hear(0, 10'000);
    EXPECT_EQ(gone.kind, "silent");
    EXPECT_THAT(gone.text, HasSubstr("rank 0 in 'exit': its process ended with status 0"));
    EXPECT_EQ(ranks.child(0).wait(in_ms(10'000)).status, 0);
}

TEST(scripted_ranks, say_how_they_ended_and_where_they_are) {
    scripted_ranks ranks({2, true, false, 0}, {{"EPJIT_TEST_HOST_WORLD", "1"}});
    ranks.tell(0, "crash");
    EXPECT_THAT(ranks.hear(0, 10'000).text,
                testing::AllOf(HasSubstr("rank 0 in 'crash': its process was ended by signal 11"),
                               HasSubstr("it said: signal 11\n"), HasSubstr("epjit test rank(")));
    ranks.tell(1, "sleep ms=2000");
    EXPECT_THAT(ranks.hear(1, 100).text,
                testing::AllOf(HasSubstr("rank 1 in 'sleep ms=2000': no answer within 100 ms"),
                               HasSubstr("asked where it is:\n"), HasSubstr("epjit test rank(")));
    EXPECT_TRUE(ranks.hear(1, 10'000).ok) << "it went on";
}

TEST(run_children, run_a_layer_and_answer) {
    child_process child("run", {});
    tools::run_options o;
    o.exchange = exchange_kind::host;
    o.layout = layout::masked;
    o.mode = mode::fixed;
    o.reduction = reduction::per_row;
    child.send(write_run_request(o));
    const auto line = child.receive(in_ms(30'000));
    ASSERT_TRUE(line);
    EXPECT_THAT(*line, testing::StartsWith("ok\t0\t"));
    EXPECT_THAT(*line, HasSubstr("\thost\t"));
    o.graph = true;
    child.send(write_run_request(o));
    EXPECT_THAT(child.receive(in_ms(30'000)).value_or(""), testing::StartsWith("error\tunsupported\t"));
}

TEST(foreign_kernel, is_compiled_by_the_nvrtc_at_hand) {
    try {
        EXPECT_GT(compile_foreign_kernel("sm_90a", "").size(), 500U);
    } catch (const library_error& e) {
        GTEST_SKIP() << e.message();
    }
}

}  // namespace
}  // namespace epjit::tests
