// SPDX-License-Identifier: Apache-2.0
// What a store is made of; shared by store.cpp, fetch.cpp and pack.cpp.
#pragma once

#include "cache/eviction.hpp"
#include "cache/layer.hpp"
#include "cache/memory_map.hpp"
#include "epjit/cache/store.hpp"

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace epjit::cache::detail {

using artifact_ptr = std::shared_ptr<const jit::artifact>;
using full_key = std::pair<jit::digest, jit::digest>;  ///< variant, compiler

/// A compile that a thread of this process is doing; others that want the key wait for it.
struct flight {
    bool done = false;
    artifact_ptr value;
    std::exception_ptr failure;
};

class store_state {
   public:
    store_state(const store_options& options, file_ops& ops);

    /// A checked entry from the layers. With `compiler` that build, else the newest intact one of all layers.
    /// `owner`: the caller holds the key's lock. A bad entry of the written layer moves to bad/ under the lock.
    artifact_ptr read_layers(const jit::digest& key, const jit::digest* compiler, bool owner);
    /// True when it is on disk; otherwise one warning in the store's life for each kind of trouble.
    /// `in_use`: this process was served it, and it must not be evicted while it lives.
    bool store_entry(const jit::artifact& value, bool in_use);
    bool store_bytes(const jit::digest& key, const jit::digest& compiler, std::span<const std::byte> bytes);
    std::vector<entry_info> list();
    /// Says once that what is compiled is not kept, and why.
    void warn_not_kept();
    /// One line for each `kind` in the store's life.
    void warn_once(std::string_view kind, const std::string& line);
    /// Counts a miss, and whether another compiler's build is there.
    void count_miss(const jit::digest& key, const jit::digest* compiler);
    [[nodiscard]] std::string layer_names() const;

    const store_options options;
    file_ops& ops;
    std::vector<std::unique_ptr<layer>> layers;
    layer* written = nullptr;  ///< null when nothing can be written
    std::string written_path;
    std::unique_ptr<evictor> room;
    memory_map memory;
    store_counters counters;

    // Compiles in flight, of this process: `flight_pid` tells a forked child that its parent's are not its own.
    std::mutex flight_mutex;
    std::condition_variable flight_landed;
    std::map<full_key, std::shared_ptr<flight>> flights;
    int flight_pid = 0;

   private:
    void open_layer(const std::string& path, bool first);
    std::optional<decoded_entry> read_entry(layer& from, const jit::digest& key, const jit::digest& build, bool owner);
    void report_bad(layer& from, const location& where, const std::string& why, bool moved);
    void mark_use(const jit::digest& key, const jit::digest& build, bool used);

    std::string not_kept_;  ///< why nothing is written, with the remedy
    std::mutex mutex_;
    std::set<std::string, std::less<>> warned_;
    std::unique_ptr<lock_file> use_locks_;
    std::set<std::int64_t> used_;
    int use_pid_ = 0;
};

/// get(): see fetch.cpp.
std::vector<served> fetch(store_state& state, std::span<const jit::compile_job> jobs, jit::compiler* compiler,
                          int parallelism, const std::function<void(std::size_t, const served&)>& progress,
                          const std::function<bool()>& cancelled);

}  // namespace epjit::cache::detail

namespace epjit::cache {
struct store::state : detail::store_state {
    using store_state::store_state;
};
}  // namespace epjit::cache
