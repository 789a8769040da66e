// SPDX-License-Identifier: Apache-2.0
// Dispatches and combines of few tokens as packets, one launch each.
#include "host/ranks/rank_backend.hpp"

#include <algorithm>

namespace epjit::host {
namespace {

/// Blocks for `jobs`, at least one, of those that are left.
std::int32_t blocks_for(std::int64_t jobs, std::int64_t left) {
    return static_cast<std::int32_t>(std::clamp<std::int64_t>(jobs, 1, std::max<std::int64_t>(1, left)));
}

}  // namespace

void rank_backend::launch_ll_dispatch(const rank_plan& plan, const dispatch_args& ranks,
                                      const dispatch_options& options, stream_t stream) {
    const launchable& kernel = kernels().ll_dispatch;
    templates::ll_dispatch_args args{};
    fill_ll_dispatch_args(args, setting(plan), plan, ranks, options);
    args.link = way_->link(options.lane);
    // Rows without a token, a few to a block; none of them where the call has none to fill.
    constexpr std::int64_t rows_a_block = 16;
    const std::int64_t slots = args.fill_last_slot - args.fill_first_slot;
    const std::int64_t rows = slots + (plan.exact ? 0 : plan.capacity);
    const std::int32_t fill = slots == 0 ? 0 : blocks_for(rows / rows_a_block, kernel.max_blocks / 3);
    const std::int32_t left = kernel.max_blocks - fill;
    args.senders = blocks_for(plan.num_tokens, left / 2);
    args.receivers = blocks_for(std::int64_t{config_.num_ranks - 1} * bound(plan), left - args.senders);
    launch(comm_, kernel, args.senders + args.receivers + fill, &args, stream, launch_mode::overlapping);
}

void rank_backend::launch_ll_combine(const rank_plan& plan, const combine_args& ranks, const combine_options& options,
                                     stream_t stream) {
    const launchable& kernel = kernels().ll_combine;
    templates::ll_combine_args args{};
    fill_ll_combine_args(args, setting(plan), plan, ranks, options.reduction);
    args.link = way_->link(options.lane);
    const std::int64_t lines = std::int64_t{config_.num_ranks - 1} * bound(plan);
    const std::int64_t entries = std::int64_t{plan.num_tokens} * config_.config.topk;
    args.weight_blocks = args.weighted != 0 ? blocks_for((entries + kernel.threads - 1) / kernel.threads, 8) : 0;
    args.senders = blocks_for(lines, kernel.max_blocks / 2);
    const std::int32_t owners = blocks_for(plan.num_tokens, kernel.max_blocks - args.weight_blocks - args.senders);
    launch(comm_, kernel, args.weight_blocks + args.senders + owners, &args, stream, launch_mode::overlapping);
}

}  // namespace epjit::host
