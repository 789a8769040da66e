// SPDX-License-Identifier: Apache-2.0
#include "host/runtime/nearest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace epjit::host {
namespace {

std::vector<std::string_view> words(std::string_view text) {
    std::vector<std::string_view> out;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find(' '), text.size());
        if (end != 0) {
            out.push_back(text.substr(0, end));
        }
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return out;
}

}  // namespace

int spec_distance(std::string_view a, std::string_view b) {
    const auto left = words(a), right = words(b);
    int distance = 0;
    for (std::size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
        if (i >= left.size() || i >= right.size() || left[i] != right[i]) {
            distance += i == 0 ? 100 : 1;
        }
    }
    return distance;
}

std::string spec_difference(std::string_view wanted, std::string_view stored) {
    const auto left = words(wanted), right = words(stored);
    std::string text;
    for (std::size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
        const std::string_view want = i < left.size() ? left[i] : "nothing";
        const std::string_view have = i < right.size() ? right[i] : "nothing";
        if (want != have) {
            text += fmt::format("{}{} instead of {}", text.empty() ? "" : ", ", have, want);
        }
    }
    return text;
}

std::string describe_nearest(cache::store& store, std::string_view wanted, const jit::template_set& templates) {
    constexpr std::size_t most_read = 2000;  // an error message need not read a whole large cache
    int best = std::numeric_limits<int>::max();
    std::string spec, key, version;
    const std::vector<cache::entry_info> entries = store.list();
    for (std::size_t i = 0; i < std::min(entries.size(), most_read); ++i) {
        const std::optional<cache::served> found = store.find(entries[i].key, nullptr);
        if (!found || found->value == nullptr) {
            continue;
        }
        if (const int distance = spec_distance(wanted, found->value->spec); distance < best) {
            best = distance;
            spec = found->value->spec;
            key = entries[i].key.hex();
            version = found->value->library_version;
        }
    }
    if (best == std::numeric_limits<int>::max()) {
        return "the cache holds no readable entry";
    }
    if (best == 0) {
        return fmt::format("entry {} has the same spec but was made from other templates or options (epjit {}{})", key,
                           version,
                           templates.directory().empty() ? "" : "; EPJIT_TEMPLATE_DIR is " + templates.directory());
    }
    return fmt::format("the nearest entry {} has {}", key, spec_difference(wanted, spec));
}

}  // namespace epjit::host
