// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/profile.hpp"

#include <nlohmann/json.hpp>

#include <span>
#include <string>

namespace epjit::tools {

/// The profile in the file, without entries where there is no file. @throws config_error, unsupported_error.
jit::profile existing_profile(const std::string& path);

/// The knobs that are set, under their names in a profile.
nlohmann::ordered_json json_of(const jit::knobs& values);

/// @throws command_error (status 1) where no file can be made beside `path`: known before the work, not after it.
void require_writable(const std::string& path);

/// Puts `entries` into the file, in the place of those with the same keys: what is there is read again first. A new
/// file beside it is written whole, synchronised and renamed, so that no reader and no crash ever meets half of one.
/// @throws config_error as existing_profile(); command_error (status 1) where it cannot be written.
void write_profile(const std::string& path, std::span<const jit::profile_entry> entries);

}  // namespace epjit::tools
