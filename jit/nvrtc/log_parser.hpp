// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace epjit::jit {

struct kernel_resources {
    std::uint32_t registers = 0;
    std::uint32_t shared_bytes = 0;
    std::uint32_t spill_bytes = 0;  ///< stores + loads
    friend bool operator==(const kernel_resources&, const kernel_resources&) = default;
};

/// What the assembler's verbose log says of the entry function `lowered`; empty when it says nothing of it.
std::optional<kernel_resources> parse_resources(std::string_view log, std::string_view lowered);

/// The first line that reports an error, else the first line that is not blank.
std::string first_error_line(std::string_view log);

}  // namespace epjit::jit
