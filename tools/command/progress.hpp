// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

namespace epjit::tools {

/// How far a command is, on stderr: a bar that redraws itself on a terminal, plain lines elsewhere.
class progress {
   public:
    explicit progress(std::size_t total);
    ~progress();  ///< clears the bar
    progress(const progress&) = delete;
    progress& operator=(const progress&) = delete;

    /// One of `total` is done. `line` is printed where there is no terminal, unless empty; `worked` counts for the
    /// time left (cache hits do not).
    void advance(std::string_view item, std::string_view line, bool worked);
    /// A line that stays, above the bar.
    void note(std::string_view line);

   private:
    void draw(std::string_view item);
    void clear();

    std::size_t total_, done_ = 0, worked_ = 0;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    std::chrono::steady_clock::time_point drawn_{};
    bool terminal_;
    bool shown_ = false;
};

}  // namespace epjit::tools
