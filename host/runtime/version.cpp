// SPDX-License-Identifier: Apache-2.0
#include "epjit/runtime.hpp"

namespace epjit {

std::string_view runtime::version() noexcept {
    return EPJIT_VERSION;
}

}  // namespace epjit
