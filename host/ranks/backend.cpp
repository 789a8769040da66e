// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"
#include "host/nccl/communicator.hpp"
#include "host/ranks/rank_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace epjit::host {

using templates::lane_op;

rank_backend::rank_backend(communicator_state& comm, const resolved_config& config, std::unique_ptr<transport> way,
                           const travel_shape& shape)
    : comm_(comm), config_(config), tables_(comm, config), shape_(shape), way_(std::move(way)) {
    for (std::int32_t lane = 0; lane < config.config.lanes; ++lane) {
        order_[static_cast<std::size_t>(lane)] = lane_order(comm.context);
    }
    if (shape.staged_lines < shape.max_lines) {
        window_lines_ = device_buffer(
            comm.context, static_cast<std::size_t>(config.config.lanes * templates::window_numbers(config.num_ranks)) *
                              sizeof(std::int32_t));
        comm.runtime->allocations.fetch_add(1, std::memory_order_relaxed);
    }
    comm.nccl->tell_on_failure(&way_->link(0).control->failed);
    try {
        way_->warm();
    } catch (...) {
        comm.nccl->forget(&way_->link(0).control->failed);
        throw;
    }
}

rank_backend::~rank_backend() {
    comm_.nccl->forget(&way_->link(0).control->failed);
    way_->close();
}

rank_kernels& rank_backend::kernels() {
    if (!kernels_) {
        kernels_.emplace(comm_, config_);
    }
    return *kernels_;
}

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
    // No more than the plan has memory for the counts of.
    const std::int64_t blocks =
        templates::gathered_in_one_block(k.plan_shape, args.bound)
            ? 1
            : templates::plan_blocks(args.bound, std::min(k.plan.max_blocks, kernel.max_blocks));
    const bool tells = flagged && blocks == 1 && bound(plan) <= plan.early_tokens;
    plan.tells = tells ? rank_plan::told::ranks : rank_plan::told::nothing;
    args.early = tells ? plan.early : nullptr;
    args.tells_end = tells && knobs(plan).dispatch_follows == 3 ? 1 : 0;
    if (flagged) {
        args.phases = templates::gathered_phase_send | templates::gathered_phase_plan;
        launch(comm_, kernel, blocks, &args, stream, blocks > 1 ? launch_mode::cooperative : overlapping());
        return;
    }
    args.phases = templates::gathered_phase_send;
    launch(comm_, kernel, blocks, &args, stream);
    way_->exchange_routing(plan.options, bound(plan), bytes, stream);
    args.phases = templates::gathered_phase_plan;
    launch(comm_, kernel, blocks, &args, stream, cooperative_if(blocks > 1));
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
    plan.tells = way_->peers_written() ? rank_plan::told::positions : rank_plan::told::nothing;
    args.tells_end = way_->peers_written() && knobs(plan).dispatch_follows == 3 ? 1 : 0;
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
    order_[static_cast<std::size_t>(options.lane)].on(*comm_.context, stream);
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
    planned_[static_cast<std::size_t>(options.lane)] = {plan->sequence, capture_of(comm_.context->api(), stream)};
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

void rank_backend::send_weights(const rank_plan& plan, const float* weights, travel_area area, stream_t stream) {
    if (plan.num_tokens == 0) {
        return;
    }
    templates::send_weights_args<templates::max_driven_ranks> args;
    const exchange_config& c = config_.config;
    args.entries = plan.entries;
    args.positions = plan.positions;
    args.weights = weights;
    args.link = way_->link(plan.options.lane);
    args.num_tokens = plan.num_tokens;
    args.weight_columns = weight_columns(c);
    for (std::int32_t r = 0; r < config_.num_ranks; ++r) {
        args.to[r] = reinterpret_cast<float*>(way_->out(area, plan.options.lane, r));
    }
    launch(comm_, kernels().send_weights, (std::int64_t{plan.num_tokens} * c.topk + 255) / 256, &args, stream);
}

void rank_backend::take_back(std::int32_t lane) noexcept {
    lane_rows& rows = rows_[static_cast<std::size_t>(lane)];
    rows.lease.advance();
    rows.sequence = 0;
    planned_[static_cast<std::size_t>(lane)] = {};
}

void rank_backend::leave_rows(const rank_plan& plan, dtype type, bool own, travelled how) noexcept {
    lane_rows& rows = rows_[static_cast<std::size_t>(plan.options.lane)];
    rows.sequence = plan.sequence;
    rows.type = type;
    rows.own = own;
    rows.how = how;
}

void rank_backend::begin_call(const rank_plan& plan, std::int32_t lane, stream_t stream) {
    way_->check();
    refuse_early(plan);
    order_[static_cast<std::size_t>(lane)].on(*comm_.context, stream);
    take_back(lane);
}

void rank_backend::dispatch_send(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                                 stream_t stream) {
    rank_plan& plan = static_cast<rank_plan&>(p);
    kernels();
    if (options.into_window) {
        check_window_rows(plan);
    }
    const scoped_context current(*comm_.context);
    require_one_window(plan, "dispatch_send");
    begin_call(plan, options.lane, stream);
    send_rows(plan, ranks[0], options, {}, stream);
}

void rank_backend::send_rows(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                             const token_window& window, stream_t stream) {
    rank_kernels& k = kernels();
    const std::int32_t lane = options.lane;
    way_->begin(lane, travel_area::rows, stream);
    if (ranks.weights != nullptr && window.first == 0) {
        send_weights(plan, ranks.weights, travel_area::weights, stream);
    }
    if (way_->whole_tensors()) {
        way_->put_tensor(lane, ranks.input, scales_cross(options), stream);
    } else if (const std::int32_t tokens = window.of(plan.num_tokens); tokens != 0) {
        scatter_kernel_args args;
        fill_send_args(args, setting(plan, window), plan, ranks.input, quantises(options));
        launch_scatter(comm_, crosses_raw(options) ? k.raw : k.convert, args, tokens, 0, stream);
    }
    constexpr std::array areas{travel_area::rows, travel_area::weights, travel_area::scales};
    way_->post(lane, lane_op::dispatch, std::span(areas).first(scales_cross(options) ? 3 : 2), traffic(plan), false,
               stream);
}

void rank_backend::await_rows(const rank_plan& plan, stream_t stream) {
    way_->arrive(plan.options.lane, lane_op::dispatch, stream);
}

void rank_backend::dispatch_receive(plan_state& p, std::span<const dispatch_args> ranks,
                                    const dispatch_options& options, stream_t stream) {
    const rank_plan& plan = static_cast<const rank_plan&>(p);
    const scoped_context current(*comm_.context);
    order_[static_cast<std::size_t>(options.lane)].on(*comm_.context, stream);
    receive_rows(plan, ranks[0], options, {}, stream);
}

void rank_backend::receive_rows(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                                const token_window& window, stream_t stream) {
    rank_kernels& k = kernels();
    await_rows(plan, stream);
    scatter_kernel_args args;
    const dtype crossing = crosses_raw(options) ? config_.config.input_type : config_.config.dispatch_type;
    const bool own_input = !quantises(options);
    fill_expand_args(args, narrowed(plan, window, stream), plan, ranks, options, crossing, own_input);
    for (std::int32_t r = 0; r < config_.num_ranks && !window.narrows(); ++r) {
        if (r != config_.first_driven || !own_input) {
            args.ranks[r].input = arrived(travel_area::rows, options.lane, r);
            args.ranks[r].input_scales = arrived(travel_area::scales, options.lane, r);
        }
    }
    const std::int64_t lines =
        plan.exact ? std::accumulate(plan.lines_received(), plan.lines_received() + config_.num_ranks, std::int64_t{0})
                   : std::int64_t{config_.num_ranks} * bound(plan);
    const std::int64_t to_fill = config_.placement.rank_first[static_cast<std::size_t>(config_.first_driven) + 1] -
                                 config_.placement.rank_first[static_cast<std::size_t>(config_.first_driven)] +
                                 (plan.exact ? 0 : plan.capacity);
    const std::int64_t most = window.narrows() ? std::int64_t{config_.num_ranks} * window.tokens : lines;
    launch_scatter(comm_, quantises(options) ? k.pass : k.convert, args, std::min(lines, most), to_fill, stream);
    rows_read(plan, stream);
    leave_rows(plan, crossing, !own_input || way_->whole_tensors());
}

lent_view rank_backend::lend_rows(plan_state& p, int, int source) {
    const rank_plan& plan = static_cast<const rank_plan&>(p);
    const std::int32_t lane = plan.options.lane;
    const lane_rows& left = rows_[static_cast<std::size_t>(lane)];
    if (source < 0 || source >= config_.num_ranks) {
        throw config_error(fmt::format("lend_rows of source rank {}, there are {}", source, config_.num_ranks),
                           "pass a rank from 0 up, below communicator::num_ranks()");
    }
    if (left.sequence != plan.sequence) {
        throw config_error(fmt::format("lend_rows on lane {} without a dispatch of this plan as its last call", lane),
                           "call it after dispatch, before the lane's next dispatch, combine or weight_gradients");
    }
    if (left.how == travelled::straight) {
        throw unsupported_error("rows of a dispatch straight into windows are not staged, there is none to lend",
                                "read them in window_output, or set the knob window_dispatch to 1");
    }
    if (left.how == travelled::packets) {
        throw unsupported_error("rows of a call of few tokens arrive as packets, there is none to lend",
                                "give the plan a token_bound above ll_max_tokens_per_rank");
    }
    require_one_window(plan, "lend_rows");
    if (source == config_.first_driven && !left.own) {
        throw unsupported_error(fmt::format("exchange '{}' keeps no rows of the rank's own", name(config_.config.kind)),
                                "read the input that dispatch was given");
    }
    std::int64_t rows = bound(plan);
    if (plan.exact) {
        rows = way_->whole_tensors() ? plan.tokens()[source] : plan.lines_received()[source];
    }
    tensor_view view;
    view.data = arrived(travel_area::rows, lane, source);
    view.type = left.type;
    view.rows = rows;
    view.columns = config_.config.hidden;
    view.row_stride = shape_.line_bytes[static_cast<std::size_t>(travel_area::rows)] / size_of(left.type);
    if (left.type == dtype::fp8_e4m3 && config_.config.scales != scale_type::none) {
        view.scale = config_.config.scales;
        view.scales = arrived(travel_area::scales, lane, source);
        view.scale_row_stride =
            shape_.line_bytes[static_cast<std::size_t>(travel_area::scales)] / size_of(config_.config.scales);
    }
    return left.lease.lend(fmt::format("rows of rank {}", source), view);
}

std::unique_ptr<backend> make_rank_backend(communicator_state& comm, const resolved_config& config) {
    const travel_shape shape = shape_travel(config);
    switch (config.config.kind) {
        case exchange_kind::hybrid: return make_hybrid_backend(comm, config);
        case exchange_kind::dense:
            return std::make_unique<rank_backend>(comm, config, make_dense_transport(comm, config, shape), shape);
        case exchange_kind::lsa:
            return std::make_unique<rank_backend>(comm, config, make_lsa_transport(comm, config, shape), shape);
        default:
            return std::make_unique<rank_backend>(comm, config, make_sendrecv_transport(comm, config, shape), shape);
    }
}

}  // namespace epjit::host
