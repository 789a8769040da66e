// SPDX-License-Identifier: Apache-2.0
// A test program that is also each of its child processes.
#include "tests/multi_gpu/child.hpp"

#include <gtest/gtest.h>

int main(int argc, char** argv) {
    if (const auto status = epjit::tests::run_as_child()) {
        return *status;
    }
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
