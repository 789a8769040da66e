// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/child.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdexcept>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

extern char** environ;

namespace epjit::tests {
namespace {

constexpr int report_descriptor = 3;
constexpr const char* name_variable = "EPJIT_TEST_CHILD";
constexpr const char* parent_variable = "EPJIT_TEST_PARENT";

void close_one(int& fd) noexcept {
    if (fd >= 0) {
        ::close(std::exchange(fd, -1));
    }
}

std::vector<std::string> merged(const environment_changes& changes) {
    std::vector<std::string> all;
    for (char** entry = environ; *entry != nullptr; ++entry) {
        const std::string_view text = *entry;
        const std::string_view name = text.substr(0, text.find('='));
        bool replaced = false;
        for (const auto& [changed, value] : changes) {
            replaced = replaced || changed == name;
        }
        if (!replaced) {
            all.emplace_back(text);
        }
    }
    for (const auto& [name, value] : changes) {
        all.push_back(name + "=" + value);
    }
    return all;
}

bool write_line(int fd, std::string_view line) {
    const std::string text = std::string(line) + "\n";
    for (std::size_t done = 0; done < text.size();) {
        const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        done += n > 0 ? static_cast<std::size_t>(n) : 0;
    }
    return true;
}

/// The first whole line of `buffer`, taken out of it.
std::optional<std::string> take_line(std::string& buffer) {
    const std::size_t end = buffer.find('\n');
    if (end == std::string::npos) {
        return std::nullopt;
    }
    std::string line = buffer.substr(0, end);
    buffer.erase(0, end + 1);
    return line;
}

int ms_until(deadline until) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    return static_cast<int>(std::max<std::int64_t>(0, left.count()));
}

}  // namespace

child_process::child_process(const std::string& name, const environment_changes& environment) {
    int to[2];
    int from[2];
    if (::pipe2(to, O_CLOEXEC) != 0) {
        throw std::runtime_error(fmt::format("cannot make a pipe: {}", std::strerror(errno)));
    }
    if (::pipe2(from, O_CLOEXEC) != 0) {
        ::close(to[0]);
        ::close(to[1]);
        throw std::runtime_error(fmt::format("cannot make a pipe: {}", std::strerror(errno)));
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], 0);
    posix_spawn_file_actions_adddup2(&actions, from[1], report_descriptor);
    environment_changes changes = environment;
    changes.emplace_back(name_variable, name);
    changes.emplace_back(parent_variable, std::to_string(::getpid()));
    std::vector<std::string> variables = merged(changes);
    std::vector<char*> pointers;
    for (std::string& text : variables) {
        pointers.push_back(text.data());
    }
    pointers.push_back(nullptr);
    std::string program = "epjit test rank";
    char* argv[] = {program.data(), nullptr};
    const int code = ::posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, argv, pointers.data());
    posix_spawn_file_actions_destroy(&actions);
    ::close(to[0]);
    ::close(from[1]);
    to_ = to[1];
    from_ = from[0];
    if (code != 0) {
        pid_ = -1;
        close_all();
        throw std::runtime_error(fmt::format("cannot start {}: {}", name, std::strerror(code)));
    }
}

child_process::child_process(child_process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      to_(std::exchange(other.to_, -1)),
      from_(std::exchange(other.from_, -1)),
      buffer_(std::move(other.buffer_)),
      ended_(other.ended_) {}

child_process::~child_process() {
    if (pid_ > 0 && !ended_) {
        ::kill(pid_, SIGKILL);
        while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
        }
    }
    close_all();
}

void child_process::close_all() noexcept {
    close_one(to_);
    close_one(from_);
}

bool child_process::send(std::string_view line) {
    return write_line(to_, line);
}

std::optional<std::string> child_process::receive(deadline until) {
    for (;;) {
        if (auto line = take_line(buffer_)) {
            return line;
        }
        pollfd ready{from_, POLLIN, 0};
        const int found = ::poll(&ready, 1, ms_until(until));
        if (found == 0) {
            return std::nullopt;
        }
        char bytes[65536];
        const ssize_t n = found > 0 ? ::read(from_, bytes, sizeof bytes) : -1;
        if (n == 0) {
            return std::nullopt;
        }
        if (n > 0) {
            buffer_.append(bytes, static_cast<std::size_t>(n));
        } else if (errno != EINTR) {
            return std::nullopt;
        }
    }
}

void child_process::signal(int number) const {
    if (pid_ > 0 && !ended_) {
        ::kill(pid_, number);
    }
}

child_process::ending child_process::wait(deadline until) {
    ending e;
    int status = 0;
    for (;;) {
        const pid_t done = ::waitpid(pid_, &status, e.in_time ? WNOHANG : 0);
        if (done == pid_) {
            break;
        }
        if (done < 0 && errno != EINTR) {
            break;
        }
        if (e.in_time && std::chrono::steady_clock::now() >= until) {
            e.in_time = false;
            ::kill(pid_, SIGKILL);
        } else if (e.in_time) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    }
    ended_ = true;
    e.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return e;
}

bool child_io::send(std::string_view line) {
    return write_line(report_descriptor, line);
}

std::optional<std::string> child_io::receive() {
    for (;;) {
        if (auto line = take_line(buffer_)) {
            return line;
        }
        char bytes[4096];
        const ssize_t n = ::read(0, bytes, sizeof bytes);
        if (n > 0) {
            buffer_.append(bytes, static_cast<std::size_t>(n));
        } else if (n == 0 || errno != EINTR) {
            return std::nullopt;
        }
    }
}

std::map<std::string, child_function>& child_functions() {
    static std::map<std::string, child_function> functions;
    return functions;
}

std::optional<int> run_as_child() {
    const char* name = std::getenv(name_variable);
    const char* parent = std::getenv(parent_variable);
    if (name == nullptr || parent == nullptr) {
        return std::nullopt;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != std::atoi(parent)) {
        return 1;  // the parent died before the line above
    }
    ::fcntl(report_descriptor, F_SETFD, FD_CLOEXEC);
    ::signal(SIGPIPE, SIG_IGN);
    const auto found = child_functions().find(name);
    if (found == child_functions().end()) {
        std::fprintf(stderr, "no child function %s\n", name);
        return 2;
    }
    child_io io;
    try {
        return found->second(io);
    } catch (const std::exception& e) {
        io.send("error\t" + escape(e.what()));
        return 1;
    }
}

std::string escape(std::string_view text) {
    std::string out;
    for (const char c : text) {
        switch (c) {
            case '\n': out += "\\n"; break;
            case '\t': out += "\\t"; break;
            case '\\': out += "\\\\"; break;
            default: out += c;
        }
    }
    return out;
}

std::string unescape(std::string_view field) {
    std::string out;
    for (std::size_t i = 0; i < field.size(); ++i) {
        if (field[i] == '\\' && i + 1 < field.size()) {
            ++i;
            out += field[i] == 'n' ? '\n' : field[i] == 't' ? '\t' : field[i];
        } else {
            out += field[i];
        }
    }
    return out;
}

std::vector<std::string> split_fields(std::string_view line) {
    std::vector<std::string> fields;
    for (;;) {
        const std::size_t end = line.find('\t');
        fields.push_back(unescape(line.substr(0, end)));
        if (end == std::string_view::npos) {
            return fields;
        }
        line.remove_prefix(end + 1);
    }
}

}  // namespace epjit::tests
