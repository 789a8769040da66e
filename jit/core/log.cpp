// SPDX-License-Identifier: Apache-2.0
#include "epjit/log.hpp"

#include <cstdio>
#include <string>

namespace epjit {

void logger::write(log_level at, std::string_view line) const noexcept {
    if (!enabled(at)) {
        return;
    }
    if (callback != nullptr) {
        callback(user, at, line);
        return;
    }
    static constexpr std::string_view prefixes[] = {"epjit: error: ", "epjit: warning: ", "epjit: ", "epjit: debug: "};
    try {
        std::string text(prefixes[static_cast<unsigned>(at)]);
        text.append(line).push_back('\n');
        std::fwrite(text.data(), 1, text.size(), stderr);  // one call, so that threads' lines stay whole
    } catch (...) {
        std::fputs("epjit: out of memory while logging\n", stderr);
    }
}

}  // namespace epjit
