// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/environment.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/templates.hpp"
#include "host/runtime/runtime_state.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <stdexcept>

namespace epjit::tests {
namespace {

struct pass_record {
    std::mutex mutex;
    std::map<std::string, std::uint64_t> passes;
};

pass_record& record() {
    static pass_record r;
    return r;
}

/// Writes tests/gpu_verified entries after the last test.
class verified_writer : public ::testing::Environment {
   public:
    void TearDown() override {
        const char* directory = std::getenv("EPJIT_GPU_VERIFIED_DIR");
        if (directory == nullptr || *directory == '\0' || !no_gpu_reason().empty() ||
            ::testing::UnitTest::GetInstance()->failed_test_count() != 0) {
            return;
        }
        std::filesystem::create_directories(directory);
        const auto context = gpu_runtime().state().context(0);
        const jit::template_set& templates = gpu_runtime().state().templates();
        char date[32] = {};
        const std::time_t now = std::time(nullptr);
        std::tm utc{};
        gmtime_r(&now, &utc);
        std::strftime(date, sizeof date, "%Y-%m-%d", &utc);
        for (const auto& [kernel, passes] : record().passes) {
            const auto root = kernel_roots().find(kernel);
            if (root == kernel_roots().end()) {
                ADD_FAILURE() << kernel << " has no line in kernel_roots()";
                continue;
            }
            std::ofstream file(fmt::format("{}/{}.json", directory, kernel));
            file << fmt::format(
                "{{\n  \"kernel\": \"{}\",\n  \"template_digest\": \"{}\",\n  \"gpu\": \"{}\",\n"
                "  \"driver\": \"{}.{}\",\n  \"passed\": {},\n  \"date\": \"{}\",\n  \"reason\": \"\"\n}}\n",
                kernel, templates.closure_digest(root->second).hex(), context->name(), context->api().version / 1000,
                context->api().version % 1000 / 10, passes, date);
            file.close();
            EXPECT_TRUE(file) << "could not write what passed to " << directory;
        }
    }
};

[[maybe_unused]] const auto* const registered = ::testing::AddGlobalTestEnvironment(new verified_writer);

}  // namespace

runtime& gpu_runtime() {
    static runtime rt;
    return rt;
}

const std::string& no_gpu_reason() {
    static const std::string reason = []() -> std::string {
        try {
            gpu_runtime().state().context(0);
            return {};
        } catch (const error& e) {
            return fmt::format("no GPU: {}", e.message());
        }
    }();
    return reason;
}

std::int64_t number_from(const char* variable, std::int64_t otherwise) {
    const char* value = std::getenv(variable);
    if (value == nullptr || *value == '\0') {
        return otherwise;
    }
    std::size_t used = 0;
    const std::int64_t number = std::stoll(value, &used);
    if (value[used] != '\0') {
        throw std::invalid_argument(fmt::format("{} is '{}', not a whole number", variable, value));
    }
    return number;
}

std::map<std::string, std::uint64_t> launches_by_kernel(const runtime& rt) {
    std::map<std::string, std::uint64_t> launches;
    rt.visit_launches(
        [](void* user, std::string_view kernel, std::uint64_t n) {
            (*static_cast<std::map<std::string, std::uint64_t>*>(user))[std::string(kernel)] = n;
        },
        &launches);
    return launches;
}

void note_pass(const std::string& kernel) {
    const std::lock_guard lock(record().mutex);
    ++record().passes[kernel];
}

}  // namespace epjit::tests
