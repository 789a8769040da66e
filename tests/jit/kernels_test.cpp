// SPDX-License-Identifier: Apache-2.0
// The library's own kernels through the real NVRTC: every variant compiles, spills nothing, and comes out the same in
// every process. Skips where no NVRTC is found. EPJIT_TEST_ALL_VARIANTS=1 adds the whole product of models, sets, ranks
// and targets (minutes).
#include "epjit/error.hpp"
#include "epjit/jit/compiler.hpp"
#include "epjit/jit/variants.hpp"
#include "jit/nvrtc/library.hpp"
#include "jit/program/program.hpp"
#include "tests/jit/support.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>

namespace epjit::jit {
namespace {

using testing::HasSubstr;
using testing::Not;

const target_arch wanted_targets[] = {{80, 0}, {90, 0}, {90, 'a'}, {100, 'a'}, {103, 'a'}, {120, 'a'}};

/// Variants that may spill, each with its reason. None does.
std::string spill_reason(const variant_spec&) {
    return {};
}

class kernels : public testing::Test {
   protected:
    void SetUp() override {
        compiler_ = tests::real_compiler(templates_, reason_);
        if (compiler_ == nullptr) {
            GTEST_SKIP() << "no NVRTC: " << reason_;
        }
        const auto known = compiler_->targets();
        for (const target_arch arch : wanted_targets) {
            if (std::find(known.begin(), known.end(), arch) != known.end()) {
                targets_.push_back(arch);
            }
        }
        ASSERT_THAT(targets_, testing::Contains(target_arch{80, 0}));
    }

    void add(const std::vector<variant_spec>& specs) { wanted_.insert(specs.begin(), specs.end()); }
    void add(const variant_spec& spec) { wanted_.insert(spec); }

    /// Compiles what was added and checks each artifact.
    void compile_all() {
        std::vector<compile_job> jobs;
        for (const variant_spec& spec : wanted_) {
            jobs.push_back({spec, variant_key(spec, templates_)});
        }
        const int parallelism = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
        std::size_t seen = 0;
        compiler_->compile_all(
            jobs, parallelism, std::chrono::minutes(2),
            [&](std::size_t i, artifact* made, std::exception_ptr failure) {
                ++seen;
                SCOPED_TRACE(describe(jobs[i].spec));
                if (made == nullptr) {
                    try {
                        std::rethrow_exception(failure);
                    } catch (const std::exception& e) {
                        ADD_FAILURE() << e.what();
                    }
                    return;
                }
                check(jobs[i].spec, *made);
            },
            nullptr);
        EXPECT_EQ(seen, jobs.size());
        RecordProperty("variants", static_cast<int>(seen));
    }

    static void check(const variant_spec& spec, const artifact& made) {
        EXPECT_EQ(made.kernels.size(), make_program(spec).kernels.size());
        for (const kernel_info& kernel : made.kernels) {
            EXPECT_LE(kernel.spill_bytes, spill_reason(spec).empty() ? 0u : 16u) << kernel.name;
            EXPECT_LE(kernel.registers * static_cast<unsigned>(spec.threads), 65536u) << kernel.name;
        }
        const std::string_view image(reinterpret_cast<const char*>(made.cubin.data()), made.cubin.size());
        // Names of internal linkage hold the process id: such a cubin differs in every process.
        EXPECT_EQ(image.find("_INTERNAL_"), std::string_view::npos) << "a template defines a name of internal linkage";
        EXPECT_THAT(made.log, Not(HasSubstr("warning"))) << made.log;
    }

    template_set templates_ = template_set::embedded();
    std::shared_ptr<compiler> compiler_;
    std::vector<target_arch> targets_;
    std::set<variant_spec> wanted_;
    std::string reason_;
};

TEST_F(kernels, of_every_kind_compile_without_spills_for_every_target) {
    for (const target_arch arch : targets_) {
        for (const int ranks : {1, 8}) {
            add(plan_spec(arch, 256, 256, ranks, 8, ranks == 1));
            add(scatter_spec(arch, exchange_kind::loopback, ranks, 7168, 8, dtype::bf16, dtype::bf16,
                             scale_type::none));
            add(gather_spec(arch, exchange_kind::loopback, ranks, 7168, 8, dtype::bf16));
        }
        add(exchange_plan_spec(arch, 256, 256, 8, 8, false));
        add(gathered_plan_spec(arch, 256, 256, 8, 8, false));
        add(scatter_spec(arch, exchange_kind::loopback, 8, 7168, 8, dtype::bf16, dtype::fp8_e4m3, scale_type::ue8m0));
        add(scatter_spec(arch, exchange_kind::loopback, 8, 7168, 8, dtype::fp8_e4m3, dtype::fp8_e4m3, scale_type::f32));
    }
    compile_all();
}

TEST_F(kernels, of_odd_shapes_and_every_type_compile_without_spills) {
    const target_arch arch{90, 'a'};
    for (const bool sparse : {false, true}) {
        add(plan_spec(arch, 1, 1, 1, 1, sparse));
        add(plan_spec(arch, 2048, 8192, 64, 32, sparse));
        add(plan_spec(arch, 100, 117, 7, 5, sparse));
        for (const int ranks : {2, 8, 32, 64}) {
            add(exchange_plan_spec(arch, 512, 512, ranks, 10, sparse));
            add(gathered_plan_spec(arch, 512, 512, ranks, 10, sparse));
        }
        add(exchange_plan_spec(arch, 1, 1, 1, 1, sparse));
        add(gathered_plan_spec(arch, 1, 1, 1, 1, sparse));
        add(exchange_plan_spec(arch, 2048, 8192, 64, 32, sparse));
        add(gathered_plan_spec(arch, 2048, 8192, 64, 32, sparse));
        add(exchange_plan_spec(arch, 100, 117, 7, 5, sparse));
        add(gathered_plan_spec(arch, 100, 117, 7, 5, sparse));
    }
    const auto scatter = [&](int ranks, int hidden, int topk, dtype in, dtype out, scale_type scales) {
        add(scatter_spec(arch, exchange_kind::loopback, ranks, hidden, topk, in, out, scales));
    };
    for (const dtype type : {dtype::bf16, dtype::fp16, dtype::f32}) {
        scatter(64, 1, 1, type, type, scale_type::none);
        scatter(3, 1003, 32, type, type, scale_type::none);
        scatter(1, 2880, 4, type, dtype::fp8_e4m3, scale_type::f32);
        scatter(4, 77, 7, type, dtype::fp8_e4m3, scale_type::ue8m0);
        add(gather_spec(arch, exchange_kind::loopback, 64, 1, 1, type));
        add(gather_spec(arch, exchange_kind::loopback, 3, 1003, 32, type));
    }
    scatter(2, 100'000, 2, dtype::bf16, dtype::bf16, scale_type::none);
    scatter(5, 333, 6, dtype::fp8_e4m3, dtype::fp8_e4m3, scale_type::ue8m0);
    compile_all();
}

TEST_F(kernels, of_every_model_compile_without_spills_for_hopper) {
    for (const model_shape& model : builtin_models()) {
        add(list_variants({model, {8}, {{90, 'a'}}, variant_set::base}));
    }
    compile_all();
}

TEST_F(kernels, of_the_whole_product_compile_without_spills) {
    if (std::getenv("EPJIT_TEST_ALL_VARIANTS") == nullptr) {
        GTEST_SKIP() << "set EPJIT_TEST_ALL_VARIANTS=1 to compile every model's whole set for every target";
    }
    for (const model_shape& model : builtin_models()) {
        add(list_variants({model, {2, 8, 64}, targets_, variant_set::all}));
    }
    compile_all();
}

/// Runs the probe with nothing in its environment but `environment`, in `folder`; its output.
std::string run_probe(const std::string& folder, const std::string& environment, const std::string& arguments) {
    const std::string command = fmt::format("cd '{}' && exec timeout 120 env -i {} '{}' {} 2>&1", folder, environment,
                                            EPJIT_COMPILE_PROBE, arguments);
    std::FILE* pipe = popen(command.c_str(), "r");
    std::string output;
    char part[4096];
    for (std::size_t n = 0; pipe != nullptr && (n = std::fread(part, 1, sizeof part, pipe)) > 0;) {
        output.append(part, n);
    }
    if (pipe == nullptr || pclose(pipe) != 0) {
        ADD_FAILURE() << command << "\n" << output;
    }
    return output;
}

/// Keys and cubin digests of a probe's output, without the times.
std::set<std::string> results(const std::string& output) {
    std::set<std::string> found;
    for (std::size_t at = 0; (at = output.find("key=", at)) != std::string::npos; at += 4) {
        found.insert(output.substr(at, output.find(" bytes=", at) - at));
    }
    return found;
}

TEST_F(kernels, compile_alike_in_a_process_that_has_the_two_nvrtc_files_and_nothing_else) {
    namespace fs = std::filesystem;
    const auto found = probe_nvrtc({});
    ASSERT_FALSE(found.builtins_path.empty());
    // Copies in a folder without headers: neither an include path nor a toolkit is in reach.
    const tests::scratch_folder bare;
    const std::string lib = bare.path() + "/libnvrtc.so.13";
    fs::copy_file(found.path, lib);
    fs::copy_file(found.builtins_path, fs::path(bare.path()) / fs::path(found.builtins_path).filename());
    const tests::scratch_folder empty;
    const std::string alone = run_probe(empty.path(), "", "granite-3.0-1b-a400m sm_90a 8 1 base " + lib);
    EXPECT_THAT(alone, HasSubstr("toolkit_mapped=false"));
    EXPECT_THAT(alone, HasSubstr(" failed=0 "));
    EXPECT_EQ(results(alone).size(), 10u) << alone;
    // Requirement R12 and R16: another folder, home, locale and place of the same compiler build change nothing.
    const std::string other =
        run_probe("/", "HOME=/nonexistent TMPDIR=/nonexistent LC_ALL=de_DE.UTF-8 CPATH=/usr/include",
                  "granite-3.0-1b-a400m sm_90a 8 2 base " + found.path);
    EXPECT_EQ(results(alone), results(other));
    const auto identity = [](const std::string& text) { return text.substr(text.rfind("compiler=")); };
    EXPECT_EQ(identity(alone), identity(other));
}

}  // namespace
}  // namespace epjit::jit
