// SPDX-License-Identifier: Apache-2.0
// The suites of every exchange between real ranks. CONTRIBUTING.md says which variables steer them.
#include "host/dispatcher/dispatcher.hpp"
#include "host/runtime/runtime_state.hpp"
#include "tests/gpu/environment.hpp"
#include "tests/multi_gpu/ranks.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace epjit::tests {
namespace {

struct arrangement {
    exchange_kind exchange = exchange_kind::lsa;
    int ranks = 2;
    bool processes = true;
    [[nodiscard]] std::string text() const {
        return fmt::format("{}_{}_{}", name(exchange), ranks, processes ? "processes" : "threads");
    }
};

/// True when the comma-separated list in `variable` names `item`, or there is no list.
bool listed(const char* variable, std::string_view item) {
    const char* value = std::getenv(variable);
    if (value == nullptr || *value == '\0') {
        return true;
    }
    return fmt::format(",{},", value).find(fmt::format(",{},", item)) != std::string::npos;
}

std::vector<arrangement> arrangements() {
    std::vector<arrangement> all;
    for (const exchange_kind kind :
         {exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense, exchange_kind::hybrid}) {
        for (const int ranks : {2, 4}) {
            for (const bool processes : {false, true}) {
                if (kind == exchange_kind::hybrid && ranks < 4) {
                    continue;  // two hosts of two
                }
                if (listed("EPJIT_EXCHANGES", name(kind)) && listed("EPJIT_RANKS", std::to_string(ranks)) &&
                    listed("EPJIT_RANK_MODE", processes ? "process" : "thread")) {
                    all.push_back({kind, ranks, processes});
                }
            }
        }
    }
    return all;
}

int gpus() {
    return no_gpu_reason().empty() ? gpu_runtime().state().driver()->num_devices : 0;
}

/// Empty where the arrangement can be made here.
std::string why_not(const arrangement& a, rank_setup& setup) {
    if (gpus() >= 1 && std::getenv("EPJIT_ONE_GPU") != nullptr) {
        setup.ranks = a.ranks;
        setup.processes = false;
        setup.one_gpu = true;
        const bool possible = a.exchange == exchange_kind::lsa && a.ranks == 2 && !a.processes;
        return possible ? "" : "EPJIT_ONE_GPU: two threads over lsa alone";
    }
    if (gpus() < 2) {
        return no_gpu_reason().empty() ? fmt::format("needs two GPUs, there are {}", gpus()) : no_gpu_reason();
    }
    if (!host::built_exchanges.has(a.exchange)) {
        return fmt::format("exchange {} is not in this version", name(a.exchange));
    }
    setup.ranks = a.ranks;
    setup.processes = a.processes;
    setup.two_hosts = a.exchange == exchange_kind::hybrid || gpus() < a.ranks;
    if (setup.two_hosts && !a.processes) {
        return fmt::format("{} threads need {} GPUs: one process is one host to NCCL", a.ranks, a.ranks);
    }
    if (setup.two_hosts && a.exchange == exchange_kind::lsa) {
        return fmt::format("lsa needs a GPU for each of {} ranks, there are {}", a.ranks, gpus());
    }
    setup.limit_ms = number_from("EPJIT_GPU_LIMIT_MS", 480'000);
    return {};
}

class real_ranks : public ::testing::TestWithParam<arrangement> {
   protected:
    void SetUp() override {
        const std::string reason = why_not(GetParam(), setup_);
        if (!reason.empty()) {
            GTEST_SKIP() << reason;
        }
        settings_.exchange = GetParam().exchange;
        settings_.seed = static_cast<std::uint64_t>(number_from("EPJIT_GPU_SEED", std::random_device{}()));
        settings_.cases = number_from("EPJIT_GPU_CASES", 300);
        settings_.only = number_from("EPJIT_GPU_ONLY", -1);
        const char* without = std::getenv("EPJIT_WITHOUT");
        settings_.without = without != nullptr ? without : "";
        RecordProperty("seed", fmt::format("{}", settings_.seed));
    }

    job_report run(const std::string& job_name, std::int64_t iterations = 0,
                   const char* variable = "EPJIT_GPU_ITERATIONS") {
        settings_.iterations = number_from(variable, iterations);
        job_report report = run_ranks(setup_, job_name, settings_);
        for (const std::string& text : report.failures) {
            ADD_FAILURE() << text;
        }
        std::string line = fmt::format("{} {} (seed {}):", GetParam().text(), job_name, settings_.seed);
        for (const auto& [what, n] : report.counts) {
            line += fmt::format(" {} {},", n, what);
        }
        for (const auto& [kernel, n] : report.launches) {
            line += fmt::format(" {} {},", n, kernel);
        }
        std::puts(line.c_str());
        std::fflush(stdout);
        if (!HasFailure()) {
            for (const auto& [kernel, n] : report.launches) {
                for (std::uint64_t i = 0; i < n; ++i) {
                    note_pass(kernel);
                }
            }
        }
        return report;
    }

    /// What the exchange's choice fixes: who plans, and whether kernels store into peers.
    static void expect_kernels_of_the_exchange(const job_report& report) {
        const auto launched = [&](const char* kernel) { return report.launches.contains(kernel); };
        const exchange_kind kind = GetParam().exchange;
        EXPECT_TRUE(launched("exchange_plan_kernel") || launched("gathered_plan_kernel"));
        if (kind == exchange_kind::lsa || kind == exchange_kind::sendrecv) {
            EXPECT_FALSE(launched("plan_kernel")) << "that one plans for ranks that share a GPU";
        }
        const bool steps = launched("sync_kernel") || launched("dispatch_kernel");
        EXPECT_EQ(steps, kind == exchange_kind::lsa || kind == exchange_kind::hybrid)
            << "kernels that signal through peers' windows belong to lsa and hybrid";
        for (const auto& [kernel, n] : report.launches) {
            EXPECT_TRUE(kernel_roots().contains(kernel)) << kernel << " has no line in kernel_roots()";
        }
    }

    rank_setup setup_;
    job_settings settings_;
};

TEST_P(real_ranks, random_layers_equal_the_reference_bit_for_bit) {
    const job_report report = run("property");
    if (settings_.only >= 0 || HasFailure()) {
        return;
    }
    const auto count = [&](const char* what) {
        const auto found = report.counts.find(what);
        return found != report.counts.end() ? found->second : 0;
    };
    EXPECT_GE(count("cases"), static_cast<std::uint64_t>(settings_.cases * setup_.ranks));
    if (settings_.cases >= 300 && settings_.without.empty()) {
        // The generator reached what the cases are for.
        for (const char* what :
             {"rows", "dropped", "bad_ids", "duplicates", "gradients", "halves", "lane 1", "layout expert_major",
              "layout flat", "layout masked", "mode exact", "mode static", "reduction per_rank", "reduction per_host",
              "reduction per_row", "source auto", "source counts", "source gathered"}) {
            EXPECT_GT(count(what), 0U) << what;
        }
        if (settings_.exchange == exchange_kind::lsa) {
            EXPECT_GT(count("small staging"), 0U);
        }
    }
    expect_kernels_of_the_exchange(report);
}

TEST_P(real_ranks, rows_over_the_capacity_of_one_rank_fail_on_every_rank) {
    const job_report report = run("overflow");
    EXPECT_EQ(report.counts.contains("capacity errors") ? report.counts.at("capacity errors") : 0,
              static_cast<std::uint64_t>(setup_.ranks));
}

TEST_P(real_ranks, plans_from_counts_and_from_gathered_ids_are_the_same_byte_for_byte) {
    const job_report report = run("plan_sources");
    EXPECT_TRUE(report.launches.contains("exchange_plan_kernel"));
    EXPECT_TRUE(report.launches.contains("gathered_plan_kernel"));
}

TEST_P(real_ranks, static_mode_allocates_compiles_uploads_and_waits_for_nothing_once_warm) {
    run("hot_path");
}

TEST_P(real_ranks, graphs_replay_with_changing_data_between_eager_calls) {
    run("graph", 2000);
}

TEST_P(real_ranks, packets_of_an_earlier_round_of_tags_are_not_taken_for_new_ones) {
    const job_report report = run("packet_tags", 132);
    EXPECT_TRUE(report.launches.contains("ll_dispatch_kernel") || GetParam().exchange != exchange_kind::lsa);
}

TEST_P(real_ranks, memory_is_the_same_after_100_exchanges) {
    run("create_destroy", 100);
}

// 320,000 tokens: 4.6 GB of rows on each rank, up to 40 GB of memory with what they travel through.
TEST_P(real_ranks, long_prompts_overflow_no_index_and_no_collective) {
    if (setup_.one_gpu || setup_.ranks > gpus()) {
        GTEST_SKIP() << "needs a GPU for each rank";
    }
    run("long_prompts", 320'000, "EPJIT_GPU_LONG_TOKENS");
}

// EPJIT_GPU_ITERATIONS=10000 for the full length.
TEST_P(real_ranks, memory_is_the_same_after_many_layers_of_mixed_shapes) {
    run("stress", 1500);
}

/// The same jobs over ranks that one GPU plays.
class virtual_ranks : public ::testing::TestWithParam<int> {
   protected:
    void SetUp() override {
        if (!no_gpu_reason().empty()) {
            GTEST_SKIP() << no_gpu_reason();
        }
        if (!listed("EPJIT_EXCHANGES", "loopback")) {
            GTEST_SKIP() << "EPJIT_EXCHANGES leaves loopback out";
        }
    }
    static void run(const char* job_name, std::int64_t iterations) {
        job_settings settings;
        settings.exchange = exchange_kind::loopback;
        settings.seed = static_cast<std::uint64_t>(number_from("EPJIT_GPU_SEED", std::random_device{}()));
        settings.cases = number_from("EPJIT_GPU_CASES", 150);
        settings.only = number_from("EPJIT_GPU_ONLY", -1);
        settings.iterations = number_from("EPJIT_GPU_ITERATIONS", iterations);
        const std::unique_ptr<rank_world> world =
            make_whole_world(gpu_runtime(), communicator::loopback(gpu_runtime(), GetParam()));
        const job_report report = run_job(find_job(job_name), *world, settings);
        for (const std::string& text : report.failures) {
            ADD_FAILURE() << "seed " << settings.seed << ": " << text;
        }
        for (const auto& [what, n] : report.counts) {
            std::printf("%s: %llu, ", what.c_str(), static_cast<unsigned long long>(n));
        }
        std::puts("");
    }
};

TEST_P(virtual_ranks, random_layers_with_several_plans_alive) {
    run("property", 0);
}
TEST_P(virtual_ranks, graphs_replay_with_changing_data_between_eager_calls) {
    run("graph", 1000);
}
TEST_P(virtual_ranks, memory_is_the_same_after_100_exchanges) {
    run("create_destroy", 100);
}
TEST_P(virtual_ranks, memory_is_the_same_after_many_layers_of_mixed_shapes) {
    run("stress", 1500);
}
TEST_P(virtual_ranks, rows_over_the_capacity_of_one_rank_fail) {
    run("overflow", 0);
}

INSTANTIATE_TEST_SUITE_P(loopback, virtual_ranks, ::testing::Values(2, 5),
                         [](const auto& one) { return fmt::format("{}_ranks", one.param); });

INSTANTIATE_TEST_SUITE_P(each, real_ranks, ::testing::ValuesIn(arrangements()),
                         [](const auto& one) { return one.param.text(); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(real_ranks);

}  // namespace
}  // namespace epjit::tests
