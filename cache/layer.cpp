// SPDX-License-Identifier: Apache-2.0
#include "cache/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <thread>

namespace epjit::cache::detail {
namespace {

constexpr std::size_t head_read_bytes = 4096;
constexpr int max_tries = 4;

bool worth_another_try(int code) {
    return code == ESTALE || code == EBUSY;
}

/// Reads until `to` is full or the file ends; -1 and errno on failure.
ssize_t read_fully(file_ops& ops, int fd, std::span<std::byte> to) {
    std::size_t done = 0;
    while (done < to.size()) {
        const ssize_t got = ops.read(fd, to.data() + done, to.size() - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return -1;
        }
        if (got == 0) {
            break;
        }
        done += static_cast<std::size_t>(got);
    }
    return static_cast<ssize_t>(done);
}

bool is_sub_name(const std::string& name) {
    return name.size() == 2 && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

}  // namespace

location location_of(const jit::digest& key, const jit::digest& compiler) {
    std::string name = entry_name(key, compiler);
    return {name.substr(0, 2), std::move(name)};
}

layer::layer(file_ops& ops, std::string path, dir_rule rule, bool writable, unique_fd root)
    : ops_(ops),
      path_(std::move(path)),
      rule_(rule),
      writable_(writable),
      root_(std::make_shared<const unique_fd>(std::move(root))) {}

std::shared_ptr<const unique_fd> layer::root() const {
    const std::scoped_lock lock(mutex_);
    return root_;
}

bool layer::reopen() {
    auto again = open_checked(ops_, path_, rule_, writable_);
    if (!again.fd) {
        return false;
    }
    const std::scoped_lock lock(mutex_);
    root_ = std::make_shared<const unique_fd>(std::move(again.fd));
    tagged_ = false;
    return true;
}

read_result layer::read_once(const location& where, bool head_only, int& code) {
    read_result result;
    const auto root_fd = root();
    const auto failed = [&](const char* call) {
        code = errno;
        if (code == ENOENT) {
            return result;
        }
        result.status = code == ELOOP || code == ENXIO || code == ENODEV ? read_status::bad : read_status::unreadable;
        result.why = code == ELOOP ? "it is a symbolic link" : fmt::format("{}: {}", call, errno_text(code));
        return result;
    };
    const unique_fd sub = open_sub(ops_, root_fd->get(), where.sub.c_str(), rule_, false);
    if (!sub) {
        return failed("opening its directory");
    }
    // O_NONBLOCK: a FIFO in an entry's place must not stop us.
    const unique_fd fd(
        ops_.openat(sub.get(), where.name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0));
    struct stat status {};
    if (!fd) {
        return failed("open");
    }
    if (ops_.fstat(fd.get(), &status) != 0) {
        return failed("fstat");
    }
    const auto bad = [&](std::string why) {
        result.status = read_status::bad;
        result.why = std::move(why);
        return result;
    };
    if (!S_ISREG(status.st_mode)) {
        return bad(S_ISDIR(status.st_mode) ? "it is a directory" : "it is not a regular file");
    }
    if (!is_ours(ops_, status, rule_)) {
        return bad(fmt::format("it belongs to user {} with mode {:04o}", status.st_uid, status.st_mode & 07777));
    }
    const auto size = static_cast<std::uint64_t>(status.st_size);
    if (size > max_entry_bytes) {
        return bad(fmt::format("{} bytes are too many for an entry", size));
    }
    std::vector<std::byte> bytes(
        static_cast<std::size_t>(head_only ? std::min<std::uint64_t>(size, head_read_bytes) : size));
    ssize_t got = read_fully(ops_, fd.get(), bytes);
    if (got < 0) {
        return failed("read");
    }
    bytes.resize(static_cast<std::size_t>(got));
    std::string why;
    if (head_only) {
        std::uint64_t need = 0;
        result.entry = decode_head(bytes, size, why, &need);
        if (!result.entry && need > bytes.size() && need <= size) {
            const std::size_t before = bytes.size();
            bytes.resize(static_cast<std::size_t>(need));
            got = read_fully(ops_, fd.get(), std::span(bytes).subspan(before));
            result.entry = got < 0 ? std::nullopt : decode_head(bytes, size, why);
        }
    } else {
        result.entry = decode_entry(bytes, why);
    }
    if (!result.entry) {
        return bad(why);
    }
    if (entry_name(result.entry->value.key, result.entry->value.compiler.id) != where.name ||
        where.name.substr(0, 2) != where.sub) {
        result.entry.reset();
        return bad("it holds another entry than its name says");
    }
    result.status = read_status::hit;
    result.mtime = status.st_mtim.tv_sec;
    return result;
}

read_result layer::read_with_retry(const location& where, bool head_only) {
    for (int tries = 1;; ++tries) {
        int code = 0;
        read_result result = read_once(where, head_only, code);
        if (result.status != read_status::unreadable || !worth_another_try(code) || tries == max_tries) {
            return result;
        }
        if (code == ESTALE) {
            reopen();
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(tries));
    }
}

read_result layer::read(const location& where) {
    return read_with_retry(where, false);
}
read_result layer::read_head(const location& where) {
    return read_with_retry(where, true);
}

std::vector<std::string> layer::names(const std::string& sub) {
    std::vector<std::string> found;
    const auto root_fd = root();
    const unique_fd dir = open_sub(ops_, root_fd->get(), sub.c_str(), rule_, false);
    if (dir) {
        read_names(ops_, dir.get(), found);
    }
    std::erase_if(found, [](const std::string& name) { return is_temp_name(name); });
    std::sort(found.begin(), found.end());
    return found;
}

std::vector<jit::digest> layer::builds(const jit::digest& key) {
    std::vector<jit::digest> found;
    for (const auto& name : names(key.hex().substr(0, 2))) {
        const auto parsed = parse_entry_name(name);
        if (parsed && parsed->key == key) {
            found.push_back(parsed->compiler);
        }
    }
    return found;
}

std::vector<std::string> layer::sub_directories() {
    std::vector<std::string> found;
    const auto root_fd = root();
    read_names(ops_, root_fd->get(), found);
    std::erase_if(found, [](const std::string& name) { return !is_sub_name(name); });
    std::sort(found.begin(), found.end());
    return found;
}

void layer::touch(const location& where, std::int64_t mtime) {
    const auto now = static_cast<std::int64_t>(std::time(nullptr));
    if (!writable_ || now - mtime < touch_interval_s) {
        return;
    }
    const auto root_fd = root();
    const unique_fd sub = open_sub(ops_, root_fd->get(), where.sub.c_str(), rule_, false);
    const unique_fd fd(
        sub ? ops_.openat(sub.get(), where.name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0) : -1);
    if (fd) {
        ops_.futimens(fd.get(), nullptr);  // best effort: only the order of eviction hangs on it
    }
}

bool layer::move_to_bad(int root, int dir, const std::string& name) {
    const unique_fd bad = open_sub(ops_, root, "bad", rule_, true);
    if (!bad || ops_.renameat(dir, name.c_str(), bad.get(), (name + make_temp_name()).c_str()) != 0) {
        return false;
    }
    trim_bad(bad.get());
    return true;
}

bool layer::quarantine(const location& where) {
    const auto root_fd = root();
    const unique_fd sub = open_sub(ops_, root_fd->get(), where.sub.c_str(), rule_, false);
    return writable_ && sub && move_to_bad(root_fd->get(), sub.get(), where.name);
}

void layer::trim_bad(int bad) {
    std::vector<std::string> found;
    read_names(ops_, bad, found);
    if (found.size() <= max_bad) {
        return;
    }
    std::vector<std::pair<timespec, std::string>> by_age;
    for (auto& name : found) {
        struct stat status {};
        ops_.fstatat(bad, name.c_str(), &status, AT_SYMLINK_NOFOLLOW);
        by_age.emplace_back(status.st_ctim, std::move(name));  // rename sets ctime: when it was moved here
    }
    std::sort(by_age.begin(), by_age.end(), [](const auto& a, const auto& b) {
        return std::pair(a.first.tv_sec, a.first.tv_nsec) < std::pair(b.first.tv_sec, b.first.tv_nsec);
    });
    for (std::size_t i = 0; i + max_bad < by_age.size(); ++i) {
        remove_tree(ops_, bad, by_age[i].second);
    }
}

void remove_tree(file_ops& ops, int dir, const std::string& name, int depth) {
    if (ops.unlinkat(dir, name.c_str(), 0) == 0 || (errno != EISDIR && errno != EPERM) || depth > 16) {
        return;
    }
    {
        const unique_fd inner(ops.openat(dir, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0));
        std::vector<std::string> names;
        if (inner && read_names(ops, inner.get(), names)) {
            for (const auto& each : names) {
                remove_tree(ops, inner.get(), each, depth + 1);
            }
        }
    }
    ops.unlinkat(dir, name.c_str(), AT_REMOVEDIR);
}

}  // namespace epjit::cache::detail
