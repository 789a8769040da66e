// SPDX-License-Identifier: Apache-2.0
#include "tools/worker/process.hpp"

#include "epjit/error.hpp"
#include "tools/worker/protocol.hpp"
#include "tools/worker/worker.hpp"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

extern char** environ;

namespace epjit::tools {
namespace {

constexpr std::size_t tail_bytes = 2000;

struct pipe_ends {
    int read = -1, write = -1;
};

pipe_ends make_pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
        throw error(error_kind::internal,
                    fmt::format("cannot make a pipe for a compile worker: {}", std::strerror(errno)),
                    "raise the limit of open files (ulimit -n)");
    }
    return {ends[0], ends[1]};
}

void close_one(int& fd) noexcept {
    if (fd >= 0) {
        ::close(std::exchange(fd, -1));
    }
}

std::string exit_text(int status) {
    if (WIFSIGNALED(status)) {
        const int number = WTERMSIG(status);
        const char* description = sigdescr_np(number);
        return fmt::format("was killed by signal {} ({})", number, description == nullptr ? "unknown" : description);
    }
    return fmt::format("ended with status {}", WEXITSTATUS(status));
}

}  // namespace

worker_process::worker_process() {
    pipe_ends requests, replies, words;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const auto release = [&]() noexcept {
        posix_spawn_file_actions_destroy(&actions);
        close_one(requests.read);
        close_one(replies.write);
        close_one(words.write);
    };
    try {
        requests = make_pipe();
        replies = make_pipe();
        words = make_pipe();
    } catch (...) {
        release();
        close_one(requests.write);
        close_one(replies.read);
        throw;
    }
    posix_spawn_file_actions_adddup2(&actions, requests.read, 0);
    posix_spawn_file_actions_adddup2(&actions, words.write, 1);
    posix_spawn_file_actions_adddup2(&actions, words.write, 2);
    posix_spawn_file_actions_adddup2(&actions, replies.write, reply_descriptor);
    std::string name = "epjit", argument = worker_argument, parent = std::to_string(::getpid());
    std::array<char*, 4> argv{name.data(), argument.data(), parent.data(), nullptr};
    const int code = ::posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
    release();
    requests_ = requests.write;
    replies_ = replies.read;
    words_ = words.read;
    if (code != 0) {
        pid_ = -1;
        close_all();
        throw error(error_kind::internal, fmt::format("cannot start a compile worker: {}", std::strerror(code)),
                    "raise the limit of processes (ulimit -u), or see that /proc is mounted");
    }
    ::fcntl(replies_, F_SETFL, O_NONBLOCK);
    ::fcntl(words_, F_SETFL, O_NONBLOCK);
}

worker_process::~worker_process() {
    if (pid_ > 0) {
        ::kill(pid_, SIGKILL);
        while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
        }
    }
    close_all();
}

worker_process::worker_process(worker_process&& other) noexcept {
    *this = std::move(other);
}

worker_process& worker_process::operator=(worker_process&& other) noexcept {
    std::swap(job, other.job);
    std::swap(since, other.since);
    std::swap(pid_, other.pid_);
    std::swap(requests_, other.requests_);
    std::swap(replies_, other.replies_);
    std::swap(words_, other.words_);
    std::swap(buffer_, other.buffer_);
    std::swap(tail_, other.tail_);
    return *this;
}

void worker_process::close_all() noexcept {
    close_one(requests_);
    close_one(replies_);
    close_one(words_);
}

bool worker_process::send(const std::string& frame) {
    return write_frame(requests_, frame);
}

bool worker_process::receive() {
    char bytes[65536];
    for (;;) {
        const ssize_t n = ::read(replies_, bytes, sizeof bytes);
        if (n > 0) {
            buffer_.append(bytes, static_cast<std::size_t>(n));
        } else if (n == 0) {
            return false;
        } else if (errno != EINTR) {
            return errno == EAGAIN;
        }
    }
}

void worker_process::receive_words() {
    char bytes[4096];
    while (words_ >= 0) {
        const ssize_t n = ::read(words_, bytes, sizeof bytes);
        if (n > 0) {
            tail_.append(bytes, static_cast<std::size_t>(n));
            tail_.erase(0, tail_.size() - std::min(tail_.size(), tail_bytes));
        } else if (n == 0) {
            close_one(words_);
        } else if (errno != EINTR) {
            return;
        }
    }
}

std::optional<std::string> worker_process::reply() {
    return take_frame(buffer_);
}

std::string worker_process::finish() {
    if (pid_ <= 0) {
        return "could not be started";
    }
    int status = 0;
    // Its pipes are closed, so it is dying; SIGKILL does not change how a process that has died is reported.
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    receive_words();
    close_all();
    std::string text = exit_text(status);
    while (!tail_.empty() && (tail_.back() == '\n' || tail_.back() == ' ')) {
        tail_.pop_back();
    }
    return tail_.empty() ? text : fmt::format("{}; it printed: {}", text, tail_);
}

}  // namespace epjit::tools
