// SPDX-License-Identifier: Apache-2.0
// Whole dispatches and combines through windows, one launch each.
#include "epjit/error.hpp"
#include "host/dispatcher/window_way.hpp"
#include "host/ranks/rank_backend.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::host {
namespace {

/// Blocks of a combine that send the weights and leave, a few weights a thread.
constexpr std::int64_t most_weight_blocks = 16;
constexpr std::int64_t weights_a_thread = 4;

/// A combine in one launch sends weights, sends sums and finishes tokens.
constexpr std::int32_t fewest_combine_blocks = 3;

/// Lines whose metadata a thread writes beside a dispatch into windows, where there are enough blocks.
constexpr std::int64_t lines_of_thread = 2;

/// Blocks that fill a rank's link with rows of `bytes`: eight would by their bytes alone, and each row costs a block
/// what 7 KB more would (docs/performance.md).
std::int32_t senders_for(std::int64_t bytes) {
    constexpr std::int64_t fewest = 8;
    constexpr std::int64_t bytes_of_a_row_more = 7 * 1024;
    return static_cast<std::int32_t>(fewest + fewest * bytes_of_a_row_more / bytes + 5);
}

/// Calls `launch` with the length of the table that `num_ranks` ranks take.
template <class Launch>
void with_table(std::int32_t num_ranks, const Launch& launch) {
    switch (templates::arguments_for_ranks(num_ranks)) {
        case 8: launch.template operator()<8>(); break;
        case 32: launch.template operator()<32>(); break;
        default: launch.template operator()<templates::max_driven_ranks>(); break;
    }
}

}  // namespace

template <std::int32_t NumRanks>
void rank_backend::launch_dispatch(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                                   bool follows, stream_t stream) {
    const launchable& kernel = kernels().dispatch;
    const std::int32_t movers = kernels().dispatch_movers;
    const jit::knobs& tuned = knobs(plan);
    const std::int32_t most_senders = tuned.dispatch_senders != 0
                                          ? tuned.dispatch_senders
                                          : senders_for(config_.config.hidden * size_of(config_.config.dispatch_type));
    const std::int32_t half = sending_blocks(std::max(1, kernel.max_blocks / 2));
    // Equal on every rank: the receivers look for the flags that the senders raise. Windows start with a chunk.
    const std::int32_t chunk = std::min(tuned.dispatch_chunk != 0 ? tuned.dispatch_chunk
                                        : bound(plan) >= 1024     ? 2
                                                                  : 1,
                                        shape_.staged_lines);
    by_windows(plan, chunk, [&](const token_window& window) {
        templates::dispatch_args<NumRanks> args{};
        fill_dispatch_args(args, args.ranks, setting(plan, window), plan, ranks, options);
        args.link = way_->link(options.lane);
        args.flags = way_->flags(travel_area::rows, options.lane);
        args.chunk = chunk;
        args.follows = follows && window.first == 0 ? 1 : 0;
        const std::int32_t tokens = window.of(bound(plan));
        const std::int32_t sent_at_once = chunk * kernels().dispatch_send_movers;
        args.senders = std::clamp((tokens + sent_at_once - 1) / sent_at_once, 1, std::min(most_senders, half));
        const std::int64_t lines = (std::int64_t{config_.num_ranks} * tokens + movers - 1) / movers;
        const std::int64_t fill =
            args.fill_last_slot - args.fill_first_slot + (plan.exact ? 0 : (plan.capacity + 7) / 8);
        const std::int64_t others =
            std::clamp<std::int64_t>(std::max(lines, fill), 1, std::max(1, kernel.max_blocks - args.senders));
        launch(comm_, kernel, args.senders + others, &args, stream, overlapping());
    });
}

template <std::int32_t NumRanks>
void rank_backend::launch_direct_dispatch(const rank_plan& plan, const dispatch_args& ranks,
                                          const dispatch_options& options, stream_t stream) {
    const launchable& kernel = kernels().direct_dispatch;
    const std::int64_t movers = kernel.threads / 32 - 1;
    templates::dispatch_args<NumRanks> args{};
    fill_direct_args(args, args.ranks, setting(plan), plan, ranks, options);
    args.link = way_->link(options.lane);
    args.flags = way_->flags(travel_area::rows, options.lane);
    // Half of the GPU: while senders wait for a peer that is at another lane's call, that call has room here.
    const std::int64_t most = std::min(kernel.max_blocks, std::max(2, comm_.context->num_sms() / 2));
    const std::int64_t tokens = bound(plan);
    const std::int64_t lines_of_block = kernel.threads * lines_of_thread;
    const std::int64_t receivers = std::clamp<std::int64_t>(
        (config_.num_ranks * tokens + lines_of_block - 1) / lines_of_block, 1, std::max<std::int64_t>(1, most / 4));
    args.senders =
        static_cast<templates::i32>(std::clamp<std::int64_t>((tokens + movers - 1) / movers, 1, most - receivers));
    launch(comm_, kernel, args.senders + receivers, &args, stream, overlapping());
}

bool rank_backend::goes_direct(const rank_plan& plan) const {
    if (config_.config.window_rows == 0 || !kernels_ || kernels_->direct_dispatch.max_blocks < 2) {
        return false;
    }
    workload work = workload_of(config_.config);
    work.ranks = config_.num_ranks;
    work.tokens = bound(plan);
    work.rows = plan.options.layout;
    work.staged_launches = shape_.launches(bound(plan));
    return choose_window_way(work, link_rates{}, knobs(plan).window_dispatch).direct;
}

void rank_backend::check_window_rows(const rank_plan& plan) const {
    for (std::int32_t r = 0; plan.exact && r < config_.num_ranks; ++r) {
        const std::int32_t rows = plan.host_counts()[config_.placement.num_slots + r];
        if (rows > config_.config.window_rows) {
            throw config_error(
                fmt::format("into_window: rank {} gets {} rows, window_rows is {}", r, rows,
                            config_.config.window_rows),
                "create the exchange with more window_rows (worst_case_rows is always enough), or leave into_window "
                "out on every rank for such plans");
        }
    }
}

void rank_backend::dispatch(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                            stream_t stream) {
    // What decides is equal on every rank: the config, the options, never this rank's tensors.
    rank_plan& plan = static_cast<rank_plan&>(p);
    plan.keeps_weights = false;
    const bool as_they_are = !options.weigh_input && config_.config.input_type == config_.config.dispatch_type;
    const bool few = few_tokens(plan);
    const bool direct = options.into_window && plan.direct && as_they_are && !few;
    if (options.into_window) {
        check_window_rows(plan);
    }
    if (!way_->peers_written() || !as_they_are ||
        (!few && !direct &&
         (!kernels().dispatch || kernels().dispatch.max_blocks < 2 || knobs(plan).dispatch_launches == 2))) {
        dispatch_by_steps(plan, ranks[0], options, stream);
        return;
    }
    const scoped_context current(*comm_.context);
    const bool follows = may_follow(plan, options, few ? rank_plan::told::places : rank_plan::told::positions, stream);
    const ordered_call call = begin_call(plan, options.lane, stream);
    if (few) {
        launch_ll_dispatch(plan, ranks[0], options, follows, stream);
        leave_rows(plan, config_.config.dispatch_type, false, travelled::packets);
        return;
    }
    if (direct) {
        with_table(config_.num_ranks,
                   [&]<std::int32_t NumRanks>() { launch_direct_dispatch<NumRanks>(plan, ranks[0], options, stream); });
        leave_rows(plan, config_.config.dispatch_type, false, travelled::straight);
        return;
    }
    with_table(config_.num_ranks,
               [&]<std::int32_t NumRanks>() { launch_dispatch<NumRanks>(plan, ranks[0], options, follows, stream); });
    leave_rows(plan, config_.config.dispatch_type, false);
}

template <std::int32_t NumRanks>
void rank_backend::launch_combine(const rank_plan& plan, const combine_args& ranks, const combine_options& options,
                                  stream_t stream) {
    launchable kernel = kernels().combine;
    // A bound holds for all blocks; else those that finish tokens take the places of those that sent weights.
    const std::int32_t resident = kernel.max_blocks;
    kernel.max_blocks += bounded() ? 0 : static_cast<std::int32_t>(most_weight_blocks);
    const std::int64_t most_weights = bounded() ? std::max(1, sending_blocks(resident) / 8) : most_weight_blocks;
    const std::int64_t weights_a_block = kernel.threads * weights_a_thread;
    by_windows(plan, 1, [&](const token_window& window) {
        templates::combine_args<NumRanks> args{};
        fill_combine_args(args, args.ranks, setting(plan, window), plan, ranks, options.reduction);
        args.link = way_->link(options.lane);
        args.flags = way_->flags(travel_area::partials, options.lane);
        const std::int64_t tokens = window.of(plan.num_tokens);
        const std::int64_t weights = tokens * config_.config.topk;
        args.weight_blocks = static_cast<templates::i32>(
            args.weighted != 0
                ? std::clamp<std::int64_t>((weights + weights_a_block - 1) / weights_a_block, 0, most_weights)
                : 0);
        const std::int32_t blocks = resident - (bounded() ? args.weight_blocks : 0);
        const std::int64_t lines = std::int64_t{config_.num_ranks - 1} * window.of(bound(plan));
        const std::int32_t percent = knobs(plan).combine_senders_percent;
        const std::int32_t most_senders =
            std::max(1, sending_blocks(std::clamp(blocks * percent / 100, 1, blocks - 1) + args.weight_blocks) -
                            args.weight_blocks);
        args.senders = static_cast<templates::i32>(std::clamp<std::int64_t>(lines, 1, most_senders));
        const std::int64_t own = std::clamp<std::int64_t>(tokens, 1, std::max(1, blocks - args.senders));
        launch(comm_, kernel, args.weight_blocks + args.senders + own, &args, stream, overlapping());
    });
}

void rank_backend::combine(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                           stream_t stream) {
    const rank_plan& plan = static_cast<const rank_plan&>(p);
    const bool few = few_tokens(plan);
    if (!way_->peers_written() || options.reduction == reduction::per_row ||
        (!few && (!kernels().combine || kernels().combine.max_blocks < fewest_combine_blocks ||
                  knobs(plan).combine_launches == 2))) {
        combine_by_steps(plan, ranks[0], options, stream);
        return;
    }
    const scoped_context current(*comm_.context);
    const ordered_call call = begin_call(plan, options.lane, stream);
    if (few) {
        launch_ll_combine(plan, ranks[0], options, stream);
        report(plan);
        return;
    }
    with_table(config_.num_ranks,
               [&]<std::int32_t NumRanks>() { launch_combine<NumRanks>(plan, ranks[0], options, stream); });
    report(plan);
}

}  // namespace epjit::host
