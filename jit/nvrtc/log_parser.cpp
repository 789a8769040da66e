// SPDX-License-Identifier: Apache-2.0
#include "jit/nvrtc/log_parser.hpp"

#include <charconv>

namespace epjit::jit {
namespace {

std::string_view take_line(std::string_view& text) {
    const auto end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) {
        line.remove_suffix(1);
    }
    return line;
}

/// The number that stands before `unit`: number_before("Used 18 registers, 1024 bytes smem", " bytes smem")
/// is 1024.
std::uint32_t number_before(std::string_view line, std::string_view unit) {
    const auto at = line.find(unit);
    if (at == std::string_view::npos) {
        return 0;
    }
    auto first = at;
    while (first > 0 && line[first - 1] >= '0' && line[first - 1] <= '9') {
        --first;
    }
    std::uint32_t value = 0;
    std::from_chars(line.data() + first, line.data() + at, value);
    return value;
}

bool names(std::string_view line, std::string_view prefix, std::string_view symbol, std::string_view suffix) {
    const auto at = line.find(prefix);
    if (at == std::string_view::npos) {
        return false;
    }
    line.remove_prefix(at + prefix.size());
    return line.starts_with(symbol) && line.substr(symbol.size()).starts_with(suffix);
}

}  // namespace

std::optional<kernel_resources> parse_resources(std::string_view log, std::string_view lowered) {
    // ptxas info : Compiling entry function 'NAME' for 'sm_90a'
    // ptxas info : Function properties for NAME
    // ptxas      .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
    // ptxas info : Used 18 registers, used 1 barriers, 1024 bytes smem
    // Functions that were not inlined have their own "Function properties", whose spills count for the entry.
    std::optional<kernel_resources> found;
    bool inside = false;
    while (!log.empty()) {
        const std::string_view line = take_line(log);
        if (line.find("Compiling entry function '") != std::string_view::npos) {
            inside = names(line, "Compiling entry function '", lowered, "'");
        } else if (inside && line.find(" bytes spill stores") != std::string_view::npos) {
            if (!found) {
                found.emplace();
            }
            found->spill_bytes +=
                number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        } else if (inside && line.find("Used ") != std::string_view::npos) {
            if (!found) {
                found.emplace();
            }
            found->registers = number_before(line, " registers");
            found->shared_bytes = number_before(line, " bytes smem");
        }
    }
    return found && found->registers > 0 ? found : std::nullopt;
}

std::string first_error_line(std::string_view log) {
    std::string_view first;
    while (!log.empty()) {
        const std::string_view line = take_line(log);
        if (line.find("error") != std::string_view::npos || line.find("fatal") != std::string_view::npos) {
            return std::string(line);
        }
        if (first.empty() && line.find_first_not_of(" \t") != std::string_view::npos) {
            first = line;
        }
    }
    return std::string(first);
}

}  // namespace epjit::jit
