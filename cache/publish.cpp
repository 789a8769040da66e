// SPDX-License-Identifier: Apache-2.0
// Publication of one entry: what can be seen under an entry's name was written, synced and closed without an error.
#include "cache/layer.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <string_view>

namespace epjit::cache::detail {
namespace {

constexpr std::string_view tag_text =
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by epjit. See https://bford.info/cachedir/\n";

std::string remedy_for(int code, const std::string& path) {
    switch (code) {
        case ENOSPC:
            return fmt::format("free space on the file system of {}, or name another directory in EPJIT_CACHE_PATH",
                               path);
        case EDQUOT:
            return fmt::format(
                "your disk quota is used up: free space, or name a directory on another file system than "
                "{} in EPJIT_CACHE_PATH",
                path);
        case EROFS: return "mount it writable, or name another directory in EPJIT_CACHE_PATH";
        case EACCES:
        case EPERM: return fmt::format("chmod -R u+rwX,go-w {}", path);
        default: return fmt::format("check the file system of {}, or name another directory in EPJIT_CACHE_PATH", path);
    }
}

bool worth_another_try(int code) {
    return code == ESTALE || code == EBUSY || code == ENOENT;
}

}  // namespace

/// `call` names the one that failed.
bool layer::write_temp(int dir, const std::string& temp, std::span<const std::byte> bytes, std::string& call) {
    call = "open";
    const int fd = ops_.openat(dir, temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return false;
    }
    const auto give_up = [&](const char* name) {
        const int code = errno;
        ops_.close(fd);
        errno = code;
        call = name;
        return false;
    };
    if (ops_.fchmod(fd, 0600) != 0) {  // under any umask
        return give_up("fchmod");
    }
    for (std::size_t done = 0; done < bytes.size();) {
        const ssize_t wrote = ops_.write(fd, bytes.data() + done, bytes.size() - done);
        if (wrote < 0 && errno == EINTR) {
            continue;
        }
        if (wrote <= 0) {
            errno = wrote == 0 ? EIO : errno;
            return give_up("write");
        }
        done += static_cast<std::size_t>(wrote);
    }
    if (ops_.fsync(fd) != 0) {
        return give_up("fsync");
    }
    call = "close";
    return ops_.close(fd) == 0;
}

publish_result layer::publish_once(const location& where, std::span<const std::byte> bytes, int& code) {
    const auto root_fd = root();
    const auto failed = [&](std::string_view call) {
        code = errno;
        return publish_result{
            fmt::format("{}/{} could not be stored: {}: {}", path_, where.text(), call, errno_text(code)),
            remedy_for(code, path_)};
    };
    unique_fd sub = open_sub(ops_, root_fd->get(), where.sub.c_str(), rule_, true);
    if (!sub && (errno == ENOTDIR || errno == ELOOP)) {
        // A file or a link stands where the directory belongs.
        move_to_bad(root_fd->get(), root_fd->get(), where.sub);
        sub = open_sub(ops_, root_fd->get(), where.sub.c_str(), rule_, true);
    }
    if (!sub) {
        return failed("opening its directory");
    }
    write_tag(root_fd->get());
    const std::string temp = make_temp_name();
    std::string call;
    if (!write_temp(sub.get(), temp, bytes, call)) {
        const auto result = failed(call);
        ops_.unlinkat(sub.get(), temp.c_str(), 0);
        return result;
    }
    const auto rename = [&] { return ops_.renameat(sub.get(), temp.c_str(), sub.get(), where.name.c_str()) == 0; };
    if (!rename() && (errno != EISDIR || !move_to_bad(root_fd->get(), sub.get(), where.name) || !rename())) {
        const auto result = failed("rename");
        ops_.unlinkat(sub.get(), temp.c_str(), 0);
        return result;
    }
    // Some file systems cannot sync a directory and say EINVAL; there the rename is as durable as it gets.
    if (ops_.fsync(sub.get()) != 0 && errno != EINVAL && errno != ENOTSUP) {
        return failed("fsync of its directory");
    }
    return {};
}

publish_result layer::publish(const location& where, std::span<const std::byte> bytes) {
    int code = 0;
    auto result = publish_once(where, bytes, code);
    for (int tries = 0; !result && worth_another_try(code) && tries < 2; ++tries) {
        // The directory was replaced, removed or lost by the server: from the root once more.
        if (code != EBUSY && !reopen()) {
            break;
        }
        code = 0;
        result = publish_once(where, bytes, code);
    }
    return result;
}

void layer::write_tag(int root) {
    {
        const std::scoped_lock lock(mutex_);
        if (tagged_) {
            return;
        }
        tagged_ = true;
    }
    // Backup programs skip a tagged directory. Best effort.
    const unique_fd fd(ops_.openat(root, "CACHEDIR.TAG", O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd) {
        ops_.fchmod(fd.get(), 0600);
        [[maybe_unused]] const ssize_t wrote = ops_.write(fd.get(), tag_text.data(), tag_text.size());
    }
}

}  // namespace epjit::cache::detail
