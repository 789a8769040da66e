// SPDX-License-Identifier: Apache-2.0
// Structs grow at their end: older callers' are accepted, larger ones refused, and arrays of either are walked.
#include "host/c/structs.hpp"

#include "epjit/error.hpp"
#include "tests/c/support.hpp"

#include <cstddef>
#include <cstring>

/// A struct that has grown since its first version.
struct epjit_grown {
    std::uint32_t struct_size;
    std::int32_t old_member;
    std::int64_t new_member;
};

namespace epjit::host::c {
EPJIT_STRUCT(epjit_grown, 8);
}

namespace epjit::tests {
namespace {

namespace c = host::c;
using ::testing::HasSubstr;

/// As an older header has it, with something behind it that is not the struct's.
struct older_caller {
    std::uint32_t struct_size = 8;
    std::int32_t old_member = 5;
    std::int64_t not_of_the_struct = -1;
};

TEST(c_structs, what_an_older_struct_lacks_takes_the_default) {
    const older_caller given;
    const epjit_grown seen = c::read_struct(&given, epjit_grown{16, 1, 42});
    EXPECT_EQ(seen.old_member, 5);
    EXPECT_EQ(seen.new_member, 42);
    EXPECT_EQ(seen.struct_size, sizeof(epjit_grown));
}

TEST(c_structs, an_older_struct_is_written_as_far_as_it_goes) {
    older_caller out;
    c::write_struct(reinterpret_cast<epjit_grown*>(&out), epjit_grown{0, 7, 8});
    EXPECT_EQ(out.old_member, 7);
    EXPECT_EQ(out.not_of_the_struct, -1);
    EXPECT_EQ(out.struct_size, 8u);
    out = {};
    c::init_struct(reinterpret_cast<epjit_grown*>(&out), 8, epjit_grown{16, 9, 8});
    EXPECT_EQ(out.old_member, 9);
    EXPECT_EQ(out.not_of_the_struct, -1);
    EXPECT_EQ(out.struct_size, 8u);
}

TEST(c_structs, arrays_of_older_structs_are_walked_in_their_own_steps) {
    const std::int32_t given[6] = {8, 10, 8, 20, 8, 30};
    const auto convert = [](const epjit_grown& g) { return g.old_member + static_cast<std::int32_t>(g.new_member); };
    const c::converted<std::int32_t> seen(reinterpret_cast<const epjit_grown*>(given), 3, convert);
    EXPECT_THAT(seen.span(), ::testing::ElementsAre(10, 20, 30));
}

TEST_F(c_host, a_struct_of_a_newer_header_is_refused_by_name) {
    struct newer {
        epjit_exchange_config known;
        std::int64_t member_of_a_later_version;
    } given{};
    ASSERT_OK(epjit_exchange_config_init(&given.known, sizeof given.known));
    given.known.struct_size = sizeof given;
    epjit_exchange* made = reinterpret_cast<epjit_exchange*>(&given);
    EXPECT_ERROR(epjit_exchange_create(communicator.get(), &given.known, &made), EPJIT_ERROR_CONFIG,
                 "struct_size of epjit_exchange_config is 144 bytes");
    EXPECT_THAT(epjit_last_error(), HasSubstr("knows 136"));
    EXPECT_EQ(made, nullptr);
    EXPECT_ERROR(epjit_exchange_config_init(&given.known, sizeof given), EPJIT_ERROR_CONFIG, "epjit_exchange_config");
}

TEST_F(c_host, a_struct_without_its_size_is_refused_by_name) {
    const handle<epjit_exchange> exchange = make_exchange();
    const handle<epjit_plan> plan = make_plan(exchange.get());
    const auto refused = [](epjit_status status, const char* name) {
        EXPECT_EQ(status, EPJIT_ERROR_CONFIG) << name;
        EXPECT_THAT(epjit_last_error(), HasSubstr(std::string("struct_size of ") + name + " is 0 bytes"));
        EXPECT_THAT(epjit_last_error(), HasSubstr(std::string("sizeof(") + name + ")"));
    };
    epjit_runtime_options options{};
    epjit_runtime* no_runtime = nullptr;
    refused(epjit_runtime_create(&options, &no_runtime), "epjit_runtime_options");
    epjit_error error{};
    refused(epjit_last_error_detail(&error), "epjit_error");
    epjit_counters counters{};
    refused(epjit_runtime_counters(runtime.get(), &counters), "epjit_counters");
    epjit_communicator_info communicator_info{};
    refused(epjit_communicator_get_info(communicator.get(), &communicator_info), "epjit_communicator_info");
    epjit_exchange_info info{};
    refused(epjit_exchange_get_info(exchange.get(), &info), "epjit_exchange_info");
    epjit_exchange_config no_config{};
    refused(epjit_exchange_get_config(exchange.get(), &no_config), "epjit_exchange_config");
    epjit_plan_options plan_options{};
    std::int64_t rows = 0;
    refused(epjit_exchange_worst_case_rows(exchange.get(), 0, &plan_options, &rows), "epjit_plan_options");
    epjit_plan_view view{};
    refused(epjit_plan_get_view(plan.get(), 0, &view), "epjit_plan_view");
    epjit_plan_status status{};
    refused(epjit_plan_get_status(plan.get(), &status), "epjit_plan_status");
    epjit_model_shape shape{};
    refused(epjit_get_model(0, &shape), "epjit_model_shape");
    epjit_dispatch_options dispatch_options{};
    refused(epjit_dispatch(exchange.get(), plan.get(), dispatch_args, 2, &dispatch_options, nullptr),
            "epjit_dispatch_options");
    epjit_combine_options combine_options{};
    refused(epjit_combine(exchange.get(), plan.get(), combine_args, 2, &combine_options, nullptr),
            "epjit_combine_options");
    epjit_weight_gradient_args gradients[2] = {};
    refused(epjit_weight_gradients(exchange.get(), plan.get(), gradients, 2, nullptr), "epjit_weight_gradient_args");
}

TEST_F(c_host, elements_of_one_array_have_one_size) {
    const handle<epjit_exchange> exchange = make_exchange();
    plan_args[1].struct_size = 16;
    epjit_plan* plan = nullptr;
    EXPECT_ERROR(epjit_make_plan(exchange.get(), plan_args, 2, nullptr, nullptr, &plan), EPJIT_ERROR_CONFIG,
                 "epjit_plan_args 1 is 16 bytes, that of the first is 32");
    EXPECT_EQ(plan, nullptr);
}

TEST(c_structs, places_of_members_never_change) {
    EXPECT_EQ(offsetof(epjit_runtime_options, log_level), 128u);
    EXPECT_EQ(offsetof(epjit_exchange_config, placement), 48u);
    EXPECT_EQ(offsetof(epjit_exchange_config, halves), 92u);
    EXPECT_EQ(offsetof(epjit_exchange_config, memory), 96u);
    EXPECT_EQ(offsetof(epjit_exchange_config, staging_bytes), 120u);
    EXPECT_EQ(offsetof(epjit_exchange_config, window_rows), 128u);
    EXPECT_EQ(offsetof(epjit_exchange_config, expansion_sms), 132u);
    EXPECT_EQ(offsetof(epjit_tensor, row_stride), 40u);
    EXPECT_EQ(offsetof(epjit_plan_args, routing), 8u);
    EXPECT_EQ(offsetof(epjit_plan_args, slot_tokens), 24u);
    EXPECT_EQ(offsetof(epjit_plan_view, rows), 40u);
    EXPECT_EQ(offsetof(epjit_dispatch_options, into_window), 20u);
    EXPECT_EQ(offsetof(epjit_dispatch_options, follows_plan), 24u);
    EXPECT_EQ(offsetof(epjit_dispatch_args, output), 72u);
    EXPECT_EQ(offsetof(epjit_dispatch_args, local_weights), 152u);
    EXPECT_EQ(offsetof(epjit_combine_args, output), 72u);
    EXPECT_EQ(offsetof(epjit_combine_options, weights_dispatched), 12u);
    EXPECT_EQ(offsetof(epjit_weight_gradient_args, output), 128u);
    EXPECT_EQ(offsetof(epjit_model_shape, name), 32u);
    EXPECT_EQ(offsetof(epjit_error, source), 56u);
}

}  // namespace
}  // namespace epjit::tests
