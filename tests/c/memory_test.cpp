// SPDX-License-Identifier: Apache-2.0
// Out of host memory: a status, never an exception, also where the text of the error finds no memory either. The
// operators of failing_new.cpp fail for a thread that asks for it.
#include "tests/c/failing_new.hpp"
#include "tests/c/support.hpp"

#include <cstdlib>

namespace epjit::tests {
namespace {

TEST_F(c_host, running_out_of_memory_anywhere_is_a_status) {
    // Every call fails at its first allocation, its second, ... until it has as many as it needs.
    const auto squeeze = [](const char* what, auto call) {
        int failures = 0;
        for (int allowed = 0; allowed < 1000; ++allowed) {
            allocations_left = allowed;
            const epjit_status status = call();
            allocations_left = -1;
            if (status == EPJIT_OK) {
                EXPECT_GT(failures, 0) << what << " allocates nothing";
                return;
            }
            EXPECT_EQ(status, EPJIT_ERROR_INTERNAL) << what << ": " << epjit_last_error();
            EXPECT_THAT(epjit_last_error(), ::testing::HasSubstr("out of host memory")) << what;
            ++failures;
        }
        ADD_FAILURE() << what << " never had enough";
    };
    epjit_runtime_options options = quiet_options();
    options.cache_path = "/nonexistent/epjit-cache";
    squeeze("runtime", [&] {
        epjit_runtime* made = nullptr;
        const epjit_status status = epjit_runtime_create(&options, &made);
        epjit_runtime_destroy(made);
        return status;
    });
    squeeze("exchange", [&] {
        epjit_exchange* made = nullptr;
        const epjit_status status = epjit_exchange_create(communicator.get(), &config, &made);
        epjit_exchange_destroy(made);
        return status;
    });
}

TEST_F(c_host, an_error_without_memory_for_its_text_is_still_one) {
    epjit_communicator* comm = nullptr;
    allocations_left = 0;
    const epjit_status status = epjit_communicator_host(nullptr, 2, &comm);
    allocations_left = -1;
    EXPECT_EQ(status, EPJIT_ERROR_INTERNAL);
    EXPECT_THAT(epjit_last_error(), ::testing::HasSubstr("out of host memory, also for the text of this error"));
    EXPECT_EQ(epjit_communicator_host(nullptr, 2, &comm), EPJIT_ERROR_CONFIG);
    EXPECT_THAT(epjit_last_error(), ::testing::HasSubstr("runtime is null")) << "a later error replaces it";
}

TEST_F(c_host, an_allocate_hook_that_has_nothing_is_an_error_and_a_working_one_is_used) {
    static int live, calls;
    live = calls = 0;
    config.memory.allocate = [](void*, std::size_t) -> void* { return nullptr; };
    config.memory.release = [](void*, void*) { --live; };
    epjit_exchange* made = nullptr;
    epjit_status status = epjit_exchange_create(communicator.get(), &config, &made);
    epjit_plan* plan = nullptr;
    if (status == EPJIT_OK) {
        status = epjit_make_plan(made, plan_args, 2, nullptr, nullptr, &plan);
    }
    EXPECT_NE(status, EPJIT_OK);
    EXPECT_THAT(epjit_last_error(), ::testing::HasSubstr("hook returned null"));
    epjit_exchange_destroy(made);

    config.memory.allocate = [](void* user, std::size_t bytes) {
        EXPECT_EQ(user, &live);
        ++live;
        ++calls;
        return std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    };
    config.memory.release = [](void*, void* p) {
        --live;
        std::free(p);
    };
    config.memory.user = &live;
    {
        const handle<epjit_exchange> ex = make_exchange();
        const handle<epjit_plan> used = make_plan(ex.get());
        EXPECT_GT(calls, 0);
    }
    EXPECT_EQ(live, 0);
}

}  // namespace
}  // namespace epjit::tests
