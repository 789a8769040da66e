// SPDX-License-Identifier: Apache-2.0
#include "tools/command/profile_file.hpp"

#include "tools/command/context.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <string_view>
#include <unistd.h>

namespace epjit::tools {
namespace {

[[noreturn]] void refuse(const std::string& path, const char* call, int code) {
    throw command_error(exit_check_failed, error_kind::config,
                        fmt::format("cannot write the profile {}: {}: {}", path, call, std::strerror(code)),
                        "name another file with --out");
}

std::string folder_of(const std::string& path) {
    const std::filesystem::path target(path);
    return target.has_parent_path() ? target.parent_path().string() : ".";
}

bool write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t wrote = ::write(fd, text.data(), text.size());
        if (wrote < 0 && errno == EINTR) {
            continue;
        }
        if (wrote <= 0) {
            errno = wrote == 0 ? EIO : errno;
            return false;
        }
        text.remove_prefix(static_cast<std::size_t>(wrote));
    }
    return true;
}

}  // namespace

jit::profile existing_profile(const std::string& path) {
    return ::access(path.c_str(), F_OK) == 0 ? jit::load_profile(path) : jit::profile{};
}

nlohmann::ordered_json json_of(const jit::knobs& values) {
    auto object = nlohmann::ordered_json::object();
    for (const jit::knob_info& k : jit::knob_infos()) {
        if (values.*k.field != 0) {
            object[std::string(k.name)] = values.*k.field;
        }
    }
    return object;
}

void require_writable(const std::string& path) {
    if (::access(folder_of(path).c_str(), W_OK | X_OK) != 0) {
        refuse(path, "its folder", errno);
    }
}

void write_profile(const std::string& path, std::span<const jit::profile_entry> entries) {
    jit::profile merged = existing_profile(path);
    for (const jit::profile_entry& entry : entries) {
        jit::merge_entry(merged, entry);
    }
    const std::string folder = folder_of(path);
    const std::string temp = fmt::format("{}/.{}.tmp-{}", folder, std::filesystem::path(path).filename().string(),
                                         static_cast<long>(::getpid()));
    const int fd = ::open(temp.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0) {
        refuse(path, "open", errno);
    }
    const char* failed = !write_all(fd, jit::profile_text(merged.entries)) ? "write"
                         : ::fsync(fd) != 0                                ? "fsync"
                                                                           : nullptr;
    int code = errno;
    if (::close(fd) != 0 && failed == nullptr) {
        failed = "close";
        code = errno;
    }
    if (failed == nullptr && ::rename(temp.c_str(), path.c_str()) != 0) {
        failed = "rename";
        code = errno;
    }
    if (failed != nullptr) {
        ::unlink(temp.c_str());
        refuse(path, failed, code);
    }
    // Best effort: without it a crash of the machine may bring the old file back, whole.
    if (const int dir = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); dir >= 0) {
        ::fsync(dir);
        ::close(dir);
    }
}

}  // namespace epjit::tools
