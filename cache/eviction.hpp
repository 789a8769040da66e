// SPDX-License-Identifier: Apache-2.0
// Keeps the written layer within its bounds. Least recently used goes first, what a living process was served never;
// only one process evicts at a time, and lookups take part in none of it.
#pragma once

#include "cache/layer.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace epjit::cache::detail {

struct bounds {
    std::uint64_t bytes = 0, files = 0;
};

class evictor {
   public:
    evictor(layer& where, bounds limits, std::atomic<std::uint64_t>& evicted)
        : layer_(where), limits_(limits), evicted_(evicted) {}

    /// Room for one more file of that size: true when it fits now. False, with the reason and a remedy, when it cannot
    /// be made: then the entry is not to be written. The first call also sweeps what killed writers left behind.
    bool make_room(std::uint64_t incoming_bytes, publish_result& why);
    /// Evicts until the limits, or `max_bytes`, hold; returns how many entries went.
    std::uint64_t prune(std::uint64_t max_bytes);

   private:
    struct usage {
        std::uint64_t bytes = 0, files = 0;
    };
    struct item {
        std::string sub, name;
        std::uint64_t bytes = 0;
        timespec used{};
        bool entry = false;
    };
    struct sub_usage {
        timespec changed{};
        usage total;
        bool settled = false;  ///< `changed` was old enough when it was read for a later change to show
    };
    usage quick_usage();
    usage scan(std::vector<item>& items);
    usage scan_sub(int root, const std::string& sub, std::vector<item>* items);
    bool evict(usage& total, std::uint64_t incoming, bounds limits, std::uint64_t& count);
    bool remove(const item& victim, lock_file& locks);
    bool take_lock(lock_file& locks);

    layer& layer_;
    const bounds limits_;
    std::atomic<std::uint64_t>& evicted_;
    std::mutex mutex_;
    std::map<std::string, sub_usage> known_;
    bool swept_ = false;
};

}  // namespace epjit::cache::detail
