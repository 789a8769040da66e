// SPDX-License-Identifier: Apache-2.0
#include "cache/key_lock.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <sys/socket.h>
#include <sys/un.h>

namespace epjit::cache::detail {

std::int64_t lock_offset(lock_area area, const jit::digest& key, const jit::digest& compiler) noexcept {
    std::uint64_t a = 0, b = 0;
    std::memcpy(&a, key.bytes.data(), sizeof a);
    std::memcpy(&b, compiler.bytes.data(), sizeof b);
    const std::uint64_t mixed = a ^ (b * 0x9e3779b97f4a7c15ULL);
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(area) | (mixed >> 4));
}

lock_file::lock_file(file_ops& ops, int root) : ops_(ops) {
    fd_ = unique_fd(ops_.openat(root, "locks", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
    struct stat status {};
    if (ops_.fstat(fd_ ? fd_.get() : root, &status) == 0) {
        device_ = status.st_dev;
        inode_ = status.st_ino;
    }
    if (fd_ && (!S_ISREG(status.st_mode) || status.st_uid != ops_.user())) {
        fd_ = {};
    } else if (fd_ && (status.st_mode & 07777) != 0600) {
        ops_.fchmod(fd_.get(), 0600);  // the umask took bits away
    }
}

lock_result lock_file::try_lock(std::int64_t offset, bool exclusive) {
    if (fd_) {
        struct flock lock {};
        lock.l_type = exclusive ? F_WRLCK : F_RDLCK;
        lock.l_whence = SEEK_SET;
        lock.l_start = offset;
        lock.l_len = 1;
        int result = 0;
        do {
            result = ops_.set_lock(fd_.get(), &lock);
        } while (result != 0 && errno == EINTR);
        if (result == 0) {
            return lock_result::acquired;
        }
        if (errno == EAGAIN || errno == EACCES) {
            return lock_result::busy;
        }
    }
    // Marks of use are shared and long-lived: they have no such fallback.
    const bool can_fall_back = exclusive && offset < static_cast<std::int64_t>(lock_area::use);
    return can_fall_back ? try_node_lock(offset) : lock_result::unsupported;
}

lock_result lock_file::try_node_lock(std::int64_t offset) {
    unique_fd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    // An abstract name (leading zero): no file, gone with the process.
    const std::string name = fmt::format("epjit-{}-{:x}-{:x}-{:x}", ops_.user(), device_, inode_, offset);
    name.copy(address.sun_path + 1, sizeof address.sun_path - 1);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
        return fd && errno == EADDRINUSE ? lock_result::busy : lock_result::unsupported;
    }
    node_locks_[offset] = std::move(fd);
    return lock_result::acquired;
}

void lock_file::unlock(std::int64_t offset) noexcept {
    if (node_locks_.erase(offset) != 0 || !fd_) {
        return;
    }
    struct flock lock {};
    lock.l_type = F_UNLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = offset;
    lock.l_len = 1;
    ops_.set_lock(fd_.get(), &lock);
}

}  // namespace epjit::cache::detail
