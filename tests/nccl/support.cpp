// SPDX-License-Identifier: Apache-2.0
#include "tests/nccl/support.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <unistd.h>

namespace epjit::tests {
namespace {

template <class Function>
Function* control(const std::string& version, const char* symbol) {
    void* handle = dlopen(stub(version).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        throw std::runtime_error(dlerror());
    }
    return reinterpret_cast<Function*>(dlsym(handle, symbol));
}

}  // namespace

std::string stub(const std::string& version) {
    return std::string(EPJIT_NCCL_STUBS) + "/libnccl_stub_" + version + ".so";
}

void stub_set(const std::string& version, const char* name, int value) {
    control<void(const char*, int)>(version, "stub_nccl_set")(name, value);
}

int stub_get(const std::string& version, const char* name) {
    return control<int(const char*)>(version, "stub_nccl_get")(name);
}

profile_file::profile_file(const std::string& text, const std::string& name)
    : path_(::testing::TempDir() + "/epjit_" + std::to_string(::getpid()) + "_" + name) {
    std::ofstream(path_) << text;
}
profile_file::~profile_file() {
    std::remove(path_.c_str());
}

variable::variable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) {
        had_ = true;
        before_ = before;
    }
    value != nullptr ? setenv(name, value, 1) : unsetenv(name);
}

variable::~variable() {
    had_ ? setenv(name_.c_str(), before_.c_str(), 1) : unsetenv(name_.c_str());
}

void log_lines::take(void* user, log_level, std::string_view line) {
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    static_cast<log_lines*>(user)->lines.emplace_back(line);
}

runtime stub_runtime(const std::string& version, int limit_ms, log_lines* log) {
    runtime_options options;
    const std::string library = stub(version);
    options.nccl_library = library.c_str();
    options.cuda_library = EPJIT_FAKE_CUDA;
    options.cache_path = "";
    options.wait_timeout_ms = limit_ms;
    options.first_wait_timeout_ms = limit_ms;
    static log_lines dropped;
    options.log = log_lines::take;
    options.log_user = log != nullptr ? log : &dropped;
    return runtime(options);
}

outcomes run_ranks(const std::string& version, int ranks, const std::function<void(int, communicator&, runtime&)>& body,
                   int limit_ms) {
    runtime rt = stub_runtime(version, limit_ms);
    std::array<std::byte, 128> id{};
    communicator::unique_id(rt, id);
    outcomes errors(static_cast<std::size_t>(ranks));
    std::vector<std::thread> threads;
    for (int r = 0; r < ranks; ++r) {
        threads.emplace_back([&, r] {
            try {
                communicator comm = communicator::from_unique_id(rt, id, r, ranks, 0);
                body(r, comm, rt);
            } catch (const error& e) {
                errors[r] = std::string(name(e.kind())) + ": " + e.what();
            }
        });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    return errors;
}

}  // namespace epjit::tests
