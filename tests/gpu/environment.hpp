// SPDX-License-Identifier: Apache-2.0
// What the GPU suites share: one runtime, the reason to skip, numbers from the environment, the record of what passed.
#pragma once

#include "epjit/runtime.hpp"

#include <cstdint>
#include <map>
#include <string>

namespace epjit::tests {

/// The runtime of all GPU suites of this process, with the machine's default cache.
runtime& gpu_runtime();
/// Empty where a GPU can be used, else why not.
const std::string& no_gpu_reason();
/// A whole number from the environment. @throws std::invalid_argument when it is not one.
std::int64_t number_from(const char* variable, std::int64_t otherwise);

std::map<std::string, std::uint64_t> launches_by_kernel(const runtime& rt);

/// Notes that a check passed in which `kernel` had been launched; written at the end of the process when
/// EPJIT_GPU_VERIFIED_DIR is set, unless a test failed.
void note_pass(const std::string& kernel);

/// Kernel name to the template file that defines it.
const std::map<std::string, std::string>& kernel_roots();

}  // namespace epjit::tests

#define EPJIT_NEEDS_GPU()                                \
    if (!::epjit::tests::no_gpu_reason().empty()) {      \
        GTEST_SKIP() << ::epjit::tests::no_gpu_reason(); \
    }                                                    \
    static_assert(true)
