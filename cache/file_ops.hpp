// SPDX-License-Identifier: Apache-2.0
// The system calls of the cache in one place, so that tests can make each of them fail.
#pragma once

#include <cstddef>
#include <fcntl.h>
#include <string>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace epjit::cache::detail {

/// As the system calls of the same names: -1 and errno on failure. Stateless and thread-safe.
class file_ops {
   public:
    virtual ~file_ops() = default;
    virtual int openat(int dir, const char* name, int flags, mode_t mode) noexcept;
    virtual int mkdirat(int dir, const char* name, mode_t mode) noexcept;
    virtual ssize_t read(int fd, void* to, std::size_t bytes) noexcept;
    virtual ssize_t write(int fd, const void* from, std::size_t bytes) noexcept;
    virtual int fsync(int fd) noexcept;
    virtual int close(int fd) noexcept;
    virtual int renameat(int from_dir, const char* from, int to_dir, const char* to) noexcept;
    virtual int unlinkat(int dir, const char* name, int flags) noexcept;
    virtual int fstat(int fd, struct stat* out) noexcept;
    virtual int fstatat(int dir, const char* name, struct stat* out, int flags) noexcept;
    virtual int fchmod(int fd, mode_t mode) noexcept;
    virtual int futimens(int fd, const timespec* times) noexcept;
    /// fcntl(fd, F_OFD_SETLK, lock): never waits.
    virtual int set_lock(int fd, struct flock* lock) noexcept;
    /// faccessat(dir, ".", W_OK | X_OK, AT_EACCESS).
    virtual int writable(int dir) noexcept;
    /// The effective user.
    virtual uid_t user() noexcept;

    /// The real ones.
    static file_ops& system() noexcept;
};

/// An owned file descriptor. The destructor ignores what close says: who writes must call close through file_ops.
class unique_fd {
   public:
    unique_fd() noexcept = default;
    explicit unique_fd(int fd) noexcept : fd_(fd) {}
    unique_fd(unique_fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    unique_fd& operator=(unique_fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~unique_fd() {
        if (fd_ >= 0) {
            ::close(fd_);
        }
    }
    [[nodiscard]] int get() const noexcept { return fd_; }
    [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }
    explicit operator bool() const noexcept { return fd_ >= 0; }

   private:
    int fd_ = -1;
};

/// "No space left on device (ENOSPC)".
std::string errno_text(int code);

/// Names in a directory but "." and "..", unsorted; false and errno when it cannot be read. `dir` stays open.
bool read_names(file_ops& ops, int dir, std::vector<std::string>& names);

/// A regular file's name in a fan-out directory that a writer has not renamed yet.
bool is_temp_name(const std::string& name) noexcept;
/// ".tmp-<pid>-<random>": never seen before on any machine that shares the directory.
std::string make_temp_name();

}  // namespace epjit::cache::detail
