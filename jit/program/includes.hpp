// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace epjit::jit {

enum class include_form {
    quoted,  ///< #include "name"
    other,   ///< angle brackets, a macro, #include_next, #import, __has_include: what templates may not use
};

struct include_line {
    include_form form = include_form::other;
    std::string name;  ///< quoted form only
    std::string text;  ///< the directive, for messages
    int number = 0;    ///< line, from 1
};

/// Every include directive of a source text, also those in branches the preprocessor would skip, so that a
/// key never misses a file. Comments are skipped, spliced lines joined.
std::vector<include_line> scan_includes(std::string_view source);

}  // namespace epjit::jit
