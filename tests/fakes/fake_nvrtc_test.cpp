// SPDX-License-Identifier: Apache-2.0
// The fake must itself behave, or the suites that rest on it prove nothing.
#include <gmock/gmock.h>

#include <cstdlib>
#include <dlfcn.h>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr const char* source =
    "extern \"C\" __global__ void __launch_bounds__(512, 1) plan_kernel(int* p) {}\n"
    "extern \"C\" __global__ void scan_kernel(int* p) {}\n";

template <class F>
F symbol(void* library, const char* name) {
    auto* found = dlsym(library, name);
    EXPECT_NE(found, nullptr) << name;
    return reinterpret_cast<F>(found);
}

struct fake {
    explicit fake(const char* path) : library(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        if (library == nullptr) {
            throw std::runtime_error(dlerror());
        }
    }
    ~fake() { dlclose(library); }
    fake(const fake&) = delete;
    fake& operator=(const fake&) = delete;

    int compile(std::string* cubin, std::string* log) const {
        void* program = nullptr;
        symbol<int (*)(void**, const char*, const char*, int, const char* const*, const char* const*)>(
            library, "nvrtcCreateProgram")(&program, source, "unit.cu", 0, nullptr, nullptr);
        const char* options[] = {"--gpu-architecture=sm_90a", "--ptxas-options=-v"};
        const int result =
            symbol<int (*)(void*, int, const char* const*)>(library, "nvrtcCompileProgram")(program, 2, options);
        using size_getter = int (*)(void*, std::size_t*);
        using getter = int (*)(void*, char*);
        std::size_t size = 0;
        symbol<size_getter>(library, "nvrtcGetCUBINSize")(program, &size);
        cubin->resize(size);
        symbol<getter>(library, "nvrtcGetCUBIN")(program, cubin->data());
        symbol<size_getter>(library, "nvrtcGetProgramLogSize")(program, &size);
        log->resize(size);
        symbol<getter>(library, "nvrtcGetProgramLog")(program, log->data());
        symbol<int (*)(void**)>(library, "nvrtcDestroyProgram")(&program);
        return result;
    }
    void* library;
};

class fake_nvrtc : public testing::Test {
   protected:
    void TearDown() override {
        for (const char* name : {"EPJIT_FAKE_NVRTC_MODE", "EPJIT_FAKE_NVRTC_MATCH", "EPJIT_FAKE_NVRTC_COUNT"}) {
            unsetenv(name);
        }
    }
    std::string cubin, log;
};

TEST_F(fake_nvrtc, compiles_to_the_same_bytes_each_time_and_logs_every_kernel) {
    const fake a(EPJIT_FAKE_NVRTC_A);
    ASSERT_EQ(a.compile(&cubin, &log), 0);
    EXPECT_EQ(cubin.substr(0, 4),
              "\x7f"
              "ELF");
    EXPECT_THAT(log, testing::HasSubstr("Compiling entry function 'plan_kernel' for 'sm_90a'"));
    EXPECT_THAT(log, testing::HasSubstr("Compiling entry function 'scan_kernel' for 'sm_90a'"));
    EXPECT_THAT(log, testing::HasSubstr("Used 32 registers"));
    std::string again;
    ASSERT_EQ(a.compile(&again, &log), 0);
    EXPECT_EQ(again, cubin);
}

TEST_F(fake_nvrtc, fails_or_gives_an_empty_cubin_only_for_programs_that_match) {
    const fake b(EPJIT_FAKE_NVRTC_B);
    setenv("EPJIT_FAKE_NVRTC_MODE", "fail", 1);
    setenv("EPJIT_FAKE_NVRTC_MATCH", "scan_kernel", 1);
    EXPECT_EQ(b.compile(&cubin, &log), 6);
    EXPECT_THAT(log, testing::HasSubstr("error: identifier"));
    setenv("EPJIT_FAKE_NVRTC_MATCH", "no such text", 1);
    EXPECT_EQ(b.compile(&cubin, &log), 0);
    setenv("EPJIT_FAKE_NVRTC_MATCH", "", 1);
    setenv("EPJIT_FAKE_NVRTC_MODE", "empty", 1);
    EXPECT_EQ(b.compile(&cubin, &log), 0);
    EXPECT_TRUE(cubin.empty());
}

TEST_F(fake_nvrtc, counts_every_compile_and_crashes_on_demand) {
    std::string path = testing::TempDir() + "/fake_nvrtc_count_XXXXXX";
    close(mkstemp(path.data()));
    setenv("EPJIT_FAKE_NVRTC_COUNT", path.c_str(), 1);
    const fake a(EPJIT_FAKE_NVRTC_A);
    a.compile(&cubin, &log);
    const pid_t child = fork();
    if (child == 0) {
        setenv("EPJIT_FAKE_NVRTC_MODE", "crash", 1);
        signal(SIGSEGV, SIG_DFL);
        a.compile(&cubin, &log);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status));
    std::stringstream lines;
    lines << std::ifstream(path).rdbuf();
    EXPECT_THAT(lines.str(), testing::ContainsRegex("unit.cu sm_90a\n.*unit.cu sm_90a\n"));
    unlink(path.c_str());
}

}  // namespace
