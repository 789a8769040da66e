// SPDX-License-Identifier: Apache-2.0
// The real NVRTC with templates of a few lines. Skips where no NVRTC is found.
#include "epjit/jit/compiler.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/variants.hpp"
#include "jit/nvrtc/elf.hpp"
#include "tests/jit/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <map>

namespace epjit::jit {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

constexpr target_arch hopper{90, 'a'};

class compiling : public testing::Test {
   protected:
    void SetUp() override {
        tests::write_tiny_templates(folder_);
        if (!reopen()) {
            GTEST_SKIP() << "no NVRTC: " << reason_;
        }
    }

    /// Reads the folder again.
    bool reopen() {
        templates_.emplace(template_set::from_directory(folder_.path()));
        compiler_ = tests::real_compiler(*templates_, reason_);
        return compiler_ != nullptr;
    }

    compile_job job(const variant_spec& spec) { return {spec, variant_key(spec, *templates_)}; }
    compile_job plan_job(int num_experts = 64, target_arch arch = hopper) {
        return job(plan_spec(arch, num_experts, num_experts, 8, 4, false));
    }

    tests::scratch_folder folder_;
    std::optional<template_set> templates_;
    std::shared_ptr<compiler> compiler_;
    std::string reason_;
};

TEST_F(compiling, gives_a_cubin_with_all_that_an_artifact_promises) {
    const compile_job wanted = plan_job(64);
    const artifact made = compiler_->compile(wanted, 60s);
    EXPECT_EQ(made.key, wanted.key);
    EXPECT_EQ(made.compiler, compiler_->identity());
    EXPECT_EQ(made.spec, describe(wanted.spec));
    EXPECT_EQ(made.arch, "sm_90a");
    ASSERT_EQ(made.kernels.size(), 1u);
    EXPECT_EQ(made.kernels[0].name, "plan_kernel");
    EXPECT_THAT(made.kernels[0].lowered, HasSubstr("plan_kernel"));
    EXPECT_GT(made.kernels[0].registers, 0u);
    EXPECT_EQ(made.kernels[0].shared_bytes, 64u * 4);
    EXPECT_EQ(made.kernels[0].spill_bytes, 0u);
    EXPECT_TRUE(is_elf(made.cubin));
    const std::string_view image(reinterpret_cast<const char*>(made.cubin.data()), made.cubin.size());
    EXPECT_NE(image.find(made.kernels[0].lowered), std::string_view::npos) << "the cubin lacks the symbol";
    EXPECT_THAT(made.source, HasSubstr(".num_experts = 64"));
    EXPECT_THAT(made.options, HasSubstr("--gpu-architecture=sm_90a"));
    EXPECT_THAT(made.options, Not(HasSubstr("/")));
    EXPECT_THAT(made.log, HasSubstr("registers"));
    EXPECT_EQ(made.library_version, EPJIT_VERSION);
    EXPECT_EQ(made.template_digest, templates_->closure_digest("plan/plan.cuh").hex());
    EXPECT_GT(made.compile_ms, 0);
    EXPECT_EQ(made.spill_exception, "");
}

TEST_F(compiling, gives_each_kernel_of_a_program_its_own_resources) {
    const artifact made = compiler_->compile(
        job(scatter_spec(hopper, exchange_kind::loopback, 8, 2048, 4, dtype::bf16, dtype::bf16, scale_type::none)),
        60s);
    ASSERT_EQ(made.kernels.size(), 2u);
    EXPECT_EQ(made.kernels[0].name, "scatter_kernel");
    EXPECT_EQ(made.kernels[1].name, "scatter_bulk_kernel");
    EXPECT_NE(made.kernels[0].lowered, made.kernels[1].lowered);
    EXPECT_GT(made.kernels[1].registers, 0u);
}

TEST_F(compiling, is_deterministic_and_blind_to_files_beside_the_process) {
    const artifact first = compiler_->compile(plan_job(), 60s);
    // A decoy where NVRTC would look if it looked on the disk.
    const tests::scratch_folder decoy;
    for (const char* name : {"plan/plan.cuh", "plan/plan_layout.cuh", "base/types.cuh"}) {
        decoy.write(name, "#error taken from the disk\n");
    }
    const auto cwd = std::filesystem::current_path();
    std::filesystem::current_path(decoy.path());
    const artifact second = compiler_->compile(plan_job(), 60s);
    std::filesystem::current_path(cwd);
    EXPECT_TRUE(first.cubin == second.cubin);
    EXPECT_EQ(first.kernels, second.kernels);
}

TEST_F(compiling, failure_carries_the_first_error_line_log_options_and_source) {
    folder_.write("plan/plan.cuh",
                  "#include \"plan/plan_layout.cuh\"\nnamespace epjit::templates {\ntemplate <plan_config Config>\n"
                  "__global__ void plan_kernel(int* out) { *out = no_such_name; }\n}\n");
    ASSERT_TRUE(reopen());
    try {
        compiler_->compile(plan_job(), 60s);
        FAIL() << "compiled";
    } catch (const compile_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("compiling plan sm_90a E=64"));
        EXPECT_THAT(e.what(), HasSubstr("plan/plan.cuh(4): error: identifier \"no_such_name\" is undefined"));
        EXPECT_THAT(e.log(), HasSubstr("1 error detected"));
        EXPECT_THAT(e.options(), HasSubstr("--fmad=false"));
        EXPECT_THAT(e.source(), HasSubstr("#include \"plan/plan.cuh\""));
    }
}

TEST_F(compiling, a_template_that_reaches_for_a_toolkit_header_fails_by_name) {
    folder_.write("plan/deep.cuh", "#include <cuda_fp8.h>\n");
    folder_.write("plan/other.cuh", "#include \"plan/deep.cuh\"\n");
    const auto set = template_set::from_directory(folder_.path());
    EXPECT_THAT([&] { (void)set.closure("plan/other.cuh"); },
                ThrowsMessage<config_error>(AllOf(HasSubstr("plan/deep.cuh line 1"), HasSubstr("<cuda_fp8.h>"))));
}

TEST_F(compiling, an_unknown_target_is_refused_with_the_known_ones) {
    const auto targets = compiler_->targets();
    EXPECT_THAT(targets, testing::Contains(target_arch{80, 0}));
    EXPECT_THAT(
        [&] {
            compiler_->compile(plan_job(64, {999, 0}), 60s);
        },
        ThrowsMessage<unsupported_error>(AllOf(HasSubstr("sm_999"), HasSubstr("sm_80"))));
}

TEST_F(compiling, every_listed_target_compiles) {
    for (const target_arch arch : compiler_->targets()) {
        EXPECT_EQ(compiler_->compile(plan_job(64, arch), 60s).arch, arch.text());
    }
}

TEST_F(compiling, stops_at_the_deadline) {
    // Unrolled arithmetic keeps the optimiser busy for seconds.
    folder_.write("plan/plan.cuh",
                  "#include \"plan/plan_layout.cuh\"\nnamespace epjit::templates {\ntemplate <plan_config Config>\n"
                  "__global__ void plan_kernel(unsigned* out) {\n  unsigned v[64];\n"
                  "  for (int i = 0; i < 64; ++i) v[i] = out[i];\n#pragma unroll\n"
                  "  for (int r = 0; r < 60; ++r)\n#pragma unroll\n    for (int i = 0; i < 64; ++i)\n"
                  "      v[i] = v[i] * v[(i * 7 + r) % 64] + r;\n  for (int i = 0; i < 64; ++i) out[i] = "
                  "v[i];\n}\n}\n");
    ASSERT_TRUE(reopen());
    EXPECT_THAT([&] { compiler_->compile(plan_job(), 50ms); },
                ThrowsMessage<timeout_error>(AllOf(HasSubstr("plan sm_90a"), HasSubstr("EPJIT_COMPILE_TIMEOUT_MS"))));
}

TEST_F(compiling, many_at_once_report_each_and_one_failure_costs_only_itself) {
    std::vector<compile_job> jobs;
    for (const int experts : {8, 16, 32, 64, 128}) {
        jobs.push_back(plan_job(experts));
    }
    jobs[2].spec.arch = {999, 0};
    std::map<std::size_t, bool> seen;
    std::atomic<int> inside{0};
    compiler_->compile_all(
        jobs, 3, 60s,
        [&](std::size_t i, artifact* made, std::exception_ptr failure) {
            EXPECT_EQ(++inside, 1) << "reports overlap";
            EXPECT_NE(made != nullptr, failure != nullptr);
            if (made != nullptr) {
                EXPECT_EQ(made->key, jobs[i].key);
            }
            EXPECT_TRUE(seen.emplace(i, made != nullptr).second);
            --inside;
        },
        nullptr);
    EXPECT_THAT(seen, testing::ElementsAre(testing::Pair(0, true), testing::Pair(1, true), testing::Pair(2, false),
                                           testing::Pair(3, true), testing::Pair(4, true)));
}

TEST_F(compiling, cancellation_reports_the_rest_as_cancelled) {
    std::vector<compile_job> jobs;
    for (const int experts : {8, 16, 32, 64}) {
        jobs.push_back(plan_job(experts));
    }
    int made_count = 0;
    int cancelled_count = 0;
    bool stop = false;
    compiler_->compile_all(
        jobs, 1, 60s,
        [&](std::size_t, artifact* made, std::exception_ptr failure) {
            if (made != nullptr) {
                ++made_count;
                stop = true;
                return;
            }
            try {
                std::rethrow_exception(failure);
            } catch (const error& e) {
                EXPECT_EQ(e.kind(), error_kind::cancelled);
                ++cancelled_count;
            }
        },
        [&] { return stop; });
    EXPECT_EQ(made_count, 1);
    EXPECT_EQ(cancelled_count, 3);
}

TEST_F(compiling, an_exception_of_the_reporter_ends_the_run_and_comes_out) {
    const std::vector<compile_job> jobs{plan_job(8), plan_job(16), plan_job(32)};
    int calls = 0;
    EXPECT_THROW(compiler_->compile_all(
                     jobs, 2, 60s,
                     [&](std::size_t, artifact*, std::exception_ptr) {
                         ++calls;
                         throw std::runtime_error("stop");
                     },
                     nullptr),
                 std::runtime_error);
    EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace epjit::jit
