// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/child.hpp"

#include "tests/multi_gpu/last_words.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdexcept>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
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

child_process::child_process(const std::string& name, const environment_changes& environment, errors whose) {
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
    if (whose == errors::kept) {
        errors_ = ::memfd_create("stderr", MFD_CLOEXEC);
        if (errors_ >= 0) {
            ::fcntl(errors_, F_SETFL, O_APPEND);
            posix_spawn_file_actions_adddup2(&actions, errors_, 2);
        }
    }
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
      errors_(std::exchange(other.errors_, -1)),
      buffer_(std::move(other.buffer_)),
      status_(other.status_) {}

child_process::~child_process() {
    if (pid_ > 0 && !status_) {
        ::kill(pid_, SIGKILL);
        reap(true);
    }
    char bytes[4096];
    off_t at = 0;
    for (ssize_t n = 0; errors_ >= 0 && (n = ::pread(errors_, bytes, sizeof bytes, at)) > 0; at += n) {
        static_cast<void>(!::write(2, bytes, static_cast<std::size_t>(n)));
    }
    close_all();
}

void child_process::close_all() noexcept {
    close_one(to_);
    close_one(from_);
    close_one(errors_);
}

bool child_process::reap(bool wait) noexcept {
    while (!status_) {
        int status = 0;
        const pid_t done = ::waitpid(pid_, &status, wait ? 0 : WNOHANG);
        if (done == pid_) {
            status_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        } else if (done == 0 || errno != EINTR) {
            break;
        }
    }
    return status_.has_value();
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
    if (pid_ > 0 && !status_) {
        ::kill(pid_, number);
    }
}

std::optional<child_process::ending> child_process::ended(deadline until) {
    while (!reap(false)) {
        if (std::chrono::steady_clock::now() >= until) {
            return std::nullopt;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return ending{true, *status_};
}

child_process::ending child_process::wait(deadline until) {
    if (const auto e = ended(until)) {
        return *e;
    }
    ::kill(pid_, SIGKILL);
    reap(true);
    return {false, status_.value_or(-1)};
}

std::string child_process::last_words() {
    constexpr off_t most = 6000;
    const auto size = [this] {
        struct stat about {};
        return errors_ >= 0 && ::fstat(errors_, &about) == 0 ? about.st_size : off_t{0};
    };
    if (errors_ >= 0 && !reap(false)) {
        // Its first thread, which is the one that was asked something. A stopped one does not answer.
        const off_t before = size();
        ::syscall(SYS_tgkill, pid_, pid_, where_are_you);
        for (const deadline until = in_ms(500); size() == before && std::chrono::steady_clock::now() < until;) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    const off_t all = size();
    std::string text(static_cast<std::size_t>(std::min(all, most)), '\0');
    const ssize_t n = text.empty() ? 0 : ::pread(errors_, text.data(), text.size(), all - std::min(all, most));
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
    return text;
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
    leave_last_words();
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
