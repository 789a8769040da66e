// SPDX-License-Identifier: Apache-2.0
#include "cache/file_ops.hpp"

#include <fmt/format.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <dirent.h>
#include <sys/random.h>

namespace epjit::cache::detail {

int file_ops::openat(int dir, const char* name, int flags, mode_t mode) noexcept {
    return ::openat(dir, name, flags, mode);
}
int file_ops::mkdirat(int dir, const char* name, mode_t mode) noexcept {
    return ::mkdirat(dir, name, mode);
}
ssize_t file_ops::read(int fd, void* to, std::size_t bytes) noexcept {
    return ::read(fd, to, bytes);
}
ssize_t file_ops::write(int fd, const void* from, std::size_t bytes) noexcept {
    return ::write(fd, from, bytes);
}
int file_ops::fsync(int fd) noexcept {
    return ::fsync(fd);
}
int file_ops::close(int fd) noexcept {
    return ::close(fd);
}
int file_ops::renameat(int from_dir, const char* from, int to_dir, const char* to) noexcept {
    return ::renameat(from_dir, from, to_dir, to);
}
int file_ops::unlinkat(int dir, const char* name, int flags) noexcept {
    return ::unlinkat(dir, name, flags);
}
int file_ops::fstat(int fd, struct stat* out) noexcept {
    return ::fstat(fd, out);
}
int file_ops::fstatat(int dir, const char* name, struct stat* out, int flags) noexcept {
    return ::fstatat(dir, name, out, flags);
}
int file_ops::fchmod(int fd, mode_t mode) noexcept {
    return ::fchmod(fd, mode);
}
int file_ops::futimens(int fd, const timespec* times) noexcept {
    return ::futimens(fd, times);
}
int file_ops::set_lock(int fd, struct flock* lock) noexcept {
    return ::fcntl(fd, F_OFD_SETLK, lock);
}
int file_ops::writable(int dir) noexcept {
    return ::faccessat(dir, ".", W_OK | X_OK, AT_EACCESS);
}
uid_t file_ops::user() noexcept {
    return ::geteuid();
}

file_ops& file_ops::system() noexcept {
    static file_ops real;
    return real;
}

std::string errno_text(int code) {
    const char* name = strerrorname_np(code);
    return fmt::format("{} ({})", std::strerror(code), name != nullptr ? name : "unknown");
}

bool read_names(file_ops& ops, int dir, std::vector<std::string>& names) {
    // A description of its own: fdopendir takes the descriptor over, and the offset must not be shared.
    const int fd = ops.openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0) {
        return false;
    }
    DIR* stream = ::fdopendir(fd);
    if (stream == nullptr) {
        const int code = errno;
        ::close(fd);
        errno = code;
        return false;
    }
    errno = 0;
    while (const dirent* item = ::readdir(stream)) {
        const std::string name = item->d_name;
        if (name != "." && name != "..") {
            names.push_back(name);
        }
        errno = 0;
    }
    const int code = errno;
    ::closedir(stream);
    errno = code;
    return code == 0;
}

static constexpr char temp_prefix[] = ".tmp-";

bool is_temp_name(const std::string& name) noexcept {
    return name.rfind(temp_prefix, 0) == 0;
}

std::string make_temp_name() {
    // pid and time are not unique between containers that share a directory, random bits are.
    std::uint64_t random = 0;
    if (::getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random) {
        static std::atomic<std::uint64_t> counter{0};
        random =
            static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()) ^ (++counter << 48);
    }
    return fmt::format("{}{}-{:016x}", temp_prefix, ::getpid(), random);
}

}  // namespace epjit::cache::detail
