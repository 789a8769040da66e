// SPDX-License-Identifier: Apache-2.0
// One cache directory: reading checked entries and publishing new ones. docs/cache_format.md has the layout.
#pragma once

#include "cache/entry.hpp"
#include "cache/file_ops.hpp"
#include "cache/key_lock.hpp"
#include "cache/safe_dir.hpp"

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace epjit::cache::detail {

enum class read_status {
    hit,
    absent,
    bad,         ///< something is there and is not an intact entry of that name; `why`
    unreadable,  ///< the system said no; `why`
};

struct read_result {
    read_status status = read_status::absent;
    std::string why;
    std::optional<decoded_entry> entry;
    std::int64_t mtime = 0;
};

/// A publication's outcome: empty `problem` when the entry is on disk.
struct publish_result {
    std::string problem, remedy;
    explicit operator bool() const noexcept { return problem.empty(); }
};

/// Name in the cache: the sub-directory of two hex digits, and the file in it.
struct location {
    std::string sub, name;
    [[nodiscard]] std::string text() const { return sub + "/" + name; }
};
location location_of(const jit::digest& key, const jit::digest& compiler);

/// Thread-safe.
class layer {
   public:
    /// `root` is the checked directory.
    layer(file_ops& ops, std::string path, dir_rule rule, bool writable, unique_fd root);

    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    [[nodiscard]] bool writable() const noexcept { return writable_; }
    [[nodiscard]] file_ops& ops() const noexcept { return ops_; }
    [[nodiscard]] dir_rule rule() const noexcept { return rule_; }
    /// The directory; keep the pointer while using the descriptor. Reopened after ESTALE.
    [[nodiscard]] std::shared_ptr<const unique_fd> root() const;

    /// The whole entry, checked. ESTALE and EBUSY are tried again.
    read_result read(const location& where);
    /// The head only: for listings. Nothing is touched.
    read_result read_head(const location& where);
    /// Which compilers' builds of a key are named here (not yet checked).
    std::vector<jit::digest> builds(const jit::digest& key);
    /// Sub-directories of entries, by name.
    std::vector<std::string> sub_directories();
    /// Names in one of them, temps left out.
    std::vector<std::string> names(const std::string& sub);

    /// Temp file in the same directory, write, fsync, close, rename, fsync of the directory. No temp is left behind.
    publish_result publish(const location& where, std::span<const std::byte> bytes);
    /// Moves what is at `where` to bad/ and keeps at most 16 there; false when it could not be moved.
    bool quarantine(const location& where);
    /// Marks as used now when the last mark is older than an hour.
    void touch(const location& where, std::int64_t mtime);

   private:
    read_result read_once(const location& where, bool head_only, int& code);
    read_result read_with_retry(const location& where, bool head_only);
    publish_result publish_once(const location& where, std::span<const std::byte> bytes, int& code);
    bool write_temp(int dir, const std::string& temp, std::span<const std::byte> bytes, std::string& call);
    bool move_to_bad(int root, int dir, const std::string& name);
    void trim_bad(int bad);
    void write_tag(int root);
    bool reopen();

    file_ops& ops_;
    const std::string path_;
    const dir_rule rule_;
    const bool writable_;
    mutable std::mutex mutex_;
    std::shared_ptr<const unique_fd> root_;
    bool tagged_ = false;
};

inline constexpr int max_bad = 16;
inline constexpr std::int64_t touch_interval_s = 3600;
inline constexpr std::int64_t temp_lifetime_s = 3600;

/// Removes a file or a whole directory without following links; deeper than 16 levels is left.
void remove_tree(file_ops& ops, int dir, const std::string& name, int depth = 0);

}  // namespace epjit::cache::detail
