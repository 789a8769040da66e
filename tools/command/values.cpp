// SPDX-License-Identifier: Apache-2.0
#include "tools/command/values.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

namespace epjit::tools {

std::optional<std::int64_t> whole_number(std::string_view text) noexcept {
    std::int64_t value = 0;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (code != std::errc{} || end != text.data() + text.size() || text.empty()) {
        return std::nullopt;
    }
    return value;
}

std::optional<std::uint64_t> byte_count(std::string_view text) noexcept {
    std::uint64_t value = 0;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (code != std::errc{}) {
        return std::nullopt;
    }
    std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
    unsigned shift = 0;
    if (!unit.empty()) {
        static constexpr std::string_view prefixes = "KMGT";
        const char upper = unit[0] >= 'a' && unit[0] <= 'z' ? static_cast<char>(unit[0] - 32) : unit[0];
        const std::size_t at = prefixes.find(upper);
        if (at != std::string_view::npos) {
            shift = 10 * (static_cast<unsigned>(at) + 1);
            unit.remove_prefix(1);
        }
        if (!(unit.empty() || unit == "B" || (shift != 0 && unit == "iB"))) {
            return std::nullopt;
        }
    }
    if (value > (std::numeric_limits<std::uint64_t>::max() >> shift)) {
        return std::nullopt;
    }
    return value << shift;
}

void refuse_value(std::string_view option, std::string_view expected, std::string_view found) {
    throw config_error(fmt::format("{}: expected {}, found \"{}\"", option, expected, found));
}

std::int64_t number_option(const invocation& call, std::string_view option, std::int64_t fallback, std::int64_t least,
                           std::int64_t most) {
    const auto text = call.value(option);
    if (!text) {
        return fallback;
    }
    const auto value = whole_number(*text);
    if (!value || *value < least || *value > most) {
        refuse_value(option,
                     most == std::numeric_limits<std::int64_t>::max()
                         ? fmt::format("a whole number, {} or more", least)
                         : fmt::format("a whole number of {} to {}", least, most),
                     *text);
    }
    return *value;
}

std::string choices(const invocation& call, std::string_view option) {
    for (const option_info& o : call.command->options) {
        if (o.name == option) {
            std::string text(o.value);
            for (std::size_t at; (at = text.find('|')) != std::string::npos;) {
                text.replace(at, 1, text.find('|', at + 1) == std::string::npos && o.also.empty() ? " or " : ", ");
            }
            return o.also.empty() ? text : fmt::format("{} or {}", text, o.also);
        }
    }
    return "another value";
}

std::vector<jit::target_arch> arch_option(const invocation& call) {
    std::vector<jit::target_arch> archs;
    for (std::string text : call.values("--arch")) {
        std::replace(text.begin(), text.end(), '-', '_');
        const auto arch = jit::target_arch::parse(text);
        if (!arch) {
            refuse_value("--arch", "a real GPU target such as sm_80, sm_90a or sm_100a", text);
        }
        if (std::find(archs.begin(), archs.end(), *arch) == archs.end()) {
            archs.push_back(*arch);
        }
    }
    return archs;
}

std::string plain_name(std::string_view text) {
    std::string result(text);
    for (char& c : result) {
        c = c == '_' ? '-' : c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    }
    return result;
}

std::string bytes_text(std::uint64_t bytes) {
    if (bytes < 1000) {
        return fmt::format("{} B", bytes);
    }
    static constexpr const char* units[] = {"KB", "MB", "GB", "TB"};
    double value = static_cast<double>(bytes) / 1000;
    unsigned unit = 0;
    while (value >= 999.5 && unit < 3) {
        value /= 1000;
        ++unit;
    }
    return value < 10 ? fmt::format("{:.1f} {}", value, units[unit]) : fmt::format("{:.0f} {}", value, units[unit]);
}

std::string age_text(std::int64_t then, std::int64_t now) {
    const std::int64_t seconds = std::max<std::int64_t>(0, now - then);
    const auto plural = [](std::int64_t n, const char* unit) {
        return fmt::format("{} {}{} ago", n, unit, n == 1 ? "" : "s");
    };
    if (seconds < 60) {
        return "just now";
    }
    if (seconds < 3600) {
        return fmt::format("{} min ago", seconds / 60);
    }
    return seconds < 86400 ? plural(seconds / 3600, "hour") : plural(seconds / 86400, "day");
}

}  // namespace epjit::tools
