// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace epjit::tools {

/// Columns as wide as their widest cell, two spaces between; numbers (right = true) to the right.
class table {
   public:
    struct column {
        std::string title;
        bool right = false;
    };
    explicit table(std::vector<column> columns);
    void add(std::vector<std::string> cells);
    [[nodiscard]] std::size_t rows() const noexcept { return rows_.size(); }
    /// With a header line; lines end without spaces.
    [[nodiscard]] std::string text() const;

   private:
    std::vector<column> columns_;
    std::vector<std::vector<std::string>> rows_;
};

}  // namespace epjit::tools
