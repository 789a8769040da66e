// SPDX-License-Identifier: Apache-2.0
// A test program that is also each of its child processes.
#include "tests/multi_gpu/child.hpp"

#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>

int main(int argc, char** argv) {
    if (const auto status = epjit::tests::run_as_child()) {
        return *status;
    }
    std::signal(SIGPIPE, SIG_IGN);  // a child that has ended is a failure of its test, not the end of all
    if (std::getenv("EPJIT_ONE_GPU") != nullptr) {
        // Before the driver is there: streams of ranks that share a GPU must not queue behind each other's, nor must
        // the load of a kernel wait for those that run.
        ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
        ::setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    }
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
