// SPDX-License-Identifier: Apache-2.0
// Which exchange carries the rows, and why not another. The inputs are equal on every rank; the routing and
// the local number of tokens are not among them.
#pragma once

#include "epjit/types.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace epjit::host {

struct exchange_question {
    exchange_kind wanted = exchange_kind::automatic;
    /// What the communicator is: host, loopback, or automatic for one real rank per process or no
    /// communicator yet.
    exchange_kind communicator = exchange_kind::automatic;
    std::int32_t num_ranks = 1;
    bool have_gpu = false;
    std::string no_gpu_reason;  ///< from the driver; used in reasons
};

struct why_not {
    exchange_kind exchange;
    std::string reason;  ///< one line
};

struct exchange_choice {
    exchange_kind exchange = exchange_kind::host;
    std::string reason;           ///< why this one
    std::vector<why_not> others;  ///< each exchange not taken, in the order of the enum
};

/// @throws unsupported_error when `wanted` names an exchange that is not in this version or that this machine
/// or communicator cannot carry; config_error when it contradicts the communicator.
exchange_choice choose_exchange(const exchange_question& question);

/// True for lsa, sendrecv, dense and hybrid: named in the interface, not built yet.
constexpr bool not_in_this_version(exchange_kind kind) noexcept {
    return kind == exchange_kind::lsa || kind == exchange_kind::sendrecv || kind == exchange_kind::dense ||
           kind == exchange_kind::hybrid;
}

}  // namespace epjit::host
