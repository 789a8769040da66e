// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "host/exchange/backend.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/exchange/windows.hpp"

#include <array>
#include <memory>
#include <vector>

namespace epjit::host {

/// Between a send half and its receive half, what a lane waits for.
enum class pending_half : std::uint8_t { none, dispatch, combine };

struct lane_state {
    pending_half pending = pending_half::none;
    const plan_state* plan = nullptr;
};

struct exchange_state {
    std::shared_ptr<communicator_state> comm;
    resolved_config config;
    exchange_kind kind = exchange_kind::host;
    /// Plans keep a share, so that no later exchange can be mistaken for the one that made them.
    std::shared_ptr<const int> identity = std::make_shared<const int>(0);
    std::vector<std::int32_t> rank_slots;  ///< [R], for config.config.placement
    std::array<lane_state, 2> lanes;
    lent_windows windows;  ///< goes after the backend, which may still use it
    std::unique_ptr<host::backend> backend;
};

}  // namespace epjit::host
