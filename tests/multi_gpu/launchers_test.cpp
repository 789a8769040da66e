// SPDX-License-Identifier: Apache-2.0
// The command under the launchers that are installed. EPJIT_COMMAND names it where it does not lie beside the tests.
#include "tests/multi_gpu/faults.hpp"
#include "tests/multi_gpu/shell.hpp"

#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>

namespace epjit::tests {
namespace {

namespace fs = std::filesystem;

std::string command_path() {
    if (const char* given = std::getenv("EPJIT_COMMAND")) {
        return given;
    }
    return fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "epjit";
}

bool installed(const std::string& program) {
    const char* path = std::getenv("PATH");
    std::istringstream folders(path != nullptr ? path : "");
    for (std::string folder; std::getline(folders, folder, ':');) {
        std::error_code ignored;
        if (fs::exists(fs::path(folder) / program, ignored)) {
            return true;
        }
    }
    return false;
}

class launchers : public faults {
   protected:
    /// Two ranks of `epjit run` behind `launcher`: rank 0 prints for both, and the result is right.
    static void expect_a_checked_layer(const std::string& launcher) {
        const std::string epjit = command_path();
        if (!fs::exists(epjit)) {
            GTEST_SKIP() << "no command at " << epjit << " (EPJIT_COMMAND)";
        }
        for (const char* more : {"", " --mode static --graph --iters 20"}) {
            const std::string command = fmt::format("timeout -k 10 240 {} {} run --exchange {} --check --json{}",
                                                    launcher, epjit, name(GetParam().kind), more);
            SCOPED_TRACE(command);
            const auto [text, status] = run_shell(command);
            EXPECT_EQ(status, 0);
            const auto seen = nlohmann::json::parse(text, nullptr, false);
            ASSERT_TRUE(seen.is_object()) << "not one object: " << text;
            EXPECT_TRUE(seen.value("ok", false)) << text;
            EXPECT_EQ(seen.value("exchange", ""), name(GetParam().kind));
            EXPECT_GT(seen.value("checked_rows", 0), 0);
            EXPECT_EQ(seen.value("mismatched_rows", -1), 0);
        }
    }
};

TEST_P(launchers, torchrun_starts_the_ranks_of_the_command) {
    if (!installed("torchrun")) {
        GTEST_SKIP() << "torchrun is not installed";
    }
    expect_a_checked_layer(fmt::format("torchrun --nproc-per-node 2 --no-python --master-port {}", next_port()));
}

TEST_P(launchers, mpirun_starts_the_ranks_of_the_command) {
    if (!installed("mpirun")) {
        GTEST_SKIP() << "mpirun is not installed";
    }
    expect_a_checked_layer(
        "env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -np 2 --oversubscribe");
}

using launchers_of_hosts = launchers;

TEST_P(launchers_of_hosts, torchrun_starts_four_ranks_that_nccl_takes_for_two_hosts) {
    if (!installed("torchrun")) {
        GTEST_SKIP() << "torchrun is not installed";
    }
    // A shell between launcher and command gives every two ranks a host of their own.
    expect_a_checked_layer(
        fmt::format("torchrun --nproc-per-node 4 --no-python --master-port {} sh -c "
                    "'NCCL_HOSTID=epjit-host-$((RANK / 2)) exec \"$@\"' sh",
                    next_port()));
}

INSTANTIATE_TEST_SUITE_P(each, launchers_of_hosts, ::testing::Values(exchange_kind::hybrid), label_of);
INSTANTIATE_TEST_SUITE_P(each, launchers,
                         ::testing::Values(exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense),
                         label_of);

}  // namespace
}  // namespace epjit::tests
