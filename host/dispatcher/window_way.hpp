// SPDX-License-Identifier: Apache-2.0
// How rows reach outputs that every rank lends to its peers: straight to each of their places, or once per rank and
// expanded there. Pure functions of values that are equal on every rank.
#pragma once

#include "epjit/exchange.hpp"
#include "host/dispatcher/cost_model.hpp"

#include <cstdint>
#include <string>

namespace epjit::host {

/// The calls of `config` as the cost model takes them, `tokens` being max_tokens_per_rank; ranks, hosts, layout and
/// mode are left to the caller. Zeros where the config is wrong, which is reported when it is validated.
workload workload_of(const exchange_config& config);

/// A dispatch of lsa into lent outputs.
struct window_way {
    bool direct = false;
    bool told = false;  ///< by a knob
    traffic straight;   ///< to every place: nothing is staged
    traffic staged;     ///< once per rank, then expanded

    /// "straight to every place: predicted 163 us, once per rank 170 us".
    [[nodiscard]] std::string text() const;
};

/// On lsa. `knob` is jit::knobs::window_dispatch: 0 leaves it to the cost model, by the predicted time. Equal times,
/// as on flat while the link is what limits, go straight: less of the local memory's time is taken from the experts.
window_way choose_window_way(const workload& work, const link_rates& rates, std::int32_t knob) noexcept;

}  // namespace epjit::host
