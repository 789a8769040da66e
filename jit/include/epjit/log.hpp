// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/export.hpp"

#include <string_view>

namespace epjit {

enum class log_level : unsigned char { error, warn, info, debug };

/// Receives one line without a newline. Called from any thread, never under a lock of the library. Must not throw.
using log_callback = void (*)(void* user, log_level level, std::string_view line);

/// Where a component writes its lines; cheap to copy. The default writes to stderr at `warn` and above, as
/// "epjit: warning: ...". EPJIT_LOG is read by the runtime, not here.
struct EPJIT_API logger {
    log_callback callback = nullptr;
    void* user = nullptr;
    log_level level = log_level::warn;

    void write(log_level at, std::string_view line) const noexcept;
    [[nodiscard]] bool enabled(log_level at) const noexcept { return at <= level; }
};

}  // namespace epjit
