// SPDX-License-Identifier: Apache-2.0
// Where NCCL is found, and what the version that was loaded allows.
#include "epjit/error.hpp"
#include "host/nccl/api.hpp"
#include "host/report/report.hpp"
#include "tests/host/temporary_folder.hpp"
#include "tests/nccl/support.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace epjit::host {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using tests::stub;
using tests::variable;
namespace fs = std::filesystem;

/// Nothing in the environment says where NCCL is.
struct bare_environment {
    variable a{"NCCL_HOME", nullptr}, b{"NCCL_ROOT", nullptr}, c{"NCCL_ROOT_DIR", nullptr}, d{"CUDA_HOME", nullptr},
        e{"CUDA_PATH", nullptr}, f{"LD_LIBRARY_PATH", nullptr}, g{"VIRTUAL_ENV", nullptr}, h{"CONDA_PREFIX", nullptr},
        i{"EPJIT_PYTHON", nullptr};
};

class nccl_search : public testing::Test {
   protected:
    /// Puts a stub where an installation would have it.
    std::string install(const std::string& folder, const std::string& version) {
        const fs::path path = fs::path(folder_.path(folder));
        fs::create_directories(path);
        fs::create_symlink(stub(version), path / "libnccl.so.2");
        return (path / "libnccl.so.2").string();
    }
    [[nodiscard]] std::string at(const std::string& folder) const { return folder_.path(folder); }

    bare_environment bare_;
    tests::temporary_folder folder_;
};

TEST_F(nccl_search, goes_from_folders_of_the_environment_to_the_python_environment_to_the_soname) {
    const std::string home = install("home/lib", "2.28.3");
    const std::string loader = install("loader", "2.28.3");
    const std::string python = install("py/lib/python3.11/site-packages/nvidia/nccl/lib", "2.28.3");
    const std::string venv = install("venv/lib/python3.12/site-packages/nvidia/nccl/lib", "2.28.3");
    const std::string conda = install("conda/lib", "2.28.3");
    const variable a("NCCL_HOME", at("home").c_str());
    const variable b("LD_LIBRARY_PATH", fmt::format(":{}:{}", at("empty"), at("loader")).c_str());
    const variable c("EPJIT_PYTHON", at("py/bin/python").c_str());
    const variable d("VIRTUAL_ENV", at("venv").c_str());
    const variable e("CONDA_PREFIX", at("conda").c_str());
    std::vector<std::string> tried;
    EXPECT_THAT(nccl_places("", tried), ElementsAre(home, loader, python, venv, conda, "libnccl.so.2"));
    EXPECT_THAT(nccl_places("/my/libnccl.so", tried), ElementsAre("/my/libnccl.so"));
}

TEST_F(nccl_search, takes_the_first_that_can_be_used_and_says_what_became_of_the_others) {
    install("home/lib", "2.17.1");
    install("venv/lib/python3.12/site-packages/nvidia/nccl/lib", "2.29.2");
    const variable a("NCCL_HOME", at("home").c_str());
    const variable d("VIRTUAL_ENV", at("venv").c_str());
    const auto api = open_nccl("");
    EXPECT_EQ(api->version, 22902);
    EXPECT_EQ(api->version_text(), "2.29.2");
    EXPECT_EQ(api->path, fs::canonical(stub("2.29.2")).string());
    EXPECT_THAT(api->tried, testing::Contains(AllOf(HasSubstr(at("home")), HasSubstr("is NCCL 2.17.1; 2.18"))));
    EXPECT_THAT(api->tried.back(), HasSubstr("NCCL 2.29.2"));
}

TEST_F(nccl_search, the_error_lists_every_place_with_its_reason) {
    fs::create_directories(fs::path(folder_.path("home/lib")));
    std::ofstream(fs::path(folder_.path("home/lib/libnccl.so.2"))) << "no library";
    const variable a("NCCL_HOME", at("home").c_str());
    const variable d("VIRTUAL_ENV", at("venv").c_str());
    try {
        // A name that no loader finds stands for the soname on a machine without NCCL.
        open_nccl(at("home/lib/libnccl.so.2"));
        FAIL() << "no error";
    } catch (const library_error& e) {
        EXPECT_THAT(e.what(), AllOf(HasSubstr("NCCL was not found; tried"), HasSubstr(at("home/lib/libnccl.so.2")),
                                    HasSubstr("EPJIT_NCCL_LIBRARY")));
    }
    std::vector<std::string> tried;
    nccl_places("", tried);
    EXPECT_THAT(tried, testing::IsSupersetOf(
                           {std::string("NCCL_ROOT: not set"), std::string("LD_LIBRARY_PATH: not set"),
                            "VIRTUAL_ENV=" + at("venv") + ": no nvidia-nccl wheel in lib/python*/site-packages"}));
}

TEST(nccl_versions, an_old_library_is_refused_by_its_version) {
    try {
        open_nccl(stub("2.17.1"));
        FAIL() << "no error";
    } catch (const library_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("is NCCL 2.17.1; 2.18 or newer is needed"));
    }
}

TEST(nccl_versions, decide_whether_there_are_windows) {
    const auto reason = [](const char* version) { return no_windows_reason(*open_nccl(stub(version))); };
    EXPECT_THAT(reason("2.18.5"), HasSubstr("NCCL 2.18.5 has no symmetric windows"));
    EXPECT_THAT(reason("2.27.3"),
                HasSubstr("NCCL 2.27.3 has windows, but peer pointers can be learned from 2.28.3 on"));
    EXPECT_EQ(reason("2.28.3"), "");
    EXPECT_EQ(reason("2.29.2"), "");
    EXPECT_EQ(reason("2.30.7"), "");
    nccl_api early = *open_nccl(stub("2.29.2"));
    early.peer_pointer = nullptr;
    EXPECT_THAT(no_windows_reason(early), HasSubstr("this build of NCCL 2.29.2 lacks ncclGetPeerDevicePointer"));
    early.version = 22900;
    EXPECT_THAT(no_windows_reason(early), HasSubstr("NCCL 2.29.0 has no ncclGetPeerDevicePointer"));
    early.memory_free = nullptr;
    EXPECT_THAT(no_windows_reason(early), HasSubstr("lacks ncclCommWindowRegister or ncclMemAlloc"));
}

TEST(nccl_versions, symbols_are_optional_one_by_one) {
    const auto old = open_nccl(stub("2.18.5"));
    EXPECT_EQ(old->memory_allocate, nullptr);
    EXPECT_EQ(old->window_register, nullptr);
    EXPECT_EQ(old->comm_split, nullptr);
    EXPECT_NE(old->send, nullptr);
    const auto middle = open_nccl(stub("2.28.3"));
    EXPECT_NE(middle->window_register, nullptr);
    EXPECT_EQ(middle->peer_pointer, nullptr);
}

TEST(nccl_versions, are_written_as_nccl_writes_them) {
    EXPECT_EQ(nccl_version_text(22809), "2.28.9");
    EXPECT_EQ(nccl_version_text(2804), "2.8.4");
    EXPECT_EQ(open_nccl(stub("2.28.3"))->text(nccl_remote_error), "ncclRemoteError (6): remote process exited");
}

TEST(nccl_versions, the_report_says_what_can_be_done) {
    const nccl_report old = probe_nccl(stub("2.27.3"));
    EXPECT_TRUE(old.found);
    EXPECT_THAT(old.no_windows, HasSubstr("2.28.3"));
    EXPECT_EQ(probe_nccl(stub("2.30.7")).no_windows, "");
    const nccl_report none = probe_nccl("/nowhere/libnccl.so.2");
    EXPECT_FALSE(none.found);
    EXPECT_THAT(none.problem, HasSubstr("/nowhere/libnccl.so.2"));
    EXPECT_THAT(none.remedy, HasSubstr("EPJIT_NCCL_LIBRARY"));
}

/// What NCCL's own builds have by their version.
void expect_what_its_version_has(const nccl_api& api) {
    EXPECT_GE(api.version, 21800);
    EXPECT_NE(api.comm_split, nullptr);
    EXPECT_EQ(api.memory_allocate != nullptr, api.version >= 21900);
    EXPECT_EQ(api.window_register != nullptr, api.version >= 22703);
    EXPECT_EQ(api.peer_pointer != nullptr, api.version >= 22902);
    EXPECT_EQ(no_windows_reason(api).empty(), api.version >= 22803 && (api.version < 22900 || api.version >= 22902));
    EXPECT_THAT(api.text(nccl_invalid_usage), HasSubstr("ncclInvalidUsage (5): "));
}

TEST(nccl_versions, the_library_of_this_machine_is_opened_without_a_driver) {
    std::shared_ptr<const nccl_api> api;
    try {
        api = open_nccl("");
    } catch (const library_error& e) {
        GTEST_SKIP() << e.what();
    }
    expect_what_its_version_has(*api);
}

// EPJIT_NCCL_WHEELS=a:b: roots of environments, each with the wheel of an NCCL and named for its version.
TEST_F(nccl_search, real_wheels_are_found_and_say_their_version) {
    const char* list = std::getenv("EPJIT_NCCL_WHEELS");
    if (list == nullptr) {
        GTEST_SKIP() << "EPJIT_NCCL_WHEELS names no environments with NCCL's wheels";
    }
    std::istringstream roots(list);
    for (std::string root; std::getline(roots, root, ':');) {
        SCOPED_TRACE(root);
        const variable environment("VIRTUAL_ENV", root.c_str());
        const auto api = open_nccl("");
        EXPECT_THAT(api->path, HasSubstr("/site-packages/nvidia/nccl/lib/libnccl.so.2"));
        EXPECT_EQ(api->version_text(), fs::path(root).filename().string());
        expect_what_its_version_has(*api);
    }
}

}  // namespace
}  // namespace epjit::host
