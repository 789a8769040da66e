// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"

namespace epjit {

const char* name(error_kind kind) noexcept {
    switch (kind) {
        case error_kind::internal: return "internal";
        case error_kind::config: return "config";
        case error_kind::unsupported: return "unsupported";
        case error_kind::compile: return "compile";
        case error_kind::cache: return "cache";
        case error_kind::offline_miss: return "offline_miss";
        case error_kind::library: return "library";
        case error_kind::cuda: return "cuda";
        case error_kind::nccl: return "nccl";
        case error_kind::timeout: return "timeout";
        case error_kind::capacity: return "capacity";
        case error_kind::cancelled: return "cancelled";
    }
    return "internal";
}

error::error(error_kind kind, const std::string& message, std::string remedy)
    : std::runtime_error(remedy.empty() ? message : message + "; " + remedy),
      kind_(kind),
      message_(message),
      remedy_(std::move(remedy)) {}

}  // namespace epjit
