// SPDX-License-Identifier: Apache-2.0
#include "cache/nearest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace epjit::cache::detail {
namespace {

std::vector<std::string_view> words(std::string_view text) {
    std::vector<std::string_view> found;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find(' ', at), text.size());
        if (end > at) {
            found.push_back(text.substr(at, end - at));
        }
        at = end + 1;
    }
    return found;
}

bool has(const std::vector<std::string_view>& in, std::string_view word) {
    return std::find(in.begin(), in.end(), word) != in.end();
}

std::string_view name_of(std::string_view word) {
    return word.substr(0, word.find('='));
}

/// The stored value of the same field, "nothing" when it has none.
std::string_view counterpart(std::string_view word, const std::vector<std::string_view>& only_stored) {
    const auto at = std::find_if(only_stored.begin(), only_stored.end(), [&](std::string_view other) {
        return word.find('=') != std::string_view::npos && name_of(other) == name_of(word);
    });
    return at != only_stored.end() ? *at : std::string_view{};
}

std::string describe_difference(const std::vector<std::string_view>& wanted,
                                const std::vector<std::string_view>& stored) {
    std::vector<std::string_view> only_stored;
    std::copy_if(stored.begin(), stored.end(), std::back_inserter(only_stored),
                 [&](std::string_view word) { return !has(wanted, word); });
    std::string text;
    const auto append = [&](std::string part) { text += (text.empty() ? "" : ", ") + std::move(part); };
    for (const auto word : wanted) {
        if (has(stored, word)) {
            continue;
        }
        const auto other = counterpart(word, only_stored);
        if (other.empty()) {
            append(fmt::format("{} is wanted", word));
        } else {
            append(fmt::format("{} where it has {}", word, other));
            std::erase(only_stored, other);
        }
    }
    for (const auto word : only_stored) {
        append(fmt::format("it has {}", word));
    }
    return text.empty() ? "the same values, made from other templates or options" : text;
}

}  // namespace

std::string nearest_difference(std::string_view wanted_spec, std::span<const entry_info> stored) {
    if (stored.empty()) {
        return "no entries are stored";
    }
    const auto wanted = words(wanted_spec);
    const auto distance = [&](const entry_info& info) {
        const auto other = words(info.spec);
        const auto missing = std::count_if(wanted.begin(), wanted.end(), [&](auto word) { return !has(other, word); });
        const bool other_kind = wanted.empty() || other.empty() || wanted.front() != other.front();
        return std::pair(other_kind, missing);
    };
    const auto nearest = std::min_element(stored.begin(), stored.end(),
                                          [&](const auto& a, const auto& b) { return distance(a) < distance(b); });
    return fmt::format("nearest entry {} ({}): {}", nearest->key.hex(), nearest->spec,
                       describe_difference(wanted, words(nearest->spec)));
}

}  // namespace epjit::cache::detail
