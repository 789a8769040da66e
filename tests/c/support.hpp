// SPDX-License-Identifier: Apache-2.0
// Handles of the C interface that destroy themselves, and small jobs to use them on.
#pragma once

#include "epjit/epjit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace epjit::tests {

struct destroy_handle {
    void operator()(epjit_runtime* p) const { epjit_runtime_destroy(p); }
    void operator()(epjit_communicator* p) const { epjit_communicator_destroy(p); }
    void operator()(epjit_exchange* p) const { epjit_exchange_destroy(p); }
    void operator()(epjit_plan* p) const { epjit_plan_destroy(p); }
};
template <class T>
using handle = std::unique_ptr<T, destroy_handle>;

#define EXPECT_OK(call) EXPECT_EQ(call, EPJIT_OK) << epjit_last_error()
#define ASSERT_OK(call) ASSERT_EQ(call, EPJIT_OK) << epjit_last_error()

/// The call fails with the status, and the thread's error has the text.
#define EXPECT_ERROR(call, expected_status, text)                               \
    do {                                                                        \
        EXPECT_EQ(call, expected_status);                                       \
        EXPECT_THAT(epjit_last_error(), ::testing::HasSubstr(text));            \
        ::epjit_error seen_{};                                                  \
        seen_.struct_size = sizeof seen_;                                       \
        EXPECT_EQ(epjit_last_error_detail(&seen_), EPJIT_OK);                   \
        EXPECT_EQ(seen_.status, expected_status) << "of the last error's kind"; \
    } while (false)

template <class T>
T sized() {
    T value{};
    value.struct_size = sizeof value;
    return value;
}

inline epjit_runtime_options quiet_options() {
    epjit_runtime_options o;
    EXPECT_OK(epjit_runtime_options_init(&o, sizeof o));
    o.cache_path = "";
    return o;
}

inline handle<epjit_runtime> make_runtime(const epjit_runtime_options& options) {
    epjit_runtime* made = nullptr;
    EXPECT_OK(epjit_runtime_create(&options, &made));
    return handle<epjit_runtime>(made);
}

/// Two ranks of two experts each on the host exchange, four tokens a rank, H 8, bf16.
class c_host : public ::testing::Test {
   protected:
    c_host() : runtime(make_runtime(quiet_options())) {
        epjit_communicator* comm = nullptr;
        EXPECT_OK(epjit_communicator_host(runtime.get(), 2, &comm));
        communicator.reset(comm);
        EXPECT_OK(epjit_exchange_config_init(&config, sizeof config));
        config.hidden = 8;
        config.num_experts = 4;
        config.topk = 2;
        config.max_tokens_per_rank = 4;
        for (int r = 0; r < 2; ++r) {
            plan_args[r] = sized<epjit_plan_args>();
            plan_args[r].num_tokens = 4;
            plan_args[r].routing = ids.data();
            dispatch_args[r] = sized<epjit_dispatch_args>();
            dispatch_args[r].input = tensor(memory.data(), 4);
            dispatch_args[r].output = tensor(output.data(), 16);
            combine_args[r] = sized<epjit_combine_args>();
            combine_args[r].rows = tensor(memory.data(), 16);
            combine_args[r].output = tensor(output.data(), 4);
        }
    }
    static epjit_tensor tensor(std::uint16_t* data, std::int64_t rows) {
        epjit_tensor t{};
        t.data = data;
        t.rows = rows;
        t.columns = 8;
        return t;
    }
    handle<epjit_exchange> make_exchange() {
        epjit_exchange* made = nullptr;
        EXPECT_OK(epjit_exchange_create(communicator.get(), &config, &made));
        return handle<epjit_exchange>(made);
    }
    handle<epjit_plan> make_plan(epjit_exchange* exchange) {
        epjit_plan* made = nullptr;
        EXPECT_OK(epjit_make_plan(exchange, plan_args, 2, nullptr, nullptr, &made));
        return handle<epjit_plan>(made);
    }

    handle<epjit_runtime> runtime;
    handle<epjit_communicator> communicator;
    epjit_exchange_config config{};
    std::vector<std::int64_t> ids{0, 1, 1, 2, 2, 3, 3, 0};
    std::vector<std::uint16_t> memory = std::vector<std::uint16_t>(1024, 0), output = memory;
    epjit_plan_args plan_args[2];
    epjit_dispatch_args dispatch_args[2];
    epjit_combine_args combine_args[2];
};

}  // namespace epjit::tests
