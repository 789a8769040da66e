// SPDX-License-Identifier: Apache-2.0
// Dispatches and combines of few tokens as packets, one launch each.
#include "host/ranks/rank_backend.hpp"

#include <algorithm>

namespace epjit::host {
namespace {

/// The kernel with the blocks that its grid may have: where nothing bounds them more than are resident at once.
/// Blocks wait for none behind them, and those that come later find the link busy.
launchable with_all_blocks(const launchable& kernel, bool bounded) {
    launchable out = kernel;
    out.max_blocks *= bounded ? 1 : 4;
    return out;
}

/// Blocks for `jobs`, at least one, of those that are left.
std::int32_t blocks_for(std::int64_t jobs, std::int64_t left) {
    return static_cast<std::int32_t>(std::clamp<std::int64_t>(jobs, 1, std::max<std::int64_t>(1, left)));
}

}  // namespace

void rank_backend::launch_ll_dispatch(rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                                      bool follows, stream_t stream) {
    const launchable kernel = with_all_blocks(kernels().ll_dispatch, bounded());
    templates::ll_dispatch_args args{};
    fill_ll_dispatch_args(args, setting(plan), plan, ranks, options);
    args.link = way_->link(options.lane);
    args.sequence = plan.sequence;
    args.early = plan.told_early();
    args.follows = follows ? 1 : 0;
    plan.keeps_weights = plan.options.layout != layout::flat && (ranks.weights != nullptr || plan.num_tokens == 0);
    args.kept = plan.keeps_weights ? plan.kept : templates::kept_area{};
    // Rows without a token, one or two to a warp; no blocks for them where the call has none to fill.
    const std::int64_t rows_a_block = kernel.threads / 32 * 3 / 2;
    const std::int64_t slots = args.fill_last_slot - args.fill_first_slot;
    const std::int64_t rows = slots + (plan.exact ? 0 : plan.capacity);
    // A rank without slots may have rows to fill all the same: those of its capacity.
    const bool fills = args.fill_last_rank > args.fill_first_rank;
    const std::int32_t fill = fills ? blocks_for(rows / rows_a_block, kernel.max_blocks / 3) : 0;
    const std::int32_t left = kernel.max_blocks - fill;
    const std::int64_t parts = row_packet(config_.config).parts(templates::row_unit_threads(kernel.threads));
    // A dispatch that follows its plan sends while that is made, each block one part: the wait for the next one's
    // entries would be its own. Else few blocks send, and store this rank's rows while the link is busy.
    const std::int32_t sending = follows ? left / 2 : std::min(left / 2, comm_.context->num_sms());
    args.senders = blocks_for(plan.num_tokens * parts, sending);
    args.receivers = blocks_for((config_.num_ranks - 1) * parts * bound(plan), left - args.senders);
    launch(comm_, kernel, args.senders + args.receivers + fill, &args, stream, overlapping());
}

void rank_backend::launch_ll_combine(const rank_plan& plan, const combine_args& ranks, const combine_options& options,
                                     stream_t stream) {
    const launchable kernel = with_all_blocks(kernels().ll_combine, bounded());
    templates::ll_combine_args args{};
    fill_ll_combine_args(args, setting(plan), plan, ranks, options.reduction);
    args.link = way_->link(options.lane);
    if (options.weights_dispatched && plan.keeps_weights) {
        args.kept = plan.kept;
        args.weighted = 0;
    }
    const std::int64_t parts = sum_packet(config_.config).parts(kernel.threads);
    const std::int64_t lines = (config_.num_ranks - 1) * parts * bound(plan);
    const std::int64_t entries = std::int64_t{plan.num_tokens} * config_.config.topk;
    args.weight_blocks = args.weighted != 0 ? blocks_for((entries + kernel.threads - 1) / kernel.threads,
                                                         std::min(8, kernel.max_blocks / 4))
                                            : 0;
    // These fill the link: more of them keep owners from reading their own rows meanwhile.
    const std::int32_t sending = std::min(kernel.max_blocks / 2 - args.weight_blocks, comm_.context->num_sms() * 3 / 2);
    args.senders = blocks_for(lines, sending);
    const std::int32_t owners =
        blocks_for(plan.num_tokens * parts, kernel.max_blocks - args.weight_blocks - args.senders);
    launch(comm_, kernel, args.weight_blocks + args.senders + owners, &args, stream, overlapping());
}

}  // namespace epjit::host
