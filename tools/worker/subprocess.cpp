// SPDX-License-Identifier: Apache-2.0
#include "tools/worker/subprocess.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace epjit::tools {
namespace {

double ms(const timeval& t) {
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_usec) * 1e-3;
}

std::vector<std::string> merged_environment(const std::vector<std::pair<std::string, std::string>>& changes) {
    std::vector<std::string> result;
    for (char** at = environ; *at != nullptr; ++at) {
        const std::string_view text = *at;
        const bool replaced = std::any_of(changes.begin(), changes.end(),
                                          [&](const auto& c) { return text.substr(0, text.find('=')) == c.first; });
        if (!replaced) {
            result.emplace_back(text);
        }
    }
    for (const auto& [name, value] : changes) {
        result.push_back(fmt::format("{}={}", name, value));
    }
    return result;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
    std::vector<char*> result;
    for (std::string& text : texts) {
        result.push_back(text.data());
    }
    result.push_back(nullptr);
    return result;
}

void drain(int out, int err, process_result& result) {
    pollfd fds[2] = {{out, POLLIN, 0}, {err, POLLIN, 0}};
    std::string* texts[2] = {&result.out, &result.err};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        if (::poll(fds, 2, -1) < 0 && errno != EINTR) {
            return;
        }
        for (int i = 0; i < 2; ++i) {
            if (fds[i].fd < 0 || fds[i].revents == 0) {
                continue;
            }
            char bytes[65536];
            const ssize_t n = ::read(fds[i].fd, bytes, sizeof bytes);
            if (n > 0) {
                texts[i]->append(bytes, static_cast<std::size_t>(n));
            } else if (n == 0 || errno != EINTR) {
                fds[i].fd = -1;
            }
        }
    }
}

}  // namespace

process_result run_process(const std::vector<std::string>& arguments,
                           const std::vector<std::pair<std::string, std::string>>& environment) {
    int out[2], err[2];
    if (::pipe2(out, O_CLOEXEC) != 0) {
        throw error(error_kind::internal, fmt::format("cannot make a pipe: {}", std::strerror(errno)));
    }
    if (::pipe2(err, O_CLOEXEC) != 0) {
        ::close(out[0]);
        ::close(out[1]);
        throw error(error_kind::internal, fmt::format("cannot make a pipe: {}", std::strerror(errno)));
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    std::vector<std::string> argv = arguments, env = merged_environment(environment);
    const auto start = std::chrono::steady_clock::now();
    pid_t pid = -1;
    const int code =
        ::posix_spawn(&pid, arguments.front().c_str(), &actions, nullptr, pointers(argv).data(), pointers(env).data());
    posix_spawn_file_actions_destroy(&actions);
    ::close(out[1]);
    ::close(err[1]);
    process_result result;
    if (code == 0) {
        drain(out[0], err[0], result);
    }
    ::close(out[0]);
    ::close(err[0]);
    if (code != 0) {
        throw error(error_kind::internal, fmt::format("cannot start {}: {}", arguments.front(), std::strerror(code)));
    }
    int status = 0;
    rusage usage{};
    while (::wait4(pid, &status, 0, &usage) < 0 && errno == EINTR) {
    }
    result.wall_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    result.cpu_ms = ms(usage.ru_utime) + ms(usage.ru_stime);
    result.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return result;
}

}  // namespace epjit::tools
