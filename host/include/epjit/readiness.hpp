// SPDX-License-Identifier: Apache-2.0
// Whether an exchange's static steps can be captured in a CUDA graph and replayed, by trying: the answer is yes only
// when capture, instantiation, replay and a verified result were all seen on this machine.
#pragma once

#include "epjit/exchange.hpp"
#include "epjit/export.hpp"

#include <cstdint>
#include <string_view>

namespace epjit {

enum class readiness_stage : std::uint8_t {
    none,
    prepare,      ///< compiling, loading, one eager step
    capture,      ///< plan, dispatch and combine recorded
    instantiate,  ///< made executable
    replay,       ///< launched twice, with new data each time
    verify,       ///< every replay's rows and sums equal the host exchange's
};

struct readiness {
    bool captured = false;
    bool instantiated = false;
    bool replayed = false;
    bool verified = false;
    readiness_stage failed_at = readiness_stage::none;  ///< later stages were not tried
    /// Fails closed: nothing short of all four.
    [[nodiscard]] bool ready() const noexcept {
        return captured && instantiated && replayed && verified && failed_at == readiness_stage::none;
    }
};

/// Called once for each thing that stands in the way: a stable id ("replay_not_seen"), the exchange or part concerned,
/// and why.
using blocker_visitor = void (*)(void* user, std::string_view id, std::string_view where, std::string_view why);

/// "prepare", "capture", ...
EPJIT_API std::string_view name(readiness_stage) noexcept;

/// Tries it on `ex`, with a few tokens of drawn data, on a stream of its own and lane 0, which must be idle.
/// Collective: every rank calls. Takes device memory for the time of the call. Failures are reported, not thrown.
/// @throws config_error when `ex` was moved from.
EPJIT_API readiness prove_readiness(exchange& ex, blocker_visitor visitor = nullptr, void* user = nullptr);

}  // namespace epjit
