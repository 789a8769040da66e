// SPDX-License-Identifier: Apache-2.0
// What is in a variant's key and what is not: requirements R12, R14, R15 and R16 of a cache that can be
// shared.
#include "epjit/error.hpp"
#include "epjit/jit/spec.hpp"
#include "epjit/jit/templates.hpp"
#include "epjit/jit/variants.hpp"
#include "jit/program/program.hpp"
#include "tests/jit/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <clocale>
#include <filesystem>
#include <functional>
#include <set>

namespace epjit::jit {
namespace {

constexpr target_arch hopper{90, 'a'};

variant_spec dispatch_variant() {
    return scatter_spec(hopper, exchange_kind::loopback, 8, 2048, 8, dtype::bf16, dtype::bf16, scale_type::none);
}

TEST(arch, text_parses_back_and_other_text_does_not) {
    for (const char* text : {"sm_80", "sm_90", "sm_90a", "sm_100a", "sm_100f", "sm_103a", "sm_120a"}) {
        const auto arch = target_arch::parse(text);
        ASSERT_TRUE(arch) << text;
        EXPECT_EQ(arch->text(), text);
    }
    for (const char* text : {"", "sm_", "90a", "sm_9", "sm_090", "sm_90b", "sm_90aa", "SM_90", "sm_-90", "sm_ 90",
                             "sm_70000", "compute_90", "sm_90a "}) {
        EXPECT_EQ(target_arch::parse(text), std::nullopt) << text;
    }
}

TEST(spec, describes_itself_in_one_line) {
    EXPECT_EQ(describe(plan_spec(hopper, 256, 256, 8, 8, false)), "plan sm_90a E=256 S=256 R=8 K=8 dense threads=512");
    variant_spec dispatch = dispatch_variant();
    dispatch.stages = 14;  // whatever the knobs of the day are
    dispatch.threads = 256;
    EXPECT_EQ(describe(dispatch), "permute+dispatch sm_90a H=2048 R<=8 K=8 type=bf16 threads=256 stages=14");
    EXPECT_EQ(describe(scatter_spec({80, 0}, exchange_kind::loopback, 1, 7168, 8, dtype::bf16, dtype::fp8_e4m3,
                                    scale_type::ue8m0)),
              "permute+dispatch sm_80 H=7168 R<=8 K=8 type=bf16->fp8 scales=ue8m0 threads=224 stages=0");
}

TEST(key, every_field_of_a_spec_changes_it) {
    const auto set = tests::tiny_templates();
    const variant_spec base = dispatch_variant();
    const std::vector<std::function<void(variant_spec&)>> edits = {
        [](variant_spec& s) { s.kind = kernel_kind::plan; },
        [](variant_spec& s) { s.kind = kernel_kind::unpermute_combine; },
        [](variant_spec& s) { s.kind = kernel_kind::weight_gradient; },
        [](variant_spec& s) { s.exchange = exchange_kind::lsa; },
        [](variant_spec& s) { s.arch.number = 100; },
        [](variant_spec& s) { s.arch.suffix = 0; },
        [](variant_spec& s) { s.arch.suffix = 'f'; },
        [](variant_spec& s) { s.input = dtype::fp16; },
        [](variant_spec& s) { s.output = dtype::fp8_e4m3; },
        [](variant_spec& s) { s.scales = scale_type::f32; },
        [](variant_spec& s) { s.scales = scale_type::ue8m0; },
        [](variant_spec& s) { s.sparse = true; },
        [](variant_spec& s) { ++s.hidden; },
        [](variant_spec& s) { ++s.num_experts; },
        [](variant_spec& s) { ++s.num_slots; },
        [](variant_spec& s) { ++s.num_ranks; },
        [](variant_spec& s) { ++s.topk; },
        [](variant_spec& s) { s.threads += 32; },
        [](variant_spec& s) { --s.stages; },
    };
    std::set<digest> keys{variant_key(base, set)};
    for (std::size_t i = 0; i < edits.size(); ++i) {
        variant_spec edited = base;
        edits[i](edited);
        ASSERT_NE(edited, base) << i;
        EXPECT_TRUE(keys.insert(variant_key(edited, set)).second) << "edit " << i;
    }
    EXPECT_EQ(variant_key(base, set), variant_key(dispatch_variant(), set));
}

TEST(key, sparse_and_dense_routing_and_two_topks_never_share_one) {
    const auto set = tests::tiny_templates();
    std::set<digest> keys;
    for (const bool sparse : {false, true}) {
        for (const int topk : {1, 2, 8}) {
            EXPECT_TRUE(keys.insert(variant_key(plan_spec(hopper, 64, 64, 8, topk, sparse), set)).second);
        }
    }
}

TEST(key, follows_every_byte_of_every_template_the_program_includes) {
    const tests::scratch_folder folder;
    tests::write_tiny_templates(folder);
    const auto before = template_set::from_directory(folder.path());
    const variant_spec spec = dispatch_variant();
    std::set<digest> keys{variant_key(spec, before)};
    for (const auto& [name, text] : before.closure(template_root(spec.kind))) {
        folder.write(name, std::string(text) + " ");
        EXPECT_TRUE(keys.insert(variant_key(spec, template_set::from_directory(folder.path()))).second) << name;
        folder.write(name, text);
    }
    EXPECT_EQ(variant_key(spec, before), variant_key(spec, template_set::from_directory(folder.path())));
}

TEST(key, does_not_follow_environment_folder_locale_or_install_place) {
    const tests::scratch_folder one;
    tests::write_tiny_templates(one);
    const variant_spec spec = dispatch_variant();
    const digest expected = variant_key(spec, template_set::from_directory(one.path()));
    const program text = make_program(spec);

    const tests::scratch_folder two;
    tests::write_tiny_templates(two);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(two.path())) {
        std::filesystem::last_write_time(entry.path(), std::filesystem::file_time_type::min());
    }
    const tests::scoped_env tmp("TMPDIR", two.path().c_str());
    const tests::scoped_env home("HOME", "/nonexistent");
    const tests::scoped_env path("PATH", nullptr);
    const tests::scoped_env cuda("CUDA_HOME", "/nonexistent");
    const tests::scoped_env include("CPATH", "/nonexistent");
    const tests::scoped_env lc("LC_ALL", "de_DE.UTF-8");
    const char* had = std::setlocale(LC_ALL, "");  // takes effect where the locale exists
    (void)had;
    const auto cwd = std::filesystem::current_path();
    std::filesystem::current_path(two.path());
    EXPECT_EQ(variant_key(spec, template_set::from_directory(".")), expected);
    EXPECT_EQ(make_program(spec).source, text.source);
    std::filesystem::current_path(cwd);
    std::setlocale(LC_ALL, "C");
    for (const std::string& option : text.options) {
        EXPECT_EQ(option.find('/'), std::string::npos) << option << " holds a path";
    }
}

TEST(program, is_made_of_enumerators_and_numbers_only) {
    const program p = make_program(
        scatter_spec(hopper, exchange_kind::loopback, 8, 7168, 8, dtype::bf16, dtype::fp8_e4m3, scale_type::f32));
    EXPECT_EQ(p.source,
              "#include \"rows/scatter.cuh\"\n\nnamespace epjit::templates {\ninline constexpr "
              "scatter_config config{\n"
              "    .hidden = 7168,\n    .num_ranks = 8,\n    .topk = 8,\n    .input = element::bf16,\n"
              "    .output = element::fp8_e4m3,\n    .scales = group_scale::f32,\n    .threads = 224,\n"
              "    .stages = 0,\n    .movers = 0,\n};\n}  // namespace epjit::templates\n");
    EXPECT_THAT(p.options,
                testing::ElementsAre("--gpu-architecture=sm_90a", "-std=c++20", "--fmad=false", "--ptxas-options=-v"));
    ASSERT_EQ(p.kernels.size(), 1u);
    EXPECT_EQ(p.kernels[0].name, "scatter_kernel");
    // The bulk-copy form exists only where rows can travel unconverted.
    EXPECT_EQ(make_program(dispatch_variant()).kernels.size(), 2u);
}

}  // namespace
}  // namespace epjit::jit
