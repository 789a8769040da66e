// SPDX-License-Identifier: Apache-2.0
// Bad input through the C interface: a status, a message with the values, a remedy, kept per thread.
#include "tests/c/support.hpp"

#include <cstdlib>
#include <string>
#include <thread>

namespace epjit::tests {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StrEq;

epjit_error last() {
    epjit_error e = sized<epjit_error>();
    EXPECT_OK(epjit_last_error_detail(&e));
    return e;
}

void expect_null_named(epjit_status status, const char* what) {
    EXPECT_EQ(status, EPJIT_ERROR_CONFIG) << what;
    EXPECT_THAT(epjit_last_error(), HasSubstr(std::string(what) + " is null"));
}

TEST_F(c_host, null_handles_are_named) {
    epjit_runtime* rt = nullptr;
    epjit_communicator* comm = nullptr;
    epjit_exchange* ex = nullptr;
    epjit_plan* plan = nullptr;
    epjit_counters counters = sized<epjit_counters>();
    expect_null_named(epjit_runtime_counters(rt, &counters), "runtime");
    expect_null_named(epjit_runtime_visit_launches(
                          rt, [](void*, const char*, std::uint64_t) {}, nullptr),
                      "runtime");
    expect_null_named(epjit_communicator_host(rt, 2, &comm), "runtime");
    expect_null_named(epjit_communicator_loopback(rt, 2, 0, &comm), "runtime");
    expect_null_named(epjit_communicator_from_nccl(rt, nullptr, 0, nullptr, 0, &comm), "runtime");
    expect_null_named(epjit_communicator_from_unique_id(rt, ids.data(), 0, 2, 0, &comm), "runtime");
    expect_null_named(epjit_communicator_from_launcher(rt, &comm), "runtime");
    const std::int32_t devices[] = {0, 0};
    epjit_communicator* both[2] = {};
    unsigned char id[128] = {};
    expect_null_named(epjit_communicator_local(rt, devices, 2, both), "runtime");
    expect_null_named(epjit_communicator_unique_id(rt, id), "runtime");
    epjit_communicator_info communicator_info = sized<epjit_communicator_info>();
    expect_null_named(epjit_communicator_get_info(comm, &communicator_info), "communicator");
    expect_null_named(epjit_exchange_create(comm, &config, &ex), "communicator");
    expect_null_named(epjit_exchange_prepare(ex), "exchange");
    expect_null_named(epjit_exchange_check(ex), "exchange");
    epjit_exchange_info info = sized<epjit_exchange_info>();
    expect_null_named(epjit_exchange_get_info(ex, &info), "exchange");
    expect_null_named(epjit_exchange_get_config(ex, &config), "exchange");
    std::int64_t rows = 0;
    expect_null_named(epjit_exchange_worst_case_rows(ex, 0, nullptr, &rows), "exchange");
    expect_null_named(epjit_make_plan(ex, plan_args, 2, nullptr, nullptr, &plan), "exchange");
    epjit_plan_view view = sized<epjit_plan_view>();
    expect_null_named(epjit_plan_get_view(plan, 0, &view), "plan");
    epjit_plan_status status = sized<epjit_plan_status>();
    expect_null_named(epjit_plan_get_status(plan, &status), "plan");
    const handle<epjit_exchange> real = make_exchange();
    const auto gradients = sized<epjit_weight_gradient_args>();
    for (epjit_exchange* e : {ex, real.get()}) {
        const char* what = e == nullptr ? "exchange" : "plan";
        expect_null_named(epjit_dispatch(e, plan, dispatch_args, 2, nullptr, nullptr), what);
        expect_null_named(epjit_dispatch_send(e, plan, dispatch_args, 2, nullptr, nullptr), what);
        expect_null_named(epjit_dispatch_receive(e, plan, dispatch_args, 2, nullptr, nullptr), what);
        expect_null_named(epjit_combine(e, plan, combine_args, 2, nullptr, nullptr), what);
        expect_null_named(epjit_combine_send(e, plan, combine_args, 2, nullptr, nullptr), what);
        expect_null_named(epjit_combine_receive(e, plan, combine_args, 2, nullptr, nullptr), what);
        expect_null_named(epjit_weight_gradients(e, plan, &gradients, 1, nullptr), what);
    }
    epjit_runtime_destroy(nullptr);
    epjit_communicator_destroy(nullptr);
    epjit_exchange_destroy(nullptr);
    epjit_plan_destroy(nullptr);
}

TEST_F(c_host, null_pointers_are_named) {
    const handle<epjit_exchange> ex = make_exchange();
    const handle<epjit_plan> plan = make_plan(ex.get());
    epjit_runtime_options options = quiet_options();
    epjit_communicator* comm = nullptr;
    epjit_plan* none = nullptr;
    expect_null_named(epjit_last_error_detail(nullptr), "epjit_error");
    expect_null_named(epjit_runtime_options_init(nullptr, sizeof options), "epjit_runtime_options");
    expect_null_named(epjit_exchange_config_init(nullptr, sizeof config), "epjit_exchange_config");
    expect_null_named(epjit_plan_options_init(nullptr, sizeof(epjit_plan_options)), "epjit_plan_options");
    expect_null_named(epjit_dispatch_options_init(nullptr, sizeof(epjit_dispatch_options)), "epjit_dispatch_options");
    expect_null_named(epjit_combine_options_init(nullptr, sizeof(epjit_combine_options)), "epjit_combine_options");
    expect_null_named(epjit_runtime_create(&options, nullptr), "out");
    expect_null_named(epjit_runtime_counters(runtime.get(), nullptr), "epjit_counters");
    expect_null_named(epjit_runtime_visit_launches(runtime.get(), nullptr, nullptr), "visitor");
    expect_null_named(epjit_communicator_host(runtime.get(), 2, nullptr), "out");
    expect_null_named(epjit_communicator_from_nccl(runtime.get(), nullptr, 0, nullptr, 0, &comm), "borrowed");
    const auto some = reinterpret_cast<epjit_nccl_comm>(&options);
    expect_null_named(epjit_communicator_from_nccl(runtime.get(), some, 0, nullptr, 2, &comm), "ranks");
    expect_null_named(epjit_communicator_unique_id(runtime.get(), nullptr), "unique_id");
    const std::int32_t devices[] = {0, 0};
    epjit_communicator* both[2] = {};
    expect_null_named(epjit_communicator_local(runtime.get(), devices, 2, nullptr), "out");
    expect_null_named(epjit_communicator_local(runtime.get(), nullptr, 2, both), "devices");
    expect_null_named(epjit_communicator_from_unique_id(runtime.get(), nullptr, 0, 2, 0, &comm), "unique_id");
    expect_null_named(epjit_communicator_get_info(communicator.get(), nullptr), "epjit_communicator_info");
    expect_null_named(epjit_exchange_create(communicator.get(), &config, nullptr), "out");
    epjit_exchange* no_exchange = nullptr;
    expect_null_named(epjit_exchange_create(communicator.get(), nullptr, &no_exchange), "epjit_exchange_config");
    expect_null_named(epjit_exchange_get_info(ex.get(), nullptr), "epjit_exchange_info");
    expect_null_named(epjit_exchange_get_config(ex.get(), nullptr), "epjit_exchange_config");
    expect_null_named(epjit_exchange_worst_case_rows(ex.get(), 0, nullptr, nullptr), "rows");
    expect_null_named(epjit_make_plan(ex.get(), plan_args, 2, nullptr, nullptr, nullptr), "plan");
    expect_null_named(epjit_make_plan(ex.get(), nullptr, 2, nullptr, nullptr, &none), "epjit_plan_args");
    expect_null_named(epjit_plan_get_view(plan.get(), 0, nullptr), "epjit_plan_view");
    expect_null_named(epjit_plan_get_status(plan.get(), nullptr), "epjit_plan_status");
    expect_null_named(epjit_dispatch(ex.get(), plan.get(), nullptr, 2, nullptr, nullptr), "epjit_dispatch_args");
    expect_null_named(epjit_combine(ex.get(), plan.get(), nullptr, 2, nullptr, nullptr), "epjit_combine_args");
    expect_null_named(epjit_weight_gradients(ex.get(), plan.get(), nullptr, 2, nullptr), "epjit_weight_gradient_args");
    std::int32_t value = 0;
    expect_null_named(epjit_parse(EPJIT_ENUM_DTYPE, nullptr, &value), "text");
    expect_null_named(epjit_parse(EPJIT_ENUM_DTYPE, "bf16", nullptr), "value");
    epjit_model_shape shape = sized<epjit_model_shape>();
    expect_null_named(epjit_find_model(nullptr, &shape), "name");
    expect_null_named(epjit_load_model_config(nullptr, &shape), "path");
    expect_null_named(epjit_parse_model_config(nullptr, "text", &shape), "json");
    expect_null_named(epjit_parse_model_config("{}", nullptr, &shape), "origin");
    expect_null_named(epjit_get_model(0, nullptr), "epjit_model_shape");
}

TEST_F(c_host, numbers_outside_an_enumeration_are_named_and_not_cut_to_it) {
    const auto refused = [&](epjit_exchange_config changed, const char* text) {
        epjit_exchange* made = nullptr;
        EXPECT_ERROR(epjit_exchange_create(communicator.get(), &changed, &made), EPJIT_ERROR_CONFIG, text);
    };
    epjit_exchange_config c = config;
    c.input_type = 256;
    refused(c, "epjit_exchange_config::input_type is 256");
    c = config;
    c.dispatch_type = -1;
    refused(c, "dispatch_type is -1");
    c = config;
    c.combine_type = 4;
    refused(c, "combine_type is 4");
    c = config;
    c.kind = 7;
    refused(c, "kind is 7");
    c = config;
    c.routing = 3;
    refused(c, "routing is 3");
    c = config;
    c.scales = 3;
    refused(c, "scales is 3");

    const handle<epjit_exchange> ex = make_exchange();
    const handle<epjit_plan> plan = make_plan(ex.get());
    std::int64_t rows = 0;
    epjit_plan_options o;
    ASSERT_OK(epjit_plan_options_init(&o, sizeof o));
    o.mode = 2;
    EXPECT_ERROR(epjit_exchange_worst_case_rows(ex.get(), 0, &o, &rows), EPJIT_ERROR_CONFIG, "mode is 2");
    dispatch_args[1].input.type = 300;
    EXPECT_ERROR(epjit_dispatch(ex.get(), plan.get(), dispatch_args, 2, nullptr, nullptr), EPJIT_ERROR_CONFIG,
                 "input.type is 300");
    epjit_combine_options reduce;
    ASSERT_OK(epjit_combine_options_init(&reduce, sizeof reduce));
    reduce.reduction = 3;
    EXPECT_ERROR(epjit_combine(ex.get(), plan.get(), combine_args, 2, &reduce, nullptr), EPJIT_ERROR_CONFIG,
                 "reduction is 3");
}

TEST_F(c_host, wrong_ranks_and_mismatched_arguments_are_errors_with_values) {
    const handle<epjit_exchange> ex = make_exchange(), other = make_exchange();
    const handle<epjit_plan> plan = make_plan(ex.get());
    epjit_communicator* comm = nullptr;
    EXPECT_ERROR(epjit_communicator_host(runtime.get(), 65, &comm), EPJIT_ERROR_CONFIG, "65 ranks");
    EXPECT_EQ(comm, nullptr);
    epjit_plan* none = nullptr;
    EXPECT_ERROR(epjit_make_plan(ex.get(), plan_args, 1, nullptr, nullptr, &none), EPJIT_ERROR_CONFIG,
                 "1 argument structs, the communicator drives 2");
    EXPECT_ERROR(epjit_make_plan(ex.get(), nullptr, 0, nullptr, nullptr, &none), EPJIT_ERROR_CONFIG,
                 "0 argument structs, the communicator drives 2");
    EXPECT_ERROR(epjit_make_plan(ex.get(), plan_args, 65, nullptr, nullptr, &none), EPJIT_ERROR_CONFIG,
                 "65 epjit_plan_args structs");
    plan_args[1].num_tokens = 5;
    EXPECT_ERROR(epjit_make_plan(ex.get(), plan_args, 2, nullptr, nullptr, &none), EPJIT_ERROR_CONFIG,
                 "rank 1 brings 5 tokens");
    EXPECT_EQ(none, nullptr);
    EXPECT_ERROR(epjit_dispatch(other.get(), plan.get(), dispatch_args, 2, nullptr, nullptr), EPJIT_ERROR_CONFIG,
                 "a plan of another exchange");
    dispatch_args[0].input.rows = 3;
    EXPECT_ERROR(epjit_dispatch(ex.get(), plan.get(), dispatch_args, 2, nullptr, nullptr), EPJIT_ERROR_CONFIG,
                 "3 rows, 4 are needed");
    EXPECT_ERROR(epjit_dispatch_receive(ex.get(), plan.get(), dispatch_args, 2, nullptr, nullptr), EPJIT_ERROR_CONFIG,
                 "3 rows");
    EXPECT_ERROR(epjit_combine_receive(ex.get(), plan.get(), combine_args, 2, nullptr, nullptr), EPJIT_ERROR_CONFIG,
                 "without its combine_send");
    epjit_plan_view view = sized<epjit_plan_view>();
    EXPECT_ERROR(epjit_plan_get_view(plan.get(), 2, &view), EPJIT_ERROR_CONFIG, "driven rank 2");
}

TEST_F(c_host, a_plan_whose_remaking_fails_is_empty_and_can_be_made_again) {
    const handle<epjit_exchange> ex = make_exchange();
    handle<epjit_plan> plan = make_plan(ex.get());
    epjit_plan* reused = plan.get();
    plan_args[0].num_tokens = 100;
    EXPECT_ERROR(epjit_make_plan(ex.get(), plan_args, 2, nullptr, nullptr, &reused), EPJIT_ERROR_CONFIG, "100 tokens");
    EXPECT_EQ(reused, plan.get());
    epjit_plan_view view = sized<epjit_plan_view>();
    EXPECT_ERROR(epjit_plan_get_view(plan.get(), 0, &view), EPJIT_ERROR_CONFIG, "empty plan");
    plan_args[0].num_tokens = 4;
    EXPECT_OK(epjit_make_plan(ex.get(), plan_args, 2, nullptr, nullptr, &reused));
    EXPECT_EQ(reused, plan.get());
    EXPECT_OK(epjit_plan_get_view(plan.get(), 0, &view));
    EXPECT_EQ(view.rows, 8);
}

TEST_F(c_host, every_kind_of_error_keeps_its_status) {
    epjit_exchange* none = nullptr;
    epjit_exchange_config c = config;
    c.combine_type = EPJIT_DTYPE_FP8_E4M3;
    EXPECT_ERROR(epjit_exchange_create(communicator.get(), &c, &none), EPJIT_ERROR_UNSUPPORTED, "combine_type fp8");
    EXPECT_THAT(last().remedy, HasSubstr("bf16"));
    EXPECT_THAT(last().message, Not(HasSubstr(last().remedy)));
    EXPECT_STREQ(last().text, epjit_last_error());

    epjit_plan_options o;
    ASSERT_OK(epjit_plan_options_init(&o, sizeof o));
    o.layout = EPJIT_LAYOUT_MASKED;
    const handle<epjit_exchange> ex = make_exchange();
    plan_args[0].capacity = plan_args[1].capacity = 1;
    epjit_plan* plan = nullptr;
    EXPECT_ERROR(epjit_make_plan(ex.get(), plan_args, 2, &o, nullptr, &plan), EPJIT_ERROR_CAPACITY,
                 "over the capacity");

    epjit_runtime_options options = quiet_options();
    options.cuda_library = "/nonexistent/libcuda.so.1";
    const handle<epjit_runtime> rt = make_runtime(options);
    epjit_communicator* comm = nullptr;
    EXPECT_ERROR(epjit_communicator_loopback(rt.get(), 2, 0, &comm), EPJIT_ERROR_LIBRARY, "/nonexistent/libcuda.so.1");
    EXPECT_THAT(last().log, StrEq(""));
    EXPECT_EQ(last().code, 0);

    options.log_level = 9;
    epjit_runtime* no_runtime = nullptr;
    EXPECT_ERROR(epjit_runtime_create(&options, &no_runtime), EPJIT_ERROR_CONFIG, "log_level is 9");
}

/// One rank on the fake driver.
class c_fake_gpu : public ::testing::Test {
   protected:
    void start(const char* nvrtc_mode) {
        setenv("EPJIT_FAKE_NVRTC_MODE", nvrtc_mode, 1);
        epjit_runtime_options options = quiet_options();
        options.cuda_library = EPJIT_FAKE_CUDA;
        options.nvrtc_library = EPJIT_FAKE_NVRTC_A;
        runtime = make_runtime(options);
        epjit_communicator* comm = nullptr;
        ASSERT_OK(epjit_communicator_loopback(runtime.get(), 1, 0, &comm));
        communicator.reset(comm);
    }
    epjit_status create(std::int32_t tokens, handle<epjit_exchange>& out) {
        epjit_exchange_config c;
        EXPECT_OK(epjit_exchange_config_init(&c, sizeof c));
        c.hidden = 64;
        c.num_experts = c.topk = 1;
        c.max_tokens_per_rank = tokens;
        epjit_exchange* made = nullptr;
        const epjit_status status = epjit_exchange_create(communicator.get(), &c, &made);
        out.reset(made);
        return status;
    }
    ~c_fake_gpu() override { unsetenv("EPJIT_FAKE_NVRTC_MODE"); }
    handle<epjit_runtime> runtime;
    handle<epjit_communicator> communicator;
};

TEST_F(c_fake_gpu, a_compile_error_has_log_options_and_source) {
    start("fail");
    handle<epjit_exchange> ex;
    ASSERT_OK(create(10, ex));
    EXPECT_ERROR(epjit_exchange_prepare(ex.get()), EPJIT_ERROR_COMPILE, "");
    EXPECT_THAT(last().log, Not(StrEq("")));
    EXPECT_THAT(last().options, HasSubstr("sm_90"));
    EXPECT_THAT(last().source, HasSubstr("#include"));
    EXPECT_ERROR(epjit_exchange_prepare(nullptr), EPJIT_ERROR_CONFIG, "exchange is null");
    EXPECT_THAT(last().log, StrEq("")) << "the next error replaces all of the last one";
}

TEST_F(c_fake_gpu, counters_and_launches_are_seen) {
    start("ok");
    handle<epjit_exchange> ex;
    ASSERT_OK(create(10, ex));
    ASSERT_OK(epjit_exchange_prepare(ex.get()));
    std::vector<std::int64_t> ids(10, 0);
    epjit_plan_args args = sized<epjit_plan_args>();
    args.num_tokens = 10;
    args.capacity = 10;
    args.routing = ids.data();
    epjit_plan_options o;
    ASSERT_OK(epjit_plan_options_init(&o, sizeof o));
    o.mode = EPJIT_MODE_STATIC;
    epjit_plan* made = nullptr;
    ASSERT_OK(epjit_make_plan(ex.get(), &args, 1, &o, nullptr, &made));
    const handle<epjit_plan> plan(made);
    epjit_counters before = sized<epjit_counters>(), after = before;
    ASSERT_OK(epjit_runtime_counters(runtime.get(), &before));
    EXPECT_GT(before.compiles, 0u);
    EXPECT_EQ(before.launches, 1u);
    for (int i = 0; i < 5; ++i) {
        ASSERT_OK(epjit_make_plan(ex.get(), &args, 1, &o, nullptr, &made));
    }
    ASSERT_OK(epjit_runtime_counters(runtime.get(), &after));
    EXPECT_EQ(after.launches, 6u);
    EXPECT_EQ(after.allocations, before.allocations);
    EXPECT_EQ(after.host_waits, 0u);
    std::string seen;
    ASSERT_OK(epjit_runtime_visit_launches(
        runtime.get(),
        [](void* user, const char* kernel, std::uint64_t launches) {
            *static_cast<std::string*>(user) += std::string(kernel) + "=" + std::to_string(launches) + " ";
        },
        &seen));
    EXPECT_THAT(seen, HasSubstr("plan_kernel"));
    EXPECT_THAT(seen, HasSubstr("=6"));
}

TEST_F(c_host, each_thread_has_its_own_last_error_and_success_leaves_it) {
    epjit_communicator* comm = nullptr;
    EXPECT_EQ(epjit_communicator_host(runtime.get(), 65, &comm), EPJIT_ERROR_CONFIG);
    std::thread([&] {
        EXPECT_STREQ(epjit_last_error(), "");
        EXPECT_EQ(last().status, EPJIT_OK);
        EXPECT_STREQ(last().remedy, "");
        epjit_communicator* mine = nullptr;
        EXPECT_EQ(epjit_communicator_host(runtime.get(), 0, &mine), EPJIT_ERROR_CONFIG);
        EXPECT_THAT(epjit_last_error(), HasSubstr("of 0 ranks"));
    }).join();
    EXPECT_THAT(epjit_last_error(), HasSubstr("of 65 ranks"));
    EXPECT_OK(epjit_communicator_host(runtime.get(), 1, &comm));
    EXPECT_THAT(epjit_last_error(), HasSubstr("of 65 ranks"));
    epjit_communicator_destroy(comm);
}

}  // namespace
}  // namespace epjit::tests
