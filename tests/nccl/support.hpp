// SPDX-License-Identifier: Apache-2.0
// Ranks as threads over a stub NCCL and a fake driver.
#pragma once

#include "epjit/communicator.hpp"
#include "epjit/error.hpp"
#include "epjit/runtime.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/nccl/communicator.hpp"

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace epjit::tests {

/// Path of the stub of a version, "2.28.3".
std::string stub(const std::string& version);
/// See stub_nccl_set and stub_nccl_get in stub_nccl.cpp.
void stub_set(const std::string& version, const char* name, int value);
int stub_get(const std::string& version, const char* name);

/// Puts a stub's switch back at the end.
class stub_switch {
   public:
    stub_switch(std::string version, const char* name, int value) : version_(std::move(version)), name_(name) {
        stub_set(version_, name_, value);
    }
    ~stub_switch() { stub_set(version_, name_, 0); }
    stub_switch(const stub_switch&) = delete;
    stub_switch& operator=(const stub_switch&) = delete;

   private:
    std::string version_;
    const char* name_;
};

/// An environment variable for the length of a scope; null: not set.
class variable {
   public:
    variable(const char* name, const char* value);
    ~variable();
    variable(const variable&) = delete;
    variable& operator=(const variable&) = delete;

   private:
    std::string name_, before_;
    bool had_ = false;
};

/// A tuning profile in a file of its own.
class profile_file {
   public:
    explicit profile_file(const std::string& text, const std::string& name = "profile.json");
    ~profile_file();
    profile_file(const profile_file&) = delete;
    profile_file& operator=(const profile_file&) = delete;
    [[nodiscard]] const char* path() const { return path_.c_str(); }

   private:
    std::string path_;
};

/// What a runtime over a stub logged.
struct log_lines {
    std::vector<std::string> lines;
    static void take(void* user, log_level, std::string_view line);
};

runtime stub_runtime(const std::string& version, int limit_ms = 20'000, log_lines* log = nullptr);

/// The text of what each rank's thread threw, empty for none.
using outcomes = std::vector<std::string>;
/// Runs `body(rank, communicator, runtime)` in a thread for each rank, all connected through one unique id.
outcomes run_ranks(const std::string& version, int ranks, const std::function<void(int, communicator&, runtime&)>& body,
                   int limit_ms = 20'000);

inline host::nccl_communicator& nccl_of(const communicator& comm) {
    return *comm.state().nccl;
}

}  // namespace epjit::tests
