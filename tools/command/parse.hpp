// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tools/command/catalogue.hpp"

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace epjit::tools {

/// A command line taken apart by the catalogue; values are still text.
struct invocation {
    const command_info* command = nullptr;                                 ///< null: none was given
    std::map<std::string, std::vector<std::string>, std::less<>> options;  ///< by name with dashes; flags hold ""
    std::vector<std::string> arguments;

    [[nodiscard]] bool has(std::string_view option) const { return options.contains(option); }
    /// The only value of an option, empty when it was not given. @throws config_error when it was given twice.
    [[nodiscard]] std::optional<std::string> value(std::string_view option) const;
    /// Its values, split at commas.
    [[nodiscard]] std::vector<std::string> values(std::string_view option) const;
};

/// @throws config_error that says what was expected.
invocation parse(int argc, const char* const* argv);

/// Up to three of `names` that resemble `text`, best first.
std::vector<std::string> near_names(std::string_view text, const std::vector<std::string>& names);

}  // namespace epjit::tools
