// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/model.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/variants.hpp"
#include "tests/jit/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

namespace epjit::jit {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::string config(const std::string& name) {
    return std::string(EPJIT_TEST_CONFIGS) + "/" + name + ".json";
}

TEST(models, are_sorted_valid_and_named_once) {
    const auto models = builtin_models();
    EXPECT_GE(models.size(), 25u);
    std::set<std::string> names;
    for (const auto& m : models) {
        EXPECT_TRUE(names.insert(m.name).second) << m.name;
        EXPECT_EQ(m.source, "built-in");
        EXPECT_EQ(m.hidden % 64, 0) << m.name;
        EXPECT_GE(m.num_experts, m.topk) << m.name;
        EXPECT_NO_THROW(list_variants({m, {1, 8, 64}, {{90, 'a'}}, variant_set::all})) << m.name;
        EXPECT_EQ(find_model(m.name), m);
    }
    EXPECT_TRUE(std::is_sorted(models.begin(), models.end(), [](auto& a, auto& b) { return a.name < b.name; }));
}

TEST(models, have_the_published_shapes) {
    const auto shape = [](const char* name) {
        const auto& m = find_model(name);
        return std::tuple(m.hidden, m.num_experts, m.topk, m.fp8_dispatch);
    };
    EXPECT_EQ(shape("deepseek-v3"), std::tuple(7168, 256, 8, true));
    EXPECT_EQ(shape("deepseek-v2-lite"), std::tuple(2048, 64, 6, false));
    EXPECT_EQ(shape("kimi-k2"), std::tuple(7168, 384, 8, true));
    EXPECT_EQ(shape("qwen3-30b-a3b"), std::tuple(2048, 128, 8, false));
    EXPECT_EQ(shape("qwen3-next-80b-a3b"), std::tuple(2048, 512, 10, false));
    EXPECT_EQ(shape("gpt-oss-120b"), std::tuple(2880, 128, 4, false));
    EXPECT_EQ(shape("mixtral-8x7b"), std::tuple(4096, 8, 2, false));
    EXPECT_EQ(find_model("deepseek-v3.2").fp8_scales, scale_type::ue8m0);
}

TEST(models, are_found_by_hyphen_underscore_and_case_alike) {
    EXPECT_EQ(find_model("Qwen3_30B-A3B").name, "qwen3-30b-a3b");
    EXPECT_THAT([] { find_model("deepseek"); },
                ThrowsMessage<config_error>(AllOf(HasSubstr("\"deepseek\""), HasSubstr("deepseek-v3"))));
    EXPECT_THAT([] { find_model("mixtral-8x7"); }, ThrowsMessage<config_error>(HasSubstr("mixtral-8x7b")));
    EXPECT_THAT([] { find_model("qwen3-30b-a3"); }, ThrowsMessage<config_error>(HasSubstr("near it: qwen3-30b-a3b")));
    EXPECT_THAT([] { find_model("zzzzzzzzzzzzzzzzzzzzzz"); },
                ThrowsMessage<config_error>(AllOf(testing::Not(HasSubstr("near")), HasSubstr("epjit models"))));
    EXPECT_THROW(find_model(""), config_error);
    EXPECT_THROW(find_model(std::string(1 << 20, 'x')), config_error);
}

/// Every run that a model's set promises to serve is in it: no miss after `warm`.
void expect_runs_listed(const model_shape& m, variant_set set, std::int32_t ranks, std::span<const dtype> types) {
    const target_arch arch{90, 'a'};
    const auto list = list_variants({m, {ranks}, {arch}, set});
    const std::set<variant_spec> listed(list.begin(), list.end());
    const bool all = set == variant_set::all;
    run_request run;
    run.hidden = m.hidden;
    run.num_experts = m.num_experts;
    run.num_slots = m.num_experts;
    run.topk = m.topk;
    run.num_ranks = ranks;
    run.arch = arch;
    std::size_t runs = 0;
    const auto expect_run = [&] {
        ++runs;
        for (const variant_spec& spec : run_variants(run)) {
            EXPECT_TRUE(listed.contains(spec)) << m.name << ": " << describe(spec);
        }
    };
    for (const routing_form routing : {routing_form::dense, routing_form::slots, routing_form::sparse}) {
        if (routing == routing_form::sparse && !all) {
            continue;
        }
        run.routing = routing;
        for (const dtype type : types) {
            run.combine = type;
            run.input = type;
            run.wire = type;
            run.scales = scale_type::none;
            expect_run();
            for (const scale_type scales : {scale_type::f32, scale_type::ue8m0}) {
                if (!all && (!m.fp8_dispatch || scales != m.fp8_scales)) {
                    continue;
                }
                run.wire = dtype::fp8_e4m3;
                run.scales = scales;
                expect_run();  // the fused quantiser
                run.input = dtype::fp8_e4m3;
                expect_run();  // rows that the caller has quantised
                run.input = type;
            }
        }
    }
    EXPECT_GE(runs, all ? 45u : 2u);
}

TEST(models, every_run_finds_its_variants_in_the_warmed_set) {
    constexpr dtype every[] = {dtype::bf16, dtype::fp16, dtype::f32};
    for (const model_shape& m : builtin_models()) {
        for (const std::int32_t ranks : {1, 2, 8, 64}) {
            expect_runs_listed(m, variant_set::base, ranks, std::span(&m.token_type, 1));
            expect_runs_listed(m, variant_set::all, ranks, every);
        }
    }
}

struct good_config {
    const char* file;
    int hidden, num_experts, topk;
    dtype type = dtype::bf16;
    bool fp8 = false;
    scale_type scales = scale_type::f32;
};

TEST(configs, of_every_family_give_their_shape) {
    const good_config cases[] = {
        {"deepseek_v3", 7168, 256, 8, dtype::bf16, true},
        {"deepseek_v32", 7168, 256, 8, dtype::bf16, true, scale_type::ue8m0},
        {"qwen3_moe", 2048, 128, 8},
        {"mixtral", 4096, 8, 2},
        {"dbrx", 6144, 16, 4},
        {"llama4", 5120, 16, 1},
        {"ernie_vl", 2560, 64, 6},
        {"hunyuan", 4096, 64, 8},
        {"lists_with_dense_layers", 4096, 64, 8},
        {"gpt_oss", 2880, 128, 4},
        {"kimi_linear", 2304, 256, 8},
        {"vision_language_config", 2048, 64, 6, dtype::fp16},
        {"nested_twice", 2048, 128, 8},
        {"hidden_above_section", 1024, 32, 4},
        {"sampling_top_k", 2048, 60, 4},
        {"only_top_k", 2048, 48, 3},
        {"no_dtype", 1024, 32, 8},
        {"null_dtype", 1024, 32, 8, dtype::f32},
        {"fp8_per_channel", 1024, 32, 8},
        {"fp8_other_block", 1024, 32, 8},
        {"fp8_compressed_tensors", 4096, 128, 8, dtype::bf16, true},
        {"int4_compressed_tensors", 4096, 128, 8},
    };
    for (const auto& c : cases) {
        SCOPED_TRACE(c.file);
        const auto m = load_model_config(config(c.file));
        EXPECT_EQ(m.hidden, c.hidden);
        EXPECT_EQ(m.num_experts, c.num_experts);
        EXPECT_EQ(m.topk, c.topk);
        EXPECT_EQ(m.token_type, c.type);
        EXPECT_EQ(m.fp8_dispatch, c.fp8);
        EXPECT_EQ(m.fp8_scales, c.scales);
        EXPECT_EQ(m.source, config(c.file));
        EXPECT_FALSE(m.name.empty());
    }
}

TEST(configs, that_cannot_be_used_say_what_was_looked_for_and_found) {
    const std::pair<const char*, std::vector<const char*>> cases[] = {
        {"bad_dense",
         {"no mixture of experts", "n_routed_experts", "model_type = \"llama\"", "hidden_size = 4096", "dense"}},
        {"bad_dense_one_expert", {"no mixture of experts", "num_experts = 1"}},
        {"bad_empty", {"it is empty"}},
        {"bad_blank", {"it is empty"}},
        {"bad_truncated", {"not JSON or was cut short"}},
        {"bad_not_json", {"it is not JSON", "byte"}},
        {"bad_array", {"array, not an object"}},
        {"bad_empty_object", {"no mixture of experts", "no key at all"}},
        {"bad_string_experts", {"num_experts is \"128\" (string), not an integer"}},
        {"bad_float_hidden", {"hidden_size is 4096.5 (number), not an integer"}},
        {"bad_bool_topk", {"num_experts_per_tok is true (boolean), not an integer"}},
        {"bad_object_topk", {"num_experts_per_tok is", "(object), not an integer"}},
        {"bad_list_element", {"num_experts is \"64\" (string), not an integer in every layer"}},
        {"bad_hidden_differs", {"hidden_size is [4096,2048]", "same in every layer"}},
        {"bad_topk_above_experts", {"num_experts_per_tok is 8 but num_experts is 4"}},
        {"bad_negative_hidden", {"hidden_size is -4096, which is negative"}},
        {"bad_zero_hidden", {"hidden_size is 0", "1 to 262144"}},
        {"bad_zero_topk", {"num_experts_per_tok is 0", "1 to 32"}},
        {"bad_too_many_experts", {"num_experts is 4096", "1 to 2048"}},
        {"bad_too_large_topk", {"num_experts_per_tok is 64", "1 to 32"}},
        {"bad_absurd_hidden", {"hidden_size is"}},
        {"bad_huge_hidden", {"hidden_size is 9000000000", "1 to 262144"}},
        {"bad_two_values", {"n_routed_experts is 128 but num_experts is 64", "two values"}},
        {"bad_no_topk", {"no experts per token", "num_experts_per_tok", "num_experts = 64"}},
        {"bad_no_hidden", {"no hidden size", "hidden_size, d_model", "num_experts = 64"}},
        {"bad_dtype_name", {"torch_dtype is \"int8\"", "bfloat16"}},
        {"bad_dtype_type", {"torch_dtype is 16"}},
        {"bad_quantization", {"quantization_config is \"fp8\" (string), not an object"}},
        {"bad_block_size", {"quantization_config.weight_block_size is 128, not two integers"}},
    };
    std::size_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(EPJIT_TEST_CONFIGS)) {
        files += entry.path().filename().string().starts_with("bad_");
    }
    EXPECT_EQ(files, std::size(cases)) << "a bad config without a case";
    for (const auto& [file, parts] : cases) {
        SCOPED_TRACE(file);
        try {
            const auto m = load_model_config(config(file));
            ADD_FAILURE() << "gave H=" << m.hidden << " E=" << m.num_experts << " K=" << m.topk;
        } catch (const config_error& e) {
            EXPECT_THAT(e.what(), HasSubstr(config(file)));
            for (const char* part : parts) {
                EXPECT_THAT(e.what(), HasSubstr(part));
            }
        }
    }
}

TEST(configs, cut_at_any_byte_are_errors_and_never_another_shape) {
    const std::string whole = R"({"hidden_size": 4096, "num_experts": 64, "num_experts_per_tok": 8})";
    EXPECT_EQ(parse_model_config(whole, "whole").num_experts, 64);
    for (std::size_t n = 0; n < whole.size(); ++n) {
        EXPECT_THROW(parse_model_config(whole.substr(0, n), "cut"), config_error) << n;
    }
}

TEST(configs, survive_any_bytes) {
    const std::string whole = R"({"hidden_size":4096,"num_experts":[64,64],"ffn_config":{"top_k":8},"dtype":"half"})";
    for (std::size_t at = 0; at < whole.size(); ++at) {
        for (int bit = 0; bit < 8; ++bit) {
            std::string text = whole;
            text[at] = static_cast<char>(text[at] ^ (1 << bit));
            try {
                (void)parse_model_config(text, "flipped");
            } catch (const config_error&) {
            }
        }
    }
    EXPECT_THROW(parse_model_config(std::string(100'000, '['), "deep"), config_error);
    EXPECT_THROW(parse_model_config(std::string("{\"hidden_size\"\0:1}", 18), "nul"), config_error);
    EXPECT_EQ(parse_model_config("\xEF\xBB\xBF{\"hidden_size\":8,\"num_experts\":2,\"moe_k\":1}", "bom").topk, 1);
}

TEST(configs, that_cannot_be_read_say_why) {
    EXPECT_THAT([] { load_model_config("/nonexistent/config.json"); },
                ThrowsMessage<config_error>(AllOf(HasSubstr("/nonexistent/config.json"), HasSubstr("No such file"))));
    EXPECT_THAT([] { load_model_config(EPJIT_TEST_CONFIGS); },
                ThrowsMessage<config_error>(AllOf(HasSubstr("is a directory"), HasSubstr("config.json"))));
    EXPECT_THAT([] { load_model_config("/dev/zero"); }, ThrowsMessage<config_error>(HasSubstr("more than")));
}

TEST(configs, without_a_name_are_named_after_their_file) {
    EXPECT_EQ(load_model_config(config("no_dtype")).name, "no_dtype");
    EXPECT_EQ(load_model_config(config("mixtral")).name, "mixtral");
}

}  // namespace
}  // namespace epjit::jit
