// SPDX-License-Identifier: Apache-2.0
// The example in C, which lies beside the tests: ranks on the CPU, virtual ranks on one GPU, a process for each of two.
#include "tests/multi_gpu/faults.hpp"
#include "tests/multi_gpu/shell.hpp"

#include <array>
#include <filesystem>
#include <string>
#include <thread>

namespace epjit::tests {
namespace {

namespace fs = std::filesystem;

std::string example_path() {
    return fs::read_symlink("/proc/self/exe").parent_path() / "c_example";
}

std::pair<std::string, int> run_example(const std::string& variables) {
    return run_shell(fmt::format("{} timeout -k 10 120 {} 2>&1", variables, example_path()));
}

class c_example : public ::testing::Test {
   protected:
    void SetUp() override {
        if (!fs::exists(example_path())) {
            GTEST_SKIP() << "no example at " << example_path();
        }
    }
};

TEST_F(c_example, runs_a_layer_on_the_cpu_and_where_there_is_a_gpu_over_virtual_ranks) {
    const auto [text, status] = run_example("env -u WORLD_SIZE -u OMPI_COMM_WORLD_SIZE -u SLURM_NTASKS");
    EXPECT_EQ(status, 0) << text;
    EXPECT_THAT(text, ::testing::HasSubstr("host: one layer over 4 ranks, 0 wrong values\n"));
    EXPECT_THAT(text, ::testing::HasSubstr(no_gpu_reason().empty() ? "loopback: one layer over 4 ranks, 0 wrong values"
                                                                   : "loopback: skipped: "));
}

TEST_F(c_example, runs_a_layer_over_two_gpus_a_process_for_each) {
    if (!no_gpu_reason().empty()) {
        GTEST_SKIP() << no_gpu_reason();
    }
    if (gpu_runtime().state().driver()->num_devices < 2) {
        GTEST_SKIP() << "needs two GPUs";
    }
    const int port = next_port();
    std::array<std::pair<std::string, int>, 2> ranks;
    std::thread second;
    const auto run = [&](int rank) {
        ranks[static_cast<std::size_t>(rank)] =
            run_example(fmt::format("RANK={0} LOCAL_RANK={0} WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={1} "
                                    "EPJIT_BOOTSTRAP_PORT={1}",
                                    rank, port));
    };
    second = std::thread([&] { run(1); });
    run(0);
    second.join();
    for (const auto& [text, status] : ranks) {
        EXPECT_EQ(status, 0) << text;
        EXPECT_THAT(text, ::testing::HasSubstr("launcher: one layer over 2 ranks, 0 wrong values"));
    }
}

}  // namespace
}  // namespace epjit::tests
