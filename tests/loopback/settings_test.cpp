// SPDX-License-Identifier: Apache-2.0
#include "epjit/epjit.hpp"
#include "host/report/report.hpp"
#include "host/runtime/runtime_state.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace epjit::host {
namespace {

using ::testing::HasSubstr;

class variable {
   public:
    variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
    ~variable() { ::unsetenv(name_); }
    variable(const variable&) = delete;
    variable& operator=(const variable&) = delete;

   private:
    const char* name_;
};

std::string refusal(const runtime_options& options = {}) {
    try {
        read_settings(options);
    } catch (const config_error& e) {
        return e.what();
    }
    return "accepted";
}

TEST(settings, options_win_over_variables_and_empty_variables_are_not_set) {
    const variable offline("EPJIT_OFFLINE", "1"), wait("EPJIT_WAIT_TIMEOUT_MS", "1234"),
        nvrtc("EPJIT_NVRTC_LIBRARY", "");
    runtime_options o;
    settings s = read_settings(o);
    EXPECT_TRUE(s.offline);
    EXPECT_EQ(s.wait_timeout.count(), 1234);
    EXPECT_TRUE(s.nvrtc_library.empty());
    EXPECT_EQ(s.first_wait_timeout.count(), 300'000);
    o.offline = 0;
    o.wait_timeout_ms = 5;
    o.cache_path = "";
    s = read_settings(o);
    EXPECT_FALSE(s.offline);
    EXPECT_EQ(s.wait_timeout.count(), 5);
    EXPECT_TRUE(s.cache_layers.empty());
}

TEST(settings, bad_values_name_the_variable) {
    {
        const variable v("EPJIT_LOCK_TIMEOUT_MS", "soon");
        EXPECT_THAT(refusal(), HasSubstr("EPJIT_LOCK_TIMEOUT_MS is 'soon'"));
    }
    {
        const variable v("EPJIT_OFFLINE", "2");
        EXPECT_THAT(refusal(), HasSubstr("EPJIT_OFFLINE is 2"));
    }
    {
        const variable v("EPJIT_EXCHANGE", "pigeon");
        EXPECT_THAT(refusal(), HasSubstr("EPJIT_EXCHANGE is 'pigeon'"));
    }
    {
        const variable v("EPJIT_LOG", "loud");
        EXPECT_THAT(refusal(), HasSubstr("EPJIT_LOG is 'loud'"));
    }
    runtime_options o;
    o.version = 7;
    EXPECT_THAT(refusal(o), HasSubstr("version is 7"));
}

TEST(report, a_machine_without_libraries_is_described_and_not_ready) {
    runtime_options o;
    o.cache_path = "";
    o.cuda_library = "/nowhere/libcuda.so.1";
    o.nvrtc_library = "/nowhere/libnvrtc.so.13";
    o.nccl_library = "/nowhere/libnccl.so.2";
    runtime rt(o);
    const machine_report m = probe_machine(rt.state());
    EXPECT_FALSE(m.driver.found);
    EXPECT_THAT(m.driver.problem, HasSubstr("/nowhere/libcuda.so.1"));
    EXPECT_FALSE(m.nvrtc.found);
    EXPECT_FALSE(m.nccl.found);
    EXPECT_THAT(m.nccl.problem, HasSubstr("/nowhere/libnccl.so.2"));
    EXPECT_FALSE(m.readiness.ready);
    std::vector<std::string> ids;
    for (const blocker& b : m.readiness.blockers) {
        ids.push_back(b.id);
    }
    EXPECT_THAT(ids, testing::ElementsAre("no_driver", "no_nvrtc", "no_nccl", "capture_not_seen",
                                          "instantiation_not_seen", "replay_not_seen", "result_not_verified"));
}

TEST(driver, a_missing_library_lists_the_places_tried) {
    try {
        open_driver("/nowhere/libcuda.so.1");
        FAIL() << "no error";
    } catch (const library_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("/nowhere/libcuda.so.1"));
        EXPECT_THAT(e.remedy(), HasSubstr("EPJIT_CUDA_LIBRARY"));
    }
}

}  // namespace
}  // namespace epjit::host
