// SPDX-License-Identifier: Apache-2.0
#include "host/dispatcher/window_way.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace epjit::host {
namespace {

/// What each launch of a staged call but the first adds: from its start to its first row's arrival, and from its last
/// row's stores to its end, as measured on two H200s (docs/performance.md).
constexpr double ends_of_launch_us = 17;

}  // namespace

workload workload_of(const exchange_config& config) {
    workload work;
    work.topk = config.topk;
    work.tokens = config.max_tokens_per_rank;
    work.num_sms = config.num_sms;
    const double hidden = std::max(0, config.hidden);
    work.dispatch_row_bytes = hidden * static_cast<double>(size_of(config.dispatch_type)) +
                              std::ceil(hidden / 128) * static_cast<double>(size_of(config.scales));
    work.combine_row_bytes = hidden * static_cast<double>(size_of(config.combine_type));
    return work;
}

std::string window_way::text() const {
    const std::string taken =
        fmt::format("{}: {}predicted {:.1f} us", direct ? "straight to every place" : "once per rank, then expanded",
                    told ? "as the knob window_dispatch says; " : "", (direct ? straight : staged).us);
    return fmt::format("{}, {} {:.1f} us", taken, direct ? "once per rank" : "straight to every place",
                       (direct ? staged : straight).us);
}

window_way choose_window_way(const workload& work, const link_rates& rates, std::int32_t knob) noexcept {
    window_way way;
    way.straight = predict_window_dispatch(true, work, rates);
    way.staged = predict_window_dispatch(false, work, rates);
    way.staged.us += ends_of_launch_us * (std::max(1, work.staged_launches) - 1);
    way.told = knob != 0;
    way.direct = way.told ? knob == 2 : way.straight.us <= way.staged.us;
    return way;
}

}  // namespace epjit::host
