// SPDX-License-Identifier: Apache-2.0
// Calls whose rows do not all fit the memory that they travel through: the same steps for one window of tokens after
// the other. How many there are follows from values that are equal on every rank.
#include "epjit/error.hpp"
#include "host/ranks/rank_backend.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::host {

std::int32_t rank_backend::most_tokens(const rank_plan& plan) const noexcept {
    return plan.exact ? *std::max_element(plan.tokens(), plan.tokens() + config_.num_ranks) : bound(plan);
}

std::int32_t rank_backend::window_tokens(const rank_plan& plan, std::int32_t unit) const noexcept {
    const std::int32_t most = most_tokens(plan);
    if (most <= shape_.staged_lines) {
        return 0;
    }
    // Equal windows, as few as there may be.
    const std::int32_t windows = shape_.launches(most, unit);
    const std::int32_t equal = (most + windows - 1) / windows;
    return std::min((equal + unit - 1) / unit * unit, shape_.launch_tokens(unit));
}

void rank_backend::require_one_window(const rank_plan& plan, const char* call) const {
    if (window_tokens(plan, 1) == 0) {
        return;
    }
    throw config_error(
        fmt::format("{} of a call with up to {} tokens a rank, the exchange holds the rows of {} at a time", call,
                    most_tokens(plan), shape_.staged_lines),
        "set exchange_config::halves on every rank, or bring fewer tokens at a time");
}

rank_setting rank_backend::narrowed(const rank_plan& plan, const token_window& window, stream_t stream) {
    rank_setting s = setting(plan, window);
    if (window.narrows()) {
        templates::window_lines_args args{};
        args.list = arrived_lines(s, plan);
        args.numbers =
            window_lines_.as<std::int32_t>() + plan.options.lane * templates::window_numbers(config_.num_ranks);
        launch(comm_, kernels().window_lines, 1, &args, stream);
        s.window_lines = args.numbers;
    }
    return s;
}

void rank_backend::dispatch_by_steps(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                                     stream_t stream) {
    kernels();
    const scoped_context current(*comm_.context);
    const ordered_call call = begin_call(plan, options.lane, stream);
    by_windows(plan, 1, [&](const token_window& window) {
        send_rows(plan, ranks, options, window, stream);
        receive_rows(plan, ranks, options, window, stream);
    });
}

void rank_backend::combine_by_steps(const rank_plan& plan, const combine_args& ranks, const combine_options& options,
                                    stream_t stream) {
    kernels();
    const scoped_context current(*comm_.context);
    const ordered_call call = begin_call(plan, options.lane, stream);
    if (options.reduction == reduction::per_row) {
        combine_rows(plan, ranks, stream);
    } else {
        begin_combine(plan, ranks, options.lane, stream);
        by_windows(plan, 1, [&](const token_window& window) {
            send_sums(plan, ranks, options.reduction, window, stream);
            if (is_last(plan, window)) {
                end_sends(plan, options.lane, stream);
            }
            finish_sums(plan, ranks, options.reduction, window, stream);
        });
    }
    report(plan);
}

}  // namespace epjit::host
