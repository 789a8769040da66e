// SPDX-License-Identifier: Apache-2.0
#include "epjit/runtime.hpp"

namespace epjit::tools {

std::string_view version_text() {
    return runtime::version();
}

}  // namespace epjit::tools
