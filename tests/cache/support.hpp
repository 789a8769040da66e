// SPDX-License-Identifier: Apache-2.0
// What the cache's suites share: temporary directories, artifacts, a compiler without NVRTC, and failing system calls.
#pragma once

#include "cache/entry.hpp"
#include "cache/file_ops.hpp"
#include "epjit/cache/store.hpp"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace epjit::cache::test {

/// A fresh 0700 directory, removed with all it holds. HOME and the cache variables are not touched.
class temp_dir {
   public:
    temp_dir();
    ~temp_dir();
    temp_dir(const temp_dir&) = delete;
    temp_dir& operator=(const temp_dir&) = delete;
    [[nodiscard]] std::string operator/(const std::string& name) const { return path + "/" + name; }
    std::string path;
};

std::vector<std::byte> random_bytes(std::size_t count, std::uint64_t seed);
std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& text);
/// Regular files below `path` whose name contains `part`.
std::vector<std::string> files_below(const std::string& path, const std::string& part = "");
void set_mtime(const std::string& path, std::int64_t seconds_ago);

jit::compiler_identity compiler_a();
jit::compiler_identity compiler_b();

/// Variant `n`: its spec and key.
jit::compile_job job(int n, const std::string& arch = "sm_90a", const std::string& templates = "templates 1");
std::vector<jit::compile_job> jobs(int count);
jit::artifact make_artifact(const jit::compile_job& of, const jit::compiler_identity& compiler,
                            std::size_t cubin_bytes = 1000);

/// Keeps every line.
class log_lines {
   public:
    explicit log_lines(log_level level = log_level::info) : level_(level) {}
    logger get() { return {&log_lines::receive, this, level_}; }
    [[nodiscard]] std::vector<std::string> at(log_level level) const;
    [[nodiscard]] std::vector<std::string> warnings() const { return at(log_level::warn); }

   private:
    static void receive(void* user, log_level level, std::string_view line);
    log_level level_;
    mutable std::mutex mutex_;
    std::vector<std::pair<log_level, std::string>> lines_;
};

/// Makes artifacts; every compile appends the key to `count_file`, if one is given, in one write.
class fake_compiler : public jit::compiler {
   public:
    explicit fake_compiler(jit::compiler_identity identity = compiler_a(), std::string count_file = {})
        : identity_(std::move(identity)), count_file_(std::move(count_file)) {}
    [[nodiscard]] const jit::compiler_identity& identity() const noexcept override { return identity_; }
    [[nodiscard]] std::vector<jit::target_arch> targets() const override { return {{90, 'a'}}; }
    jit::artifact compile(const jit::compile_job& of, std::chrono::milliseconds deadline) override;
    void compile_all(std::span<const jit::compile_job> all, int parallelism, std::chrono::milliseconds deadline,
                     const std::function<void(std::size_t, jit::artifact*, std::exception_ptr)>& done,
                     const std::function<bool()>& cancelled) override;

    std::chrono::milliseconds delay{0};
    std::size_t cubin_bytes = 1000;
    std::set<jit::digest> failing;  ///< keys that give a compile_error
    std::set<jit::digest> empty;    ///< keys that give an empty cubin and success
    std::function<void()> before;   ///< called in every compile
    std::atomic<int> compiles{0};
    std::atomic<int> concurrent{0}, most_concurrent{0};

   private:
    jit::compiler_identity identity_;
    std::string count_file_;
};

store_options options_for(const std::string& path, log_lines* log = nullptr);
/// Options with several layers.
store_options options_for(std::vector<std::string> layers, log_lines* log = nullptr);

/// Real calls, but the `nth` (from 1) call named `call` on a matching name or any descriptor fails with `code`.
class failing_ops : public detail::file_ops {
   public:
    /// "openat", "mkdirat", "read", "write", "fsync", "close", "renameat", "unlinkat", "fstat", "fstatat", "fchmod",
    /// "futimens", "lock", "readdir".
    std::string call;
    int nth = 1;  ///< 0: every one
    int code = 0;
    bool only_writes = false;  ///< openat: only those that create a temp file
    bool short_write = false;  ///< write: half of the bytes are written, then `code` on the next call
    std::atomic<int> hits{0};  ///< injections that took place
    uid_t uid = static_cast<uid_t>(-1);

    int openat(int dir, const char* name, int flags, mode_t mode) noexcept override;
    int mkdirat(int dir, const char* name, mode_t mode) noexcept override;
    ssize_t read(int fd, void* to, std::size_t bytes) noexcept override;
    ssize_t write(int fd, const void* from, std::size_t bytes) noexcept override;
    int fsync(int fd) noexcept override;
    int close(int fd) noexcept override;
    int renameat(int from_dir, const char* from, int to_dir, const char* to) noexcept override;
    int unlinkat(int dir, const char* name, int flags) noexcept override;
    int fstat(int fd, struct stat* out) noexcept override;
    int fstatat(int dir, const char* name, struct stat* out, int flags) noexcept override;
    int fchmod(int fd, mode_t mode) noexcept override;
    int futimens(int fd, const timespec* times) noexcept override;
    int set_lock(int fd, struct flock* lock) noexcept override;
    uid_t user() noexcept override { return uid != static_cast<uid_t>(-1) ? uid : file_ops::user(); }

   private:
    bool inject(const char* name) noexcept;
    std::atomic<int> seen_{0};
    std::atomic<bool> cut_{false};
};

/// Runs `body` in a forked child that is not root (uid and gid 12345 when it was); returns its exit status, -1 when it
/// was killed. `body` returns the exit status; gtest assertions do not reach the parent.
int run_unprivileged(const std::function<int()>& body);

}  // namespace epjit::cache::test
