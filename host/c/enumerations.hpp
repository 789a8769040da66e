// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/types.hpp"

#include <cstdint>
#include <string_view>

namespace epjit::host::c {

/// What name() answers for a value that it does not know.
constexpr bool is_name(std::string_view text) noexcept {
    return text != "?" && text != "unknown";
}

/// @throws config_error that names `field`, the value and the C enumeration.
[[noreturn]] void fail_value(const char* field, std::int32_t value);

/// A number from a caller as the C++ enumerator it stands for. @throws config_error that names `field`.
template <class Enum>
Enum enumerator(std::int32_t value, const char* field) {
    // name() knows every enumerator; wider numbers must not be cut to one that it knows.
    if (value < 0 || value > 255 || !is_name(name(static_cast<Enum>(value)))) {
        fail_value(field, value);
    }
    return static_cast<Enum>(value);
}

}  // namespace epjit::host::c
