// SPDX-License-Identifier: Apache-2.0
// Every kernel has been seen to pass on a GPU as it is written now, or a file says why not.
#include "epjit/jit/templates.hpp"
#include "tests/gpu/environment.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <iostream>

namespace epjit::tests {
namespace {

class gpu_verified : public ::testing::TestWithParam<std::pair<const std::string, std::string>> {};

TEST_P(gpu_verified, kernel_passed_on_a_gpu_as_it_is_now) {
    const auto& [kernel, root] = GetParam();
    const std::string path = std::string(EPJIT_GPU_VERIFIED) + "/" + kernel + ".json";
    std::ifstream file(path);
    ASSERT_TRUE(file) << path << " is missing: run the GPU suites with EPJIT_GPU_VERIFIED_DIR set to its folder";
    const nlohmann::json entry = nlohmann::json::parse(file);
    const std::string now = jit::template_set::embedded().closure_digest(root).hex();
    if (entry.at("template_digest").get<std::string>() == now && entry.at("passed").get<std::uint64_t>() > 0) {
        return;
    }
    const std::string reason = entry.value("reason", "");
    ASSERT_FALSE(reason.empty()) << kernel << " has changed since it passed on a GPU (" << root
                                 << " and what it includes: " << now
                                 << "): run the GPU suites with EPJIT_GPU_VERIFIED_DIR=tests/gpu_verified, or "
                                 << "state a reason in " << path;
    std::cout << "warning: " << kernel << " was not run on a GPU as it is now: " << reason << '\n';
}

INSTANTIATE_TEST_SUITE_P(kernels, gpu_verified, ::testing::ValuesIn(kernel_roots().begin(), kernel_roots().end()),
                         [](const auto& test) { return test.param.first; });

}  // namespace
}  // namespace epjit::tests
