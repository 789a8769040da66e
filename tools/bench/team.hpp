// SPDX-License-Identifier: Apache-2.0
// The ranks of one process, a thread each, and how they time what they do together.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>

namespace epjit::tools {

/// Threads that meet. When one fails the others leave their next meeting, so that none waits for it.
class rank_team {
   public:
    explicit rank_team(int ranks) : ranks_(ranks) {}
    [[nodiscard]] int size() const noexcept { return ranks_; }

    /// `body(rank)` on a thread of each rank; returns when all have ended. @throws what the first rank to fail threw.
    void run(const std::function<void(int rank)>& body);
    /// Waits until every rank is here. @throws stopped when another rank has failed.
    void meet();
    /// meet(), and whether every rank brought true.
    bool all(bool mine);

    struct stopped {};

   private:
    int ranks_;
    std::mutex mutex_;
    std::condition_variable changed_;
    int arrived_ = 0;
    unsigned round_ = 0;
    bool failed_ = false, agreed_ = true, outcome_ = true;
};

}  // namespace epjit::tools
