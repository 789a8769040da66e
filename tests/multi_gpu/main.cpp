// SPDX-License-Identifier: Apache-2.0
// A test program that is also each of its child processes.
#include "tests/multi_gpu/child.hpp"

#include <gtest/gtest.h>

#include <csignal>

int main(int argc, char** argv) {
    if (const auto status = epjit::tests::run_as_child()) {
        return *status;
    }
    std::signal(SIGPIPE, SIG_IGN);  // a child that has ended is a failure of its test, not the end of all
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
