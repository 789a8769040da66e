// SPDX-License-Identifier: Apache-2.0
// How a rank makes plans: its part of the kernels, the wait for counts, and what a plan has to report.
#include "epjit/error.hpp"
#include "host/ranks/rank_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace epjit::host {

void rank_backend::refuse_tokens(const rank_plan& plan, std::int32_t rank, std::int32_t tokens) const {
    throw config_error(fmt::format("rank {} brings {} tokens, the bound is {}", rank, tokens, bound(plan)),
                       "create the exchange with a larger max_tokens_per_rank, or raise token_bound");
}

std::unique_ptr<rank_plan> rank_backend::plan_with_memory(const plan_options& options,
                                                          std::unique_ptr<plan_state> reuse, stream_t stream) {
    const std::int32_t most = bound(options);
    if (reuse != nullptr) {
        std::unique_ptr<rank_plan> old(static_cast<rank_plan*>(reuse.release()));
        // Work of another lane is not ordered before this one, so its memory cannot be written yet.
        if (old->max_tokens >= most && old->options.lane == options.lane) {
            return old;
        }
    }
    const std::int64_t blocks = templates::plan_blocks(most, kernels().plan.max_blocks);
    return std::make_unique<rank_plan>(comm_, config_, most, blocks, relays(), stream);
}

void rank_backend::fill_plan_head(templates::plan_head& head, templates::plan_rank& own, const rank_plan& plan,
                                  const plan_args& ranks) const {
    const bool unbounded = plan.exact && plan.options.layout != layout::masked;
    plan.fill(head);
    head.expert_first = tables_.expert_first;
    head.expert_slots = tables_.expert_slots;
    head.slot_rank = tables_.slot_rank;
    head.rank_first = tables_.rank_first;
    head.timeout_ns = static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(comm_.runtime->options.first_wait_timeout).count());
    head.num_tokens = plan.num_tokens;
    head.width = static_cast<templates::id_width>(plan.options.ids);
    head.layout = static_cast<templates::row_layout>(plan.options.layout);
    head.alignment = plan.options.layout == layout::expert_major ? plan.options.alignment : 1;
    head.ids_are_slots = config_.config.routing == routing_form::slots ? 1 : 0;
    head.sequence = plan.sequence;
    own = {ranks.routing,
           plan.num_tokens,
           0,
           unbounded ? std::numeric_limits<std::int32_t>::max() : ranks.capacity,
           0,
           reinterpret_cast<templates::u64*>(ranks.slot_tokens)};
}

bool rank_backend::gathers(const plan_options& options) {
    const rank_kernels& k = kernels();
    if (!is_gathered(options.source, way_->peers_written(), path_of(options), k.plan_shape,
                     std::max(1, bound(options)))) {
        return false;
    }
    if (!k.gathered_plan) {
        throw unsupported_error(
            fmt::format("a gathered plan of {} expert slots needs {} bytes of shared memory, a block on {} may have {}",
                        k.plan_shape.num_slots, templates::gathered_shared_bytes(k.plan_shape, 1),
                        comm_.context->name(), comm_.context->max_shared_bytes()),
            "ask for plan_source::counts");
    }
    return true;
}

void rank_backend::launch_gathered_plan(rank_plan& plan, const plan_args& ranks, stream_t stream) {
    const rank_kernels& k = kernels();
    const std::int32_t lane = plan.options.lane;
    const bool flagged = way_->peers_written();
    templates::gathered_plan_args args{};
    fill_plan_head(args, args.ranks[0], plan, ranks);
    args.link = way_->link(lane);
    args.positions = plan.positions;
    args.lines = plan.lines;
    args.line_first = plan.line_first;
    args.rows = way_->routing(lane);
    args.rows_offset = way_->routing_offset(lane);
    args.list_stride = shape_.max_lines;
    args.bound = std::max(1, bound(plan));
    const std::int64_t bytes = templates::gathered_bytes(args.bound, config_.config.topk, flagged);
    args.row_stride = flagged ? shape_.routing_bytes : bytes;
    args.flagged = flagged ? 1 : 0;
    args.refused_tokens = ranks.num_tokens > bound(plan) ? ranks.num_tokens : 0;
    const std::int64_t tiles = std::int64_t{config_.num_ranks} * templates::gathered_rank_tiles(args.bound);
    const std::int64_t room = (k.gathered_plan.shared_bytes - templates::gathered_fixed_bytes(k.plan_shape)) /
                              templates::gathered_tile_bytes(k.plan_shape);
    args.chunk_tiles = static_cast<std::int32_t>(std::min({tiles, room, std::int64_t{32}}));
    launchable kernel = k.gathered_plan;
    kernel.shared_bytes = templates::gathered_shared_bytes(k.plan_shape, args.chunk_tiles);
    const bool at_once = templates::gathered_at_once(k.plan_shape, args.bound);
    args.at_once = at_once ? 1 : 0;
    // Else no more than the plan has memory for the counts of.
    const std::int64_t blocks =
        at_once ? std::min(templates::gathered_blocks(k.plan_shape, args.bound), kernel.max_blocks)
                : templates::plan_blocks(args.bound, std::min(k.plan.max_blocks, kernel.max_blocks));
    const std::int64_t together =
        std::min<std::int64_t>(args.chunk_tiles, at_once ? tiles : templates::ceil_div(tiles, blocks));
    args.id_vectors = templates::gathered_id_vectors(args.bound, config_.config.topk, flagged);
    args.by_span = templates::divide_by(static_cast<std::int32_t>(std::min<std::int64_t>(
        args.id_vectors,
        together * templates::plan_tile_tokens * config_.config.topk / templates::gathered_ids_per_vector(flagged) +
            2)));
    args.by_rank_tiles = templates::divide_by(templates::gathered_rank_tiles(args.bound));
    args.by_tile_tokens = templates::divide_by(templates::gathered_tile_tokens(args.bound));
    const bool tells = flagged && at_once && bound(plan) <= plan.early.tokens;
    let_follow(plan, tells ? rank_plan::told::places : rank_plan::told::nothing);
    args.early = plan.told_early();
    if (flagged) {
        args.phases = templates::gathered_phase_send | templates::gathered_phase_plan;
        launch(comm_, kernel, blocks, &args, stream, at_once ? overlapping() : cooperative_if(blocks > 1));
        return;
    }
    args.phases = templates::gathered_phase_send;
    launch(comm_, kernel, at_once ? 1 : blocks, &args, stream);
    way_->exchange_routing(plan.options, bound(plan), bytes, stream);
    args.phases = templates::gathered_phase_plan;
    launch(comm_, kernel, blocks, &args, stream, cooperative_if(!at_once && blocks > 1));
}

void rank_backend::launch_plan(rank_plan& plan, const plan_args& ranks, stream_t stream) {
    const std::int32_t lane = plan.options.lane;
    templates::exchange_plan_args args{};
    fill_plan_head(args, args.ranks[0], plan, ranks);
    args.link = way_->link(lane);
    args.positions = plan.positions;
    args.counts = way_->counts(lane);
    args.arrived = way_->lines_in(lane);
    args.lines = plan.lines;
    args.line_first = plan.line_first;
    args.list_stride = shape_.max_lines;
    args.peers_written = way_->peers_written() ? 1 : 0;
    args.refused_tokens = ranks.num_tokens > bound(plan) ? ranks.num_tokens : 0;
    args.counts_offset = way_->counts_offset(lane);
    args.lines_out = way_->lines_out(lane);
    args.lines_offset = way_->lines_offset(lane);
    const launchable& kernel = kernels().plan;
    // The same grid in each launch: they share the blocks' counts.
    const std::int64_t blocks = templates::exchange_plan_blocks(plan.num_tokens, kernel.max_blocks);
    let_follow(plan, way_->peers_written() ? rank_plan::told::positions : rank_plan::told::nothing);
    if (way_->peers_written()) {
        args.phases = templates::plan_phase_count | templates::plan_phase_place | templates::plan_phase_finish;
        launch(comm_, kernel, blocks, &args, stream, cooperative_if(blocks > 1));
        return;
    }
    args.phases = templates::plan_phase_count;
    launch(comm_, kernel, blocks, &args, stream, cooperative_if(blocks > 1));
    way_->exchange_counts(plan.options, bound(plan), stream);
    args.phases = templates::plan_phase_place;
    launch(comm_, kernel, blocks, &args, stream);
    way_->exchange_lines(lane, stream);
    args.phases = templates::plan_phase_finish;
    launch(comm_, kernel, blocks, &args, stream);
}

std::unique_ptr<plan_state> rank_backend::make_plan(std::span<const plan_args> ranks, const plan_options& options,
                                                    stream_t stream, std::unique_ptr<plan_state> reuse) {
    way_->check();
    if (reuse != nullptr) {
        report(static_cast<const rank_plan&>(*reuse));
    }
    kernels();
    const scoped_context current(*comm_.context);
    const ordered_call call = in_order(options.lane, stream);
    std::unique_ptr<rank_plan> plan = plan_with_memory(options, std::move(reuse), stream);
    plan->options = options;
    plan->ranks.assign(ranks.begin(), ranks.end());
    plan->exact = options.mode == mode::exact;
    sequence_ = sequence_ + 1 != 0 ? sequence_ + 1 : 1;
    plan->sequence = sequence_;
    // A rank that brings more than it may takes part with none, so that all ranks learn of it.
    plan->num_tokens = ranks[0].num_tokens > bound(*plan) ? 0 : ranks[0].num_tokens;
    plan->capacity = ranks[0].capacity;
    plan->known_rows = -1;
    plan->direct = goes_direct(*plan);
    if (gathers(options)) {
        launch_gathered_plan(*plan, ranks[0], stream);
    } else {
        launch_plan(*plan, ranks[0], stream);
    }
    made_plan& last = planned_[static_cast<std::size_t>(options.lane)];
    last = {};
    if (plan->tells != rank_plan::told::nothing) {
        last = {plan->sequence, capture_of(comm_.context->api(), stream)};
    }
    if (plan->exact) {
        wait_for_counts(*plan, stream);
    }
    share_plan(*plan, stream);
    if (ranks[0].num_tokens > bound(*plan)) {
        refuse_tokens(*plan, config_.first_driven, ranks[0].num_tokens);
    }
    return plan;
}

void rank_backend::wait_for_counts(rank_plan& plan, stream_t stream) {
    comm_.runtime->host_waits.fetch_add(1, std::memory_order_relaxed);
    const driver_api& api = comm_.context->api();
    // The device notices first, and says who was waited for.
    const std::chrono::milliseconds limit = wait_limit() + std::chrono::seconds(2);
    const poll_outcome outcome = poll_ready(&plan.host_status()->ready, plan.sequence, limit, [&] {
        way_->check();
        return plan_kernel_runs(api, stream);
    });
    if (outcome != poll_outcome::ready) {
        way_->check();
        throw timeout_error(
            fmt::format("plan: rank {} waited {} ms for the counts: expected sequence {}, seen {}{}",
                        config_.first_driven, limit.count(), plan.sequence, plan.host_status()->ready,
                        outcome == poll_outcome::work_ended ? " (the stream is done)" : " (the stream still works)"),
            "look for earlier work on the stream that does not end, or raise EPJIT_WAIT_TIMEOUT_MS");
    }
    plan.known_rows = plan.host_counts()[config_.placement.num_slots + config_.first_driven];
    if (plan.options.layout != layout::masked) {
        plan.capacity = static_cast<std::int32_t>(plan.known_rows);
    }
    way_->check();
    report(plan);
}

/// The rank that brought too much has said so at once and takes no part any more: nor do the others, once they know.
void rank_backend::refuse_early(const rank_plan& plan) const {
    if (plan.complete() && plan.host_status()->refusing_rank != 0) {
        refuse_tokens(plan, static_cast<std::int32_t>(plan.host_status()->refusing_rank) - 1,
                      static_cast<std::int32_t>(plan.host_status()->refused_tokens));
    }
}

/// A plan's own errors are the same on every rank, but in static mode not every rank sees them at the same call. They
/// come where a step ends: after the combine was taken part in, or before the next plan. A rank that stopped between
/// the two would leave the others waiting.
void rank_backend::report(const rank_plan& plan) {
    if (!plan.complete()) {
        return;
    }
    first_step_done_ = true;
    refuse_early(plan);
    report_status(*comm_.runtime, plan.options, plan.status(), warned_);
}

}  // namespace epjit::host
