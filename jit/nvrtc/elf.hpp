// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/hash.hpp"

#include <cstddef>
#include <optional>
#include <span>
#include <string>

namespace epjit::jit {

/// GNU build-id of a 64-bit little-endian ELF file (note in a PT_NOTE segment), as hex; empty when it has
/// none or is no such file.
std::optional<std::string> elf_build_id(const std::string& path);

/// What tells two builds of a library apart, wherever they lie: "build-id:<hex>", else "xxh3:<hex>" over the
/// file; empty when the file cannot be read.
std::string file_identity(const std::string& path);

/// Whether `image` starts like an ELF file, as every cubin does.
bool is_elf(std::span<const std::byte> image) noexcept;

}  // namespace epjit::jit
