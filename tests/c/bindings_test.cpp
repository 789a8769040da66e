// SPDX-License-Identifier: Apache-2.0
// What a binding in another language leans on: a program in C99, names, versions, log lines, lifetimes.
#include "epjit/epjit.hpp"
#include "tests/c/c99_layer.h"
#include "tests/c/support.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <string>

namespace epjit::tests {
namespace {

using ::testing::HasSubstr;

TEST(c_binding, a_whole_layer_in_c99) {
    const char* failure = epjit_test_c99_layer();
    EXPECT_EQ(failure, nullptr) << failure;
}

TEST(c_binding, version_is_the_librarys) {
    EXPECT_EQ(epjit_version(), runtime::version());
}

TEST(c_binding, names_are_those_of_the_command_line_and_parse_back) {
    EXPECT_STREQ(epjit_name(EPJIT_ENUM_STATUS, EPJIT_OK), "ok");
    EXPECT_STREQ(epjit_name(EPJIT_ENUM_STATUS, EPJIT_ERROR_OFFLINE_MISS), "offline_miss");
    EXPECT_STREQ(epjit_name(EPJIT_ENUM_STATUS, EPJIT_ERROR_CANCELLED), "cancelled");
    EXPECT_STREQ(epjit_name(EPJIT_ENUM_DTYPE, EPJIT_DTYPE_FP8_E4M3), "fp8");
    EXPECT_STREQ(epjit_name(EPJIT_ENUM_MODE, EPJIT_MODE_STATIC), "static");
    EXPECT_STREQ(epjit_name(EPJIT_ENUM_EXCHANGE_KIND, EPJIT_EXCHANGE_AUTO), "auto");
    EXPECT_STREQ(epjit_name(EPJIT_ENUM_LOG_LEVEL, EPJIT_LOG_DEBUG), "debug");
    int names = 0;
    for (std::int32_t e = EPJIT_ENUM_STATUS; e <= EPJIT_ENUM_PLAN_SOURCE; ++e) {
        EXPECT_STREQ(epjit_name(e, -1), "?");
        EXPECT_STREQ(epjit_name(e, 256), "?");
        for (std::int32_t v = 0; std::string(epjit_name(e, v)) != "?"; ++v, ++names) {
            std::int32_t parsed = -1;
            EXPECT_OK(epjit_parse(e, epjit_name(e, v), &parsed));
            EXPECT_EQ(parsed, v) << epjit_name(e, v);
        }
    }
    EXPECT_EQ(names, 13 + 4 + 3 + 4 + 3 + 3 + 2 + 3 + 4 + 2 + 7 + 4 + 4 + 3 + 6 + 3);
    std::int32_t value = -1;
    EXPECT_OK(epjit_parse(EPJIT_ENUM_LAYOUT, "expert-major", &value));
    EXPECT_EQ(value, EPJIT_LAYOUT_EXPERT_MAJOR);
    EXPECT_ERROR(epjit_parse(EPJIT_ENUM_DTYPE, "fp4", &value), EPJIT_ERROR_CONFIG, "'fp4' is no value");
    EXPECT_THAT(epjit_last_error(), HasSubstr("bf16, fp16, f32, fp8"));
    EXPECT_ERROR(epjit_parse(99, "bf16", &value), EPJIT_ERROR_CONFIG, "enumeration 99");
    EXPECT_STREQ(epjit_name(99, 0), "?");
}

TEST(c_binding, sizes_of_elements) {
    EXPECT_EQ(epjit_size_of(EPJIT_ENUM_DTYPE, EPJIT_DTYPE_BF16), 2);
    EXPECT_EQ(epjit_size_of(EPJIT_ENUM_DTYPE, EPJIT_DTYPE_FP8_E4M3), 1);
    EXPECT_EQ(epjit_size_of(EPJIT_ENUM_ID_TYPE, EPJIT_ID_I64), 8);
    EXPECT_EQ(epjit_size_of(EPJIT_ENUM_SCALE_TYPE, EPJIT_SCALE_NONE), 0);
    EXPECT_EQ(epjit_size_of(EPJIT_ENUM_DTYPE, 4), -1);
    EXPECT_EQ(epjit_size_of(EPJIT_ENUM_LAYOUT, 0), -1);
}

TEST(c_binding, models_are_listed_found_and_read) {
    const std::int32_t count = epjit_num_models();
    ASSERT_GT(count, 0);
    for (std::int32_t i = 0; i < count; ++i) {
        epjit_model_shape listed = sized<epjit_model_shape>(), found = listed;
        ASSERT_OK(epjit_get_model(i, &listed));
        ASSERT_OK(epjit_find_model(listed.name, &found));
        EXPECT_EQ(found.hidden, listed.hidden);
        EXPECT_GT(found.num_experts, 0);
        EXPECT_GE(found.num_experts, found.topk);
    }
    epjit_model_shape shape = sized<epjit_model_shape>();
    EXPECT_ERROR(epjit_get_model(count, &shape), EPJIT_ERROR_CONFIG, fmt::format("model {}", count));
    EXPECT_ERROR(epjit_find_model("no-such-model", &shape), EPJIT_ERROR_CONFIG, "no-such-model");
    EXPECT_OK(epjit_parse_model_config(
        R"({"hidden_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "torch_dtype": "float16"})", "a text",
        &shape));
    EXPECT_EQ(shape.hidden, 64);
    EXPECT_EQ(shape.num_experts, 8);
    EXPECT_EQ(shape.topk, 2);
    EXPECT_EQ(shape.token_type, EPJIT_DTYPE_FP16);
    EXPECT_EQ(shape.fp8_dispatch, 0);
    EXPECT_ERROR(epjit_parse_model_config("{", "a text", &shape), EPJIT_ERROR_CONFIG, "a text");
    EXPECT_ERROR(epjit_load_model_config("/nonexistent/config.json", &shape), EPJIT_ERROR_CONFIG, "/nonexistent");
}

TEST(c_binding, options_start_with_the_defaults_of_the_cpp_interface) {
    epjit_runtime_options r;
    ASSERT_OK(epjit_runtime_options_init(&r, sizeof r));
    EXPECT_EQ(r.struct_size, sizeof r);
    EXPECT_EQ(r.offline, -1);
    EXPECT_EQ(r.log_level, -1);
    EXPECT_EQ(r.cache_path, nullptr);
    epjit_exchange_config c;
    ASSERT_OK(epjit_exchange_config_init(&c, sizeof c));
    EXPECT_EQ(c.lanes, 1);
    EXPECT_EQ(c.combine_type, EPJIT_DTYPE_BF16);
    epjit_plan_options p;
    ASSERT_OK(epjit_plan_options_init(&p, sizeof p));
    EXPECT_EQ(p.alignment, 1);
    EXPECT_EQ(p.ids, EPJIT_ID_I64);
    epjit_dispatch_options d;
    ASSERT_OK(epjit_dispatch_options_init(&d, sizeof d));
    EXPECT_EQ(d.zero_padding, 1);
    EXPECT_EQ(d.zero_tail, 0);
    epjit_combine_options o;
    ASSERT_OK(epjit_combine_options_init(&o, sizeof o));
    EXPECT_EQ(o.reduction, EPJIT_REDUCTION_PER_RANK);
    handle<epjit_runtime> without_options = [] {
        epjit_runtime* made = nullptr;
        EXPECT_OK(epjit_runtime_create(nullptr, &made));
        return handle<epjit_runtime>(made);
    }();
}

TEST_F(c_host, what_was_made_can_be_asked_for) {
    epjit_communicator_info info = sized<epjit_communicator_info>();
    ASSERT_OK(epjit_communicator_get_info(communicator.get(), &info));
    EXPECT_EQ(info.num_ranks, 2);
    EXPECT_EQ(info.num_driven, 2);
    EXPECT_EQ(info.first_driven, 0);
    EXPECT_EQ(info.kind, EPJIT_EXCHANGE_HOST);
    const handle<epjit_exchange> ex = make_exchange();
    EXPECT_OK(epjit_exchange_prepare(ex.get()));
    EXPECT_OK(epjit_exchange_check(ex.get()));
    epjit_exchange_info made = sized<epjit_exchange_info>();
    ASSERT_OK(epjit_exchange_get_info(ex.get(), &made));
    EXPECT_EQ(made.kind, EPJIT_EXCHANGE_HOST);
    epjit_exchange_config seen = sized<epjit_exchange_config>();
    ASSERT_OK(epjit_exchange_get_config(ex.get(), &seen));
    EXPECT_EQ(seen.hidden, 8);
    EXPECT_EQ(seen.kind, EPJIT_EXCHANGE_HOST);
    EXPECT_EQ(seen.placement.num_slots, 4);
    EXPECT_EQ(seen.placement.rank_slots[1], 2);
    std::int64_t rows = 0;
    epjit_plan_options o;
    ASSERT_OK(epjit_plan_options_init(&o, sizeof o));
    ASSERT_OK(epjit_exchange_worst_case_rows(ex.get(), 0, &o, &rows));
    EXPECT_EQ(rows, 16);
    o.layout = EPJIT_LAYOUT_FLAT;
    ASSERT_OK(epjit_exchange_worst_case_rows(ex.get(), 1, &o, &rows));
    EXPECT_EQ(rows, 8);
}

/// Without NCCL and a driver, real ranks cannot be: the error names a library that was looked for.
TEST_F(c_host, communicators_of_real_ranks_name_the_library_that_is_missing) {
    epjit_runtime_options options = quiet_options();
    options.cuda_library = "/nonexistent/libcuda.so.1";
    options.nccl_library = "/nonexistent/libnccl.so.2";
    const handle<epjit_runtime> rt = make_runtime(options);
    epjit_communicator* made = communicator.get();
    unsigned char id[128] = {};
    EXPECT_ERROR(epjit_communicator_unique_id(rt.get(), id), EPJIT_ERROR_LIBRARY, "/nonexistent/");
    EXPECT_ERROR(epjit_communicator_from_unique_id(rt.get(), id, 0, 2, 0, &made), EPJIT_ERROR_LIBRARY, "/nonexistent/");
    EXPECT_EQ(made, nullptr);
    const std::int32_t devices[] = {0, 1};
    epjit_communicator* both[2] = {communicator.get(), communicator.get()};
    EXPECT_ERROR(epjit_communicator_local(rt.get(), devices, 2, both), EPJIT_ERROR_LIBRARY, "/nonexistent/");
    EXPECT_EQ(both[0], nullptr);
    EXPECT_EQ(both[1], nullptr);
    int not_used = 0;
    EXPECT_ERROR(
        epjit_communicator_from_nccl(rt.get(), reinterpret_cast<epjit_nccl_comm>(&not_used), 0, nullptr, 0, &made),
        EPJIT_ERROR_LIBRARY, "/nonexistent/");
    for (const char* variable : {"RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"}) {
        unsetenv(variable);
    }
    EXPECT_ERROR(epjit_communicator_from_launcher(rt.get(), &made), EPJIT_ERROR_CONFIG, "RANK");
    EXPECT_EQ(made, nullptr);
}

TEST_F(c_host, outputs_are_lent) {
    epjit_tensor lent[2] = {};
    const handle<epjit_exchange> none = make_exchange();
    EXPECT_ERROR(epjit_exchange_window_output(none.get(), 0, 0, lent), EPJIT_ERROR_CONFIG, "lends none");
    EXPECT_ERROR(epjit_exchange_window_output(none.get(), 0, 0, nullptr), EPJIT_ERROR_CONFIG, "out");
    config.window_rows = 16;
    config.num_sms = 3;
    config.expansion_sms = 5;
    const handle<epjit_exchange> ex = make_exchange();
    epjit_dispatch_options into;
    ASSERT_OK(epjit_dispatch_options_init(&into, sizeof into));
    EXPECT_EQ(into.into_window, 0);
    EXPECT_EQ(into.follows_plan, 0);
    into.follows_plan = 1;
    into.into_window = 1;
    const handle<epjit_plan> p = make_plan(ex.get());
    EXPECT_ERROR(epjit_dispatch(ex.get(), p.get(), dispatch_args, 2, &into, nullptr), EPJIT_ERROR_CONFIG,
                 "is not the one lent");
    for (int r = 0; r < 2; ++r) {
        ASSERT_OK(epjit_exchange_window_output(ex.get(), r, 0, &lent[r]));
        EXPECT_EQ(lent[r].rows, 16);
        EXPECT_EQ(lent[r].columns, 8);
        EXPECT_EQ(lent[r].row_stride, 0);
        EXPECT_EQ(lent[r].type, EPJIT_DTYPE_BF16);
        dispatch_args[r].output = lent[r];
    }
    EXPECT_NE(lent[0].data, lent[1].data);
    EXPECT_OK(epjit_dispatch(ex.get(), p.get(), dispatch_args, 2, &into, nullptr));
    epjit_exchange_config seen = sized<epjit_exchange_config>();
    ASSERT_OK(epjit_exchange_get_config(ex.get(), &seen));
    EXPECT_EQ(seen.window_rows, 16);
    EXPECT_EQ(seen.num_sms, 3);
    EXPECT_EQ(seen.expansion_sms, 5);
    EXPECT_ERROR(epjit_exchange_window_output(ex.get(), 2, 0, lent), EPJIT_ERROR_CONFIG, "driven rank 2");
}

TEST(c_binding, log_lines_reach_the_callback_also_after_the_runtimes_handle_is_gone) {
    struct sink {
        std::string text;
        int lines = 0;
        epjit_log_level worst = EPJIT_LOG_DEBUG;
    } seen;
    epjit_runtime_options options = quiet_options();
    // A file where the cache folder should be: used without a disk, with one warning.
    const std::string file = testing::TempDir() + fmt::format("epjit_c_log_{}", ::getpid());
    std::fclose(std::fopen(file.c_str(), "w"));
    options.cache_path = file.c_str();
    options.cuda_library = EPJIT_FAKE_CUDA;
    options.nvrtc_library = EPJIT_FAKE_NVRTC_A;
    options.log_level = EPJIT_LOG_DEBUG;
    options.log_user = &seen;
    options.log = [](void* user, epjit_log_level level, const char* line) {
        auto& s = *static_cast<sink*>(user);
        s.text += std::string(line) + "\n";
        s.worst = std::min(s.worst, level);
        ++s.lines;
    };
    handle<epjit_runtime> rt = make_runtime(options);
    epjit_communicator* comm = nullptr;
    ASSERT_OK(epjit_communicator_loopback(rt.get(), 1, 0, &comm));
    handle<epjit_communicator> communicator(comm);
    rt.reset();
    epjit_exchange_config c;
    ASSERT_OK(epjit_exchange_config_init(&c, sizeof c));
    c.hidden = 64;
    c.num_experts = c.topk = 1;
    c.max_tokens_per_rank = 4;
    epjit_exchange* ex = nullptr;
    ASSERT_OK(epjit_exchange_create(comm, &c, &ex));
    communicator.reset();
    EXPECT_OK(epjit_exchange_prepare(ex));
    epjit_exchange_destroy(ex);
    EXPECT_GT(seen.lines, 0);
    EXPECT_LE(seen.worst, EPJIT_LOG_WARN);
    EXPECT_THAT(seen.text, HasSubstr(file));
    std::filesystem::remove(file);
}

}  // namespace
}  // namespace epjit::tests
