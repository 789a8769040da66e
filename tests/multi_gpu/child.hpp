// SPDX-License-Identifier: Apache-2.0
// Processes of a suite: the program starts itself again, tells each child what to be through the environment, and talks
// with it in lines. A process is never forked and used further: neither CUDA nor NCCL survive that.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <utility>
#include <vector>

namespace epjit::tests {

using deadline = std::chrono::steady_clock::time_point;
inline deadline in_ms(std::int64_t ms) {
    return std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
}

using environment_changes = std::vector<std::pair<std::string, std::string>>;

/// A child and the pipes to it. Killed and reaped when destroyed. Its stdout is the parent's.
class child_process {
   public:
    /// Whose stderr a child's is: the parent's at once, or kept for last_words() and passed on in the end.
    enum class errors { shared, kept };
    /// Runs the child function `name` (see child_function) with these variables added to or replaced in this process's.
    /// @throws std::runtime_error.
    child_process(const std::string& name, const environment_changes& environment, errors to = errors::shared);
    ~child_process();
    child_process(child_process&& other) noexcept;
    child_process& operator=(child_process&&) = delete;

    /// A line for the child's child_io::receive(). False when the child is gone.
    bool send(std::string_view line);
    /// The next line that the child sent; empty when it ends first or the time is over.
    std::optional<std::string> receive(deadline until);
    void signal(int number) const;

    struct ending {
        bool in_time = true;  ///< else it was killed here
        int status = 0;       ///< exit status, or 128 + signal
    };
    /// Waits for its end, and kills it when the time is over.
    ending wait(deadline until);
    /// How it ended, where it has by `until`; it goes on otherwise.
    std::optional<ending> ended(deadline until);
    /// The end of what it has written to a stderr that is kept. A process that goes on says where it is first.
    std::string last_words();

   private:
    void close_all() noexcept;
    /// Reaps it if it has ended.
    bool reap(bool wait) noexcept;
    pid_t pid_ = -1;
    int to_ = -1, from_ = -1, errors_ = -1;
    std::string buffer_;
    std::optional<int> status_;  ///< exit status, or 128 + signal, once reaped
};

/// The child's side.
class child_io {
   public:
    /// False when the parent is gone.
    bool send(std::string_view line);
    /// Waits for the parent's next line; empty when the parent has closed its end.
    std::optional<std::string> receive();

   private:
    std::string buffer_;
};

using child_function = int (*)(child_io& io);

/// By name. Filled before main by register_child objects.
std::map<std::string, child_function>& child_functions();
struct register_child {
    register_child(const char* name, child_function function) { child_functions()[name] = function; }
};

/// The exit status of this process as a child; empty where it is not one.
std::optional<int> run_as_child();

/// Newlines and tabs made visible, so that a text is one field of a line; and back.
std::string escape(std::string_view text);
std::string unescape(std::string_view field);
std::vector<std::string> split_fields(std::string_view line);

}  // namespace epjit::tests
