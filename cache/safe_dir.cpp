// SPDX-License-Identifier: Apache-2.0
#include "cache/safe_dir.hpp"

#include <climits>
#include <fmt/format.h>

#include <cerrno>
#include <deque>
#include <fstream>

namespace epjit::cache::detail {
namespace {

constexpr mode_t others_write = S_IWGRP | S_IWOTH;
constexpr int max_links = 40;

/// In a container with user namespaces the directories of the host's root appear under the overflow id. Taken for
/// root on the way to a cache, never for the cache itself.
bool is_unmapped_root(uid_t owner) {
    std::ifstream map("/proc/self/uid_map");
    unsigned long inside = 0, outside = 0, count = 0;
    if (!(map >> inside >> outside >> count) || count == 4294967295UL) {
        return false;
    }
    unsigned long overflow = 65534;
    std::ifstream("/proc/sys/kernel/overflowuid") >> overflow;
    return owner == overflow;
}

std::deque<std::string> split(const std::string& path) {
    std::deque<std::string> parts;
    std::size_t at = 0;
    while (at < path.size()) {
        const std::size_t end = std::min(path.find('/', at), path.size());
        const std::string part = path.substr(at, end - at);
        if (!part.empty() && part != ".") {
            parts.push_back(part);
        }
        at = end + 1;
    }
    return parts;
}

opened_dir refused(std::string problem, std::string remedy) {
    opened_dir result;
    result.problem = std::move(problem);
    result.remedy = std::move(remedy);
    return result;
}

constexpr const char* other_directory = "or name another directory in EPJIT_CACHE_PATH";

class walk {
   public:
    walk(file_ops& ops, const std::string& path, dir_rule rule, bool create)
        : ops_(ops), path_(path), rule_(rule), create_(create), left_(split(path)) {}

    opened_dir run() {
        here_ = unique_fd(ops_.openat(AT_FDCWD, "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
        if (!here_) {
            return refused(fmt::format("/ cannot be opened: {}", errno_text(errno)), {});
        }
        if (left_.empty()) {
            return refused("the root directory / cannot be a cache", "name a directory in EPJIT_CACHE_PATH");
        }
        while (!left_.empty()) {
            opened_dir problem;
            if (!step(problem)) {
                return problem;
            }
        }
        return finish();
    }

   private:
    /// Goes one component further; false and `problem` filled when the way ends here.
    bool step(opened_dir& problem) {
        const std::string name = left_.front();
        left_.pop_front();
        const bool last = left_.empty();
        const std::string at = so_far_ + "/" + name;
        struct stat status {};
        if (ops_.fstatat(here_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
            if (errno != ENOENT) {
                problem = refused(fmt::format("{} cannot be reached: {}", at, errno_text(errno)),
                                  fmt::format("give yourself access to {}, {}", at, other_directory));
                return false;
            }
            if (!create_) {
                problem = refused(fmt::format("{} does not exist", at), fmt::format("mkdir -m 700 -p {}", path_));
                problem.missing = true;
                return false;
            }
            if (ops_.mkdirat(here_.get(), name.c_str(), 0700) != 0 && errno != EEXIST) {
                problem = refused(
                    fmt::format("{} cannot be created: {}", at, errno_text(errno)),
                    fmt::format("make {} writable (chmod u+w), {}", so_far_.empty() ? "/" : so_far_, other_directory));
                return false;
            }
            made_ = true;
        } else if (S_ISLNK(status.st_mode)) {
            return follow(name, at, status, last, problem);
        }
        return enter(name, at, last, problem);
    }

    bool follow(const std::string& name, const std::string& at, const struct stat& status, bool last,
                opened_dir& problem) {
        char target[PATH_MAX + 1];
        const ssize_t length = ::readlinkat(here_.get(), name.c_str(), target, PATH_MAX);
        const std::string text(target, length > 0 ? static_cast<std::size_t>(length) : 0);
        if (last) {
            problem = refused(fmt::format("{} is a symbolic link (to {})", at, text),
                              "name the directory itself in EPJIT_CACHE_PATH");
            return false;
        }
        if (length <= 0 || ++links_ > max_links || !trusted(status.st_uid)) {
            problem =
                refused(fmt::format("the symbolic link {} on the way to {} belongs to user {} or cannot be followed",
                                    at, path_, status.st_uid),
                        "name the directory by a path without that link in EPJIT_CACHE_PATH");
            return false;
        }
        auto parts = split(text);
        left_.insert(left_.begin(), parts.begin(), parts.end());
        if (text.front() == '/') {
            here_ = unique_fd(ops_.openat(AT_FDCWD, "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
            so_far_.clear();
        }
        return true;
    }

    bool enter(const std::string& name, const std::string& at, bool last, opened_dir& problem) {
        if (made_) {
            // The umask may have taken the owner's own bits away.
            ::fchmodat(here_.get(), name.c_str(), 0700, 0);
            made_ = false;
        }
        // O_PATH needs no read permission on the directories on the way.
        const int access = last ? O_RDONLY : O_PATH;
        unique_fd next(ops_.openat(here_.get(), name.c_str(), access | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0));
        struct stat status {};
        if (!next || ops_.fstat(next.get(), &status) != 0) {
            const int code = errno;
            problem = code == ENOTDIR || code == ELOOP
                          ? refused(fmt::format("{} is not a directory", at),
                                    fmt::format("remove {}, {}", at, other_directory))
                          : refused(fmt::format("{} cannot be opened: {}", at, errno_text(code)),
                                    fmt::format("chmod u+rwx {}, {}", at, other_directory));
            return false;
        }
        here_ = std::move(next);
        so_far_ = at;
        status_ = status;
        if (last) {
            return true;
        }
        if (!trusted(status.st_uid)) {
            problem = refused(fmt::format("{}, on the way to {}, belongs to user {}, neither root nor you (user {})",
                                          at, path_, status.st_uid, ops_.user()),
                              "name a directory below your own in EPJIT_CACHE_PATH");
            return false;
        }
        if ((status.st_mode & others_write) != 0 && (status.st_mode & S_ISVTX) == 0) {
            problem = refused(fmt::format("{}, on the way to {}, is writable by others (mode {:04o})", at, path_,
                                          status.st_mode & 07777),
                              fmt::format("chmod go-w {}, {}", at, other_directory));
            return false;
        }
        return true;
    }

    bool trusted(uid_t owner) { return owner == 0 || owner == ops_.user() || is_unmapped_root(owner); }

    opened_dir finish() {
        const uid_t me = ops_.user();
        if (status_.st_uid != me && (rule_ == dir_rule::written || status_.st_uid != 0)) {
            return refused(fmt::format("{} belongs to user {}, not to {}you (user {})", path_, status_.st_uid,
                                       rule_ == dir_rule::read ? "root or " : "", me),
                           fmt::format("chown -R {} {} (as root), {}", me, path_, other_directory));
        }
        if ((status_.st_mode & others_write) != 0) {
            return refused(fmt::format("{} is writable by others (mode {:04o})", path_, status_.st_mode & 07777),
                           fmt::format("chmod go-w {}", path_));
        }
        opened_dir result;
        if (rule_ == dir_rule::written) {
            if ((status_.st_mode & S_IWUSR) == 0) {
                // For root access() says yes: the mode is the owner's word.
                result.unwritable = fmt::format("{} is read-only (mode {:04o})", path_, status_.st_mode & 07777);
                result.mend_unwritable = fmt::format("chmod u+w {}", path_);
            } else if (ops_.writable(here_.get()) != 0) {
                const int code = errno;
                result.unwritable = fmt::format("{} cannot be written: {}", path_, errno_text(code));
                result.mend_unwritable = code == EROFS ? std::string("mount it writable, ") + other_directory
                                                       : fmt::format("chmod u+rwx {}, {}", path_, other_directory);
            }
        }
        result.fd = std::move(here_);
        return result;
    }

    file_ops& ops_;
    const std::string& path_;
    const dir_rule rule_;
    const bool create_;
    std::deque<std::string> left_;
    std::string so_far_;
    unique_fd here_;
    struct stat status_ {};
    int links_ = 0;
    bool made_ = false;
};

}  // namespace

opened_dir open_checked(file_ops& ops, const std::string& path, dir_rule rule, bool create) {
    return walk(ops, path, rule, create).run();
}

bool is_ours(file_ops& ops, const struct stat& status, dir_rule rule) noexcept {
    return (status.st_uid == ops.user() || (rule == dir_rule::read && status.st_uid == 0)) &&
           (status.st_mode & others_write) == 0;
}

unique_fd open_sub(file_ops& ops, int root, const char* name, dir_rule rule, bool create) {
    constexpr int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    unique_fd fd(ops.openat(root, name, flags, 0));
    if (!fd && errno == ENOENT && create) {
        if (ops.mkdirat(root, name, 0700) == 0) {
            ::fchmodat(root, name, 0700, 0);
        } else if (errno != EEXIST) {
            return {};
        }
        fd = unique_fd(ops.openat(root, name, flags, 0));
    }
    struct stat status {};
    if (fd && ops.fstat(fd.get(), &status) != 0) {
        return {};
    }
    if (fd && !is_ours(ops, status, rule)) {
        errno = EPERM;
        return {};
    }
    return fd;
}

}  // namespace epjit::cache::detail
