// SPDX-License-Identifier: Apache-2.0
#include "jit/program/includes.hpp"

namespace epjit::jit {
namespace {

constexpr std::string_view blanks = " \t\v\f\r";

std::string_view trim(std::string_view text) {
    const auto first = text.find_first_not_of(blanks);
    if (first == std::string_view::npos) {
        return {};
    }
    return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

bool starts_with_word(std::string_view text, std::string_view word) {
    if (!text.starts_with(word)) {
        return false;
    }
    const char next = text.size() > word.size() ? text[word.size()] : ' ';
    return !(next == '_' || (next >= '0' && next <= '9') || (next >= 'a' && next <= 'z') ||
             (next >= 'A' && next <= 'Z'));
}

/// One logical line without comments -> its directive, if it includes something.
void scan_line(std::string_view line, int number, std::vector<include_line>& found) {
    std::string_view text = trim(line);
    if (text.starts_with("%:")) {
        text.remove_prefix(1);  // digraph of '#'
    } else if (!text.starts_with('#')) {
        return;
    }
    const std::string_view directive = trim(text.substr(1));
    include_line entry{include_form::other, {}, std::string(trim(line)), number};
    if (starts_with_word(directive, "include")) {
        const std::string_view operand = trim(directive.substr(7));
        const auto close = operand.size() > 1 ? operand.find('"', 1) : std::string_view::npos;
        if (operand.starts_with('"') && close != std::string_view::npos && close > 1) {
            entry.form = include_form::quoted;
            entry.name = operand.substr(1, close - 1);
        }
        found.push_back(std::move(entry));
    } else if (starts_with_word(directive, "include_next") || starts_with_word(directive, "import") ||
               directive.find("__has_include") != std::string_view::npos || starts_with_word(directive, "embed")) {
        found.push_back(std::move(entry));
    }
}

}  // namespace

std::vector<include_line> scan_includes(std::string_view source) {
    std::vector<include_line> found;
    std::string line;  // the logical line so far, comments replaced by a blank
    int number = 1;
    int line_number = 1;
    char literal = 0;  // quote of an open string or character literal
    bool block = false;
    bool rest = false;  // in a // comment
    for (std::size_t i = 0; i < source.size(); ++i) {
        const char c = source[i];
        const char next = i + 1 < source.size() ? source[i + 1] : '\n';
        if (c == '\\' && (next == '\n' || (next == '\r' && i + 2 < source.size() && source[i + 2] == '\n'))) {
            i += next == '\r' ? 2 : 1;
            ++number;
        } else if (c == '\n') {
            ++number;
            if (!block) {
                scan_line(line, line_number, found);
                line.clear();
                line_number = number;
                rest = false;
                literal = 0;
            }
        } else if (rest) {
            continue;
        } else if (block) {
            if (c == '*' && next == '/') {
                block = false;
                ++i;
            }
        } else if (literal != 0) {
            line.push_back(c);
            if (c == '\\') {
                line.push_back(next);
                ++i;
            } else if (c == literal) {
                literal = 0;
            }
        } else if (c == '/' && next == '/') {
            rest = true;
        } else if (c == '/' && next == '*') {
            block = true;
            line.push_back(' ');
            ++i;
        } else {
            // A digit separator (1'000) is no literal, and an apostrophe opens none that matters here.
            literal = c == '"' ? c : char{0};
            line.push_back(c);
        }
    }
    scan_line(line, line_number, found);
    return found;
}

}  // namespace epjit::jit
