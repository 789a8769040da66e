// SPDX-License-Identifier: Apache-2.0
#include "tools/command/table.hpp"

#include <algorithm>

namespace epjit::tools {

table::table(std::vector<column> columns) : columns_(std::move(columns)) {}

void table::add(std::vector<std::string> cells) {
    cells.resize(columns_.size());
    rows_.push_back(std::move(cells));
}

std::string table::text() const {
    std::vector<std::size_t> widths;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
        std::size_t width = columns_[c].title.size();
        for (const auto& row : rows_) {
            width = std::max(width, row[c].size());
        }
        widths.push_back(width);
    }
    std::string result;
    const auto line = [&](auto&& cell) {
        for (std::size_t c = 0; c < columns_.size(); ++c) {
            const std::string& value = cell(c);
            const std::string padding(widths[c] - value.size(), ' ');
            result += columns_[c].right ? padding + value : value + padding;
            result += "  ";
        }
        result.erase(result.find_last_not_of(' ') + 1);
        result += '\n';
    };
    line([&](std::size_t c) -> const std::string& { return columns_[c].title; });
    for (const auto& row : rows_) {
        line([&](std::size_t c) -> const std::string& { return row[c]; });
    }
    return result;
}

}  // namespace epjit::tools
