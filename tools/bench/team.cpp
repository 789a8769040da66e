// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/team.hpp"

#include <exception>
#include <thread>
#include <vector>

namespace epjit::tools {

void rank_team::run(const std::function<void(int rank)>& body) {
    {
        const std::lock_guard lock(mutex_);
        arrived_ = 0;
        failed_ = false;
        agreed_ = true;
    }
    std::exception_ptr first;
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks_; ++rank) {
        threads.emplace_back([&, rank] {
            std::exception_ptr mine;
            try {
                body(rank);
                return;
            } catch (const stopped&) {
                return;
            } catch (...) {
                mine = std::current_exception();
            }
            const std::lock_guard lock(mutex_);
            first = first ? first : mine;
            failed_ = true;
            changed_.notify_all();
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    if (first) {
        std::rethrow_exception(first);
    }
}

void rank_team::meet() {
    static_cast<void>(all(true));
}

bool rank_team::all(bool mine) {
    std::unique_lock lock(mutex_);
    if (failed_) {
        throw stopped{};
    }
    agreed_ = agreed_ && mine;
    const unsigned round = round_;
    if (++arrived_ == ranks_) {
        arrived_ = 0;
        outcome_ = agreed_;
        agreed_ = true;
        ++round_;
        changed_.notify_all();
        return outcome_;
    }
    changed_.wait(lock, [&] { return round_ != round || failed_; });
    if (round_ == round) {
        throw stopped{};
    }
    return outcome_;
}

}  // namespace epjit::tools
