// SPDX-License-Identifier: Apache-2.0
// Text of the command line and environment to values, and values to text for people.
#pragma once

#include "epjit/error.hpp"
#include "epjit/jit/spec.hpp"
#include "tools/command/parse.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace epjit::tools {

/// All of `text` as a decimal number; empty otherwise, also beyond 64 bits.
std::optional<std::int64_t> whole_number(std::string_view text) noexcept;
/// "500M" and the like: K, M, G, T are powers of 1024, with or without "iB" or "B".
std::optional<std::uint64_t> byte_count(std::string_view text) noexcept;

/// The option's value or `fallback`. @throws config_error when it is no number of [least, most].
std::int64_t number_option(const invocation& call, std::string_view option, std::int64_t fallback, std::int64_t least,
                           std::int64_t most);

/// @throws config_error: `option`, what was expected and found.
[[noreturn]] void refuse_value(std::string_view option, std::string_view expected, std::string_view found);

/// The catalogue's choices of an option: for messages.
std::string choices(const invocation& call, std::string_view option);

/// An option whose values are names of an enumeration, hyphen and underscore alike.
template <class Enum>
Enum enum_option(const invocation& call, std::string_view option, Enum fallback) {
    const auto text = call.value(option);
    if (!text) {
        return fallback;
    }
    const auto value = epjit::parse<Enum>(*text);
    if (!value) {
        refuse_value(option, choices(call, option), *text);
    }
    return *value;
}

/// `--arch`, a list; empty when it was not given.
std::vector<jit::target_arch> arch_option(const invocation& call);

/// With hyphens for underscores, in lower case: how names are compared.
std::string plain_name(std::string_view text);

/// "61.2 KB", "1.3 MB", "17 B": powers of 1000.
std::string bytes_text(std::uint64_t bytes);
/// "just now", "5 min ago", "3 days ago" for seconds since 1970.
std::string age_text(std::int64_t then, std::int64_t now);

}  // namespace epjit::tools
