// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>

namespace epjit::templates {

struct embedded_file {
    std::string_view name;  ///< relative to the templates folder
    std::string_view text;
};

/// Every template the library was built with.
std::span<const embedded_file> embedded_files() noexcept;

}  // namespace epjit::templates
