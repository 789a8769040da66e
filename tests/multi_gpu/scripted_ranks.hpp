// SPDX-License-Identifier: Apache-2.0
// The parent's side of "script" children: ranks that are told what to do, one line at a time.
#pragma once

#include "tests/multi_gpu/ranks.hpp"

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <string>
#include <vector>

namespace epjit::tests {

struct answer {
    bool ok = false;
    std::int64_t ms = 0;
    std::string kind;  ///< of an error: name(error_kind), "exception", or "silent" when none came: the text says why
    std::string text;
};

class scripted_ranks {
   public:
    /// Children with these variables beside a launcher's.
    scripted_ranks(const rank_setup& setup, const environment_changes& environment);

    [[nodiscard]] int size() const noexcept { return static_cast<int>(children_.size()); }
    child_process& child(int rank) { return children_[static_cast<std::size_t>(rank)]; }

    void tell(int rank, const std::string& command);
    answer hear(int rank, std::int64_t within_ms);
    answer ask(int rank, const std::string& command, std::int64_t within_ms = 60'000);
    /// Every rank; a test failure for each that does not answer ok.
    void all(const std::string& command, std::int64_t within_ms = 60'000);
    /// The answers of all ranks, in rank order, without judging them.
    std::vector<answer> ask_all(const std::string& command, std::int64_t within_ms = 60'000);
    /// One command after another until one fails: its answer, with the time of all of them. `ok` when none does.
    answer first_failure(int rank, std::initializer_list<const char*> commands, std::int64_t within_ms);
    /// `heard`, a rank's last answer, where that is a failure; else the first failure of what follows.
    answer failure_after(const answer& heard, int rank, std::initializer_list<const char*> commands,
                         std::int64_t within_ms);

   private:
    std::deque<child_process> children_;
    std::vector<std::string> told_;  ///< each one's last command
};

}  // namespace epjit::tests
