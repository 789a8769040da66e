// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <sys/types.h>

namespace epjit::tools {

/// One worker process and the pipes to it. Killed and reaped when destroyed. Not thread-safe.
class worker_process {
   public:
    /// @throws error of kind internal when no process can be started.
    worker_process();
    ~worker_process();
    worker_process(worker_process&& other) noexcept;
    worker_process& operator=(worker_process&& other) noexcept;

    /// False when the worker is gone.
    bool send(const std::string& frame);
    /// Reads what is there (after poll). False at the end of the stream: the worker died.
    bool receive();
    void receive_words();
    /// The next whole reply, if it is there.
    std::optional<std::string> reply();

    /// Kills it if need be, waits for it, and says how it ended and what it printed last:
    /// "was killed by signal 11 (Segmentation fault)".
    std::string finish();

    [[nodiscard]] int replies() const noexcept { return replies_; }  ///< to poll
    [[nodiscard]] int words() const noexcept { return words_; }      ///< its stdout and stderr, to poll; -1: closed

    // What it works on; kept here by the caller.
    std::optional<std::size_t> job;
    std::chrono::steady_clock::time_point since;

   private:
    void close_all() noexcept;
    pid_t pid_ = -1;
    int requests_ = -1, replies_ = -1, words_ = -1;
    std::string buffer_, tail_;
};

}  // namespace epjit::tools
