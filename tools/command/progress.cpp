// SPDX-License-Identifier: Apache-2.0
#include "tools/command/progress.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sys/ioctl.h>
#include <unistd.h>

namespace epjit::tools {
namespace {

bool is_terminal() {
    const char* term = std::getenv("TERM");
    return ::isatty(STDERR_FILENO) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

std::size_t terminal_columns() {
    winsize size{};
    return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

}  // namespace

progress::progress(std::size_t total) : total_(total), terminal_(is_terminal()) {}

progress::~progress() {
    clear();
}

void progress::advance(std::string_view item, std::string_view line, bool worked) {
    ++done_;
    worked_ += worked ? 1 : 0;
    if (terminal_) {
        draw(item);
    } else if (!line.empty()) {
        std::fputs(fmt::format("[{}/{}] {}\n", done_, total_, line).c_str(), stderr);
    }
}

void progress::note(std::string_view line) {
    clear();
    std::fputs(fmt::format("{}\n", line).c_str(), stderr);
}

void progress::draw(std::string_view item) {
    const auto now = std::chrono::steady_clock::now();
    if (shown_ && done_ < total_ && now - drawn_ < std::chrono::milliseconds(30)) {
        return;
    }
    drawn_ = now;
    constexpr std::size_t cells = 24;
    const std::size_t full = total_ == 0 ? cells : cells * done_ / total_;
    std::string left;
    if (worked_ > 0 && done_ < total_) {
        const double seconds = std::chrono::duration<double>(now - start_).count();
        left = fmt::format("  {:.0f} s left",
                           std::max(1.0, seconds / static_cast<double>(done_) * static_cast<double>(total_ - done_)));
    }
    std::string text = fmt::format("[{}{}] {} of {}{}  {}", std::string(full, '#'), std::string(cells - full, '.'),
                                   done_, total_, left, item);
    text.resize(std::min(text.size(), terminal_columns() - 1));
    std::fputs(fmt::format("\r{}\x1b[K", text).c_str(), stderr);
    shown_ = true;
}

void progress::clear() {
    if (shown_) {
        std::fputs("\r\x1b[K", stderr);
        shown_ = false;
    }
}

}  // namespace epjit::tools
