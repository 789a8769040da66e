// SPDX-License-Identifier: Apache-2.0
// Finding libnvrtc and telling builds apart, with the fakes of tests/fakes.
#include "epjit/error.hpp"
#include "epjit/jit/compiler.hpp"
#include "jit/nvrtc/elf.hpp"
#include "jit/nvrtc/library.hpp"
#include "jit/nvrtc/log_parser.hpp"
#include "tests/jit/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>

namespace epjit::jit {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;

std::string read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

class finding_nvrtc : public testing::Test {
   protected:
    tests::scoped_env home_{"CUDA_HOME", nullptr};
    tests::scoped_env path_{"CUDA_PATH", nullptr};
    tests::scoped_env venv_{"VIRTUAL_ENV", nullptr};
    tests::scoped_env conda_{"CONDA_PREFIX", nullptr};
    tests::scratch_folder folder_;
    std::vector<std::string> tried_;
};

TEST_F(finding_nvrtc, an_explicit_path_is_the_only_place) {
    EXPECT_THAT(nvrtc::search_places("/some/libnvrtc.so", tried_), testing::ElementsAre("/some/libnvrtc.so"));
    try {
        (void)probe_nvrtc({folder_.path() + "/libnvrtc.so.13", {}});
        FAIL();
    } catch (const library_error& e) {
        EXPECT_THAT(e.what(), AllOf(HasSubstr(folder_.path() + "/libnvrtc.so.13"), HasSubstr("No such file"),
                                    HasSubstr("EPJIT_NVRTC_LIBRARY")));
    }
}

TEST_F(finding_nvrtc, the_order_is_toolkit_variables_environments_sonames_usual_folders) {
    const auto home = folder_.write("home/lib64/libnvrtc.so.12", "");
    folder_.write("home/lib64/libnvrtc.so", "");  // the same folder's older name
    const auto target = folder_.write("path/targets/sbsa-linux/lib/libnvrtc.so.13", "");
    const auto wheel13 = folder_.write("venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13", "");
    const auto wheel12 = folder_.write("venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "");
    const auto conda = folder_.write("conda/lib/libnvrtc.so.12", "");
    const tests::scoped_env a("CUDA_HOME", (folder_.path() + "/home").c_str());
    const tests::scoped_env b("CUDA_PATH", (folder_.path() + "/path").c_str());
    const tests::scoped_env c("VIRTUAL_ENV", (folder_.path() + "/venv").c_str());
    const tests::scoped_env d("CONDA_PREFIX", (folder_.path() + "/conda").c_str());
    auto places = nvrtc::search_places("", tried_);
    ASSERT_GE(places.size(), 8u);
    places.resize(8);
    EXPECT_THAT(places, testing::ElementsAre(home, target, wheel13, wheel12, conda, "libnvrtc.so.13", "libnvrtc.so.12",
                                             "libnvrtc.so"));
}

TEST_F(finding_nvrtc, places_without_one_are_told) {
    const tests::scoped_env a("CUDA_HOME", folder_.path().c_str());
    const tests::scoped_env b("VIRTUAL_ENV", folder_.path().c_str());
    (void)nvrtc::search_places("", tried_);
    EXPECT_THAT(tried_, Contains(AllOf(HasSubstr("CUDA_HOME=" + folder_.path()), HasSubstr("lib64"))));
    EXPECT_THAT(tried_, Contains(AllOf(HasSubstr("VIRTUAL_ENV=" + folder_.path()), HasSubstr("nvidia-cuda-nvrtc"))));
    EXPECT_THAT(tried_, Contains("CUDA_PATH: not set"));
    EXPECT_THAT(tried_, Contains("CONDA_PREFIX: not set"));
}

TEST_F(finding_nvrtc, what_cannot_be_opened_is_passed_over_and_told) {
    folder_.write("lib64/libnvrtc.so.13", "not a library");
    const tests::scoped_env a("CUDA_HOME", folder_.path().c_str());
    const tests::scoped_env b("CUDA_PATH", fs::path(EPJIT_FAKE_NVRTC_A).parent_path().parent_path().c_str());
    // CUDA_PATH of a toolkit whose lib is the fake's folder.
    fs::create_directories(folder_.path() + "/toolkit");
    fs::create_directory_symlink(fs::path(EPJIT_FAKE_NVRTC_A).parent_path(), folder_.path() + "/toolkit/lib");
    const tests::scoped_env c("CUDA_PATH", (folder_.path() + "/toolkit").c_str());
    const auto report = probe_nvrtc({});
    EXPECT_EQ(report.path, fs::canonical(EPJIT_FAKE_NVRTC_A).string());
    EXPECT_THAT(report.tried,
                Contains(AllOf(HasSubstr(folder_.path() + "/lib64/libnvrtc.so.13"), HasSubstr("too short"))));
}

TEST_F(finding_nvrtc, a_library_without_the_functions_is_refused_by_name) {
    // Its builtins are a library, but no NVRTC.
    const auto builtins = fs::path(EPJIT_FAKE_NVRTC_A).parent_path() / "libnvrtc-builtins.so.13.0";
    EXPECT_THAT(
        [&] {
            (void)probe_nvrtc({builtins.string(), {}});
        },
        testing::ThrowsMessage<library_error>(AllOf(HasSubstr(builtins.string()), HasSubstr("has no nvrtc"))));
}

TEST(identity, two_builds_of_one_version_differ_and_a_copy_elsewhere_does_not) {
    const auto templates = tests::tiny_templates();
    const auto a = open_nvrtc({EPJIT_FAKE_NVRTC_A, {}}, templates);
    const auto b = open_nvrtc({EPJIT_FAKE_NVRTC_B, {}}, templates);
    EXPECT_NE(a->identity().id, b->identity().id);
    EXPECT_NE(a->identity().description, b->identity().description);
    EXPECT_THAT(a->identity().description, HasSubstr("NVRTC 13.0 (build-id:aaaaaaaaaaaa)"));
    const auto report = probe_nvrtc({EPJIT_FAKE_NVRTC_A, {}});
    EXPECT_EQ(report.version, "13.0");
    EXPECT_EQ(fs::path(report.builtins_path).filename(), "libnvrtc-builtins.so.13.0");
    EXPECT_EQ(report.description, a->identity().description);
}

TEST(elf, build_ids_are_read_and_other_files_have_a_digest) {
    EXPECT_EQ(elf_build_id(EPJIT_FAKE_NVRTC_A), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa01");
    EXPECT_EQ(file_identity(EPJIT_FAKE_NVRTC_B), "build-id:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb01");
    const tests::scratch_folder folder;
    const auto text = folder.write("text", "no ELF file");
    EXPECT_EQ(elf_build_id(text), std::nullopt);
    EXPECT_EQ(file_identity(text), "xxh3:" + hash_text("no ELF file").hex());
    EXPECT_EQ(file_identity(folder.path() + "/missing"), "");
    EXPECT_EQ(file_identity(folder.write("empty", "")), "");
}

TEST(elf, a_library_cut_or_damaged_anywhere_is_told_apart_and_never_crashes) {
    const std::string whole = read(EPJIT_FAKE_NVRTC_A);
    const tests::scratch_folder folder;
    for (std::size_t n :
         {std::size_t{3}, std::size_t{16}, std::size_t{63}, std::size_t{64}, std::size_t{200}, std::size_t{600}}) {
        EXPECT_EQ(elf_build_id(folder.write("cut", whole.substr(0, n))), std::nullopt) << n;
    }
    for (std::size_t at = 0; at < 1200 && at < whole.size(); at += 3) {
        std::string damaged = whole.substr(0, 4096);
        damaged[at] = static_cast<char>(damaged[at] ^ 0xff);
        (void)elf_build_id(folder.write("damaged", damaged));
    }
}

constexpr const char* log_of_two = R"(ptxas info    : 46 bytes gmem, 56 bytes cmem[4]
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_90a'
ptxas info    : Function properties for _Z5firstv
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compile time = 16.903 ms
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_90a'
ptxas info    : Function properties for _Z6helperv
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for _Z6secondv
ptxas         .     64 bytes stack frame, 60 bytes spill stores, 72 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes cumulative stack size
)";

TEST(log, gives_each_kernel_its_registers_shared_and_spilled_bytes) {
    const auto first = parse_resources(log_of_two, "_Z5firstv");
    ASSERT_TRUE(first);
    EXPECT_EQ(first->registers, 18u);
    EXPECT_EQ(first->shared_bytes, 1024u);
    EXPECT_EQ(first->spill_bytes, 0u);
    const auto second = parse_resources(log_of_two, "_Z6secondv");
    ASSERT_TRUE(second);
    EXPECT_EQ(second->registers, 255u);
    EXPECT_EQ(second->shared_bytes, 0u);
    EXPECT_EQ(second->spill_bytes, 4u + 8 + 60 + 72);
    EXPECT_EQ(parse_resources(log_of_two, "_Z5first"), std::nullopt);
    EXPECT_EQ(parse_resources("", "_Z5firstv"), std::nullopt);
}

TEST(log, the_first_error_is_found_behind_warnings) {
    EXPECT_EQ(first_error_line("a.cuh(1): warning #1: x\n\na.cuh(4): error: y\na.cuh(5): error: z\n"),
              "a.cuh(4): error: y");
    EXPECT_EQ(first_error_line("\n  \nsomething else\nmore"), "something else");
    EXPECT_EQ(first_error_line(""), "");
}

}  // namespace
}  // namespace epjit::jit
