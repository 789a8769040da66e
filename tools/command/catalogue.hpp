// SPDX-License-Identifier: Apache-2.0
// The commands and their options as data: parsing, help and shell completion all read this one table.
#pragma once

#include <span>
#include <string_view>

namespace epjit::tools {

struct option_info {
    std::string_view name;    ///< with dashes: "--model"
    std::string_view value;   ///< "N", "FILE", "host|loopback": a bar makes it a choice; empty: a flag
    std::string_view help;    ///< one line
    bool list = false;        ///< values separated by commas, and may be repeated
    std::string_view also{};  ///< values beside the choices, as shown: "FILE.npy"
};

struct argument_info {
    std::string_view name;  ///< "KEY", or choices separated by bars
    std::string_view help;
    bool required = true;
};

struct command_info {
    std::string_view name;
    std::string_view summary;  ///< one line of the command list
    std::string_view details;  ///< a few lines of its own help
    std::span<const argument_info> arguments;
    std::span<const option_info> options;
    std::string_view examples;  ///< one a line
};

/// Every command, in the order of the help.
std::span<const command_info> commands() noexcept;
/// Options that every command takes, before and after its name.
std::span<const option_info> global_options() noexcept;
/// Null when there is none.
const command_info* find_command(std::string_view name) noexcept;

}  // namespace epjit::tools
