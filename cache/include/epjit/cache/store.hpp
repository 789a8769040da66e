// SPDX-License-Identifier: Apache-2.0
// Artifact in, same artifact out, across threads, processes, crashes and toolkits. Needs neither NVRTC nor a GPU.
#pragma once

#include "epjit/error.hpp"
#include "epjit/jit/artifact.hpp"
#include "epjit/jit/compiler.hpp"
#include "epjit/log.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace epjit::cache {

struct store_options {
    /// Layers, the first written, the rest read; see default_layers(). Empty: memory only, with a warning at the first
    /// compile unless `memory_only` says that it is meant.
    std::vector<std::string> layers;
    bool memory_only = false;
    std::uint64_t max_bytes = std::uint64_t{2} << 30;
    std::uint64_t max_files = 20'000;
    std::chrono::milliseconds lock_timeout{30'000};     ///< over all keys of a call
    std::chrono::milliseconds compile_timeout{60'000};  ///< of one variant
    bool offline = false;                               ///< a miss is an offline_miss_error
    /// `false`: an unsafe or unusable first layer is skipped with one warning; `true` (the command's `--cache-dir`
    /// for warm and cache): it is a cache_error naming the command that mends it.
    bool strict = false;
    /// `false`: a missing first layer is not created (commands that only look); it is then an empty cache.
    bool create = true;
    logger log;
};

/// The layers of `path` ("a:b:c"; EPJIT_CACHE_PATH), else $XDG_CACHE_HOME/epjit, else $HOME/.cache/epjit, else none.
std::vector<std::string> default_layers(const char* path);

enum class origin : std::uint8_t { compiled, disk, memory };

/// One variant as served.
struct served {
    std::shared_ptr<const jit::artifact> value;  ///< null when `failure` is set
    origin from = origin::memory;
    bool stored = false;  ///< compiled: it is on disk now; otherwise true
    std::exception_ptr failure;
};

/// Outcomes since construction; each is read on its own.
struct store_counters {
    std::atomic<std::uint64_t> memory_hits{0}, disk_hits{0}, misses{0}, compiles{0}, compile_failures{0}, corrupt{0},
        write_failures{0}, lock_waits{0}, lock_timeouts{0}, evicted{0}, compile_us{0};
    std::atomic<std::uint64_t> misses_other_compiler{0};  ///< of misses: the variant is stored, by another build only
    std::atomic<std::uint64_t> read_failures{0};          ///< an entry could not be opened or read; a miss
};

/// One entry of a listing.
struct entry_info {
    jit::digest key;
    jit::digest compiler;
    std::string path;
    std::vector<std::string> kernels;
    std::string arch;
    std::uint64_t bytes = 0;
    std::int64_t last_used = 0;  ///< seconds since 1970
    int layer = 0;
    std::string compiler_description;  ///< "NVRTC 13.0.88"
    std::string spec;                  ///< jit::describe
};

namespace detail {
class file_ops;
}

class store {
   public:
    /// @throws cache_error only when `strict`.
    explicit store(const store_options& options);
    /// For tests: every system call goes through `ops`, which outlives the store.
    store(const store_options& options, detail::file_ops& ops);
    ~store();
    store(const store&) = delete;
    store& operator=(const store&) = delete;

    /// Memory only, no allocation, no file access; null on a miss. `compiler` null: any build.
    [[nodiscard]] const jit::artifact* peek(const jit::digest& key, const jit::digest* compiler) const noexcept;

    /// Memory, then the layers in order, checked bytes only. With `compiler` only that build's entry is a hit;
    /// without, the newest verified one, and the log says which. A bad entry moves to bad/ and is a miss.
    std::optional<served> find(const jit::digest& key, const jit::digest* compiler);

    /// Serves every job, compiling what no layer holds exactly once over all processes that want it, free keys
    /// first. `compiler` may be null (no NVRTC): misses are then failures. `progress` is called as each is done.
    /// Failures are per variant; nothing is thrown for them. `cancelled` (may be empty) is polled.
    std::vector<served> get(std::span<const jit::compile_job> jobs, jit::compiler* compiler, int parallelism,
                            const std::function<void(std::size_t index, const served&)>& progress = {},
                            const std::function<bool()>& cancelled = {});

    /// Publishes one artifact to the written layer; false (and one warning) when it could not be stored.
    bool publish(const jit::artifact& value);

    [[nodiscard]] std::vector<entry_info> list() const;
    struct verify_result {
        std::uint64_t entries = 0, bad = 0;
        std::vector<std::string> bad_paths;
    };
    /// Every checksum; repairs nothing. A link or a directory in an entry's place is bad.
    [[nodiscard]] verify_result verify() const;
    /// Evicts least recently used entries until the bounds (or `max_bytes`) hold; never one in use. Returns how many.
    std::uint64_t prune(std::optional<std::uint64_t> max_bytes);
    /// One file with every verified entry / the reverse; both count entries. @throws cache_error.
    std::uint64_t export_to(const std::string& file, jit::digest* pack_digest = nullptr) const;
    /// The checksum inside proves integrity, not origin: with `expected` (what export gave as `pack_digest`) another
    /// pack is refused. A damaged pack stores nothing.
    std::uint64_t import_from(const std::string& file, const jit::digest* expected = nullptr);

    [[nodiscard]] const store_counters& counters() const noexcept;
    /// The directory that is written, empty when none can be.
    [[nodiscard]] const std::string& written_layer() const noexcept;

   private:
    struct state;
    std::unique_ptr<state> state_;
};

}  // namespace epjit::cache
