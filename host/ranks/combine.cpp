// SPDX-License-Identifier: Apache-2.0
// Combines in more than one launch: sums of rows go back as lines and are summed by the tokens' owners.
#include "host/ranks/rank_backend.hpp"

#include <algorithm>
#include <array>

namespace epjit::host {

using templates::lane_op;

void rank_backend::combine_send(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                                stream_t stream) {
    rank_plan& plan = static_cast<rank_plan&>(p);
    way_->check();
    refuse_early(plan);
    kernels();
    if (options.reduction == reduction::per_row) {
        return;  // window by window, where what was sent is also summed
    }
    require_one_window(plan, "combine_send");
    const scoped_context current(*comm_.context);
    const ordered_call call = in_order(options.lane, stream);
    take_back(options.lane);
    begin_combine(plan, ranks[0], options.lane, stream);
    send_sums(plan, ranks[0], options.reduction, {}, stream);
    end_sends(plan, options.lane, stream);
}

void rank_backend::begin_combine(const rank_plan& plan, const combine_args& ranks, std::int32_t lane, stream_t stream) {
    if (weights_travel(plan)) {
        constexpr std::array weights{travel_area::combine_weights};
        way_->begin(lane, travel_area::combine_weights, stream);
        send_weights(plan, ranks.weights, travel_area::combine_weights, stream);
        way_->post(lane, lane_op::combine_weights, weights, traffic(plan), false, stream);
        way_->arrive(lane, lane_op::combine_weights, stream);
    }
}

/// All sums are made: the weights have been read.
void rank_backend::end_sends(const rank_plan& plan, std::int32_t lane, stream_t stream) {
    if (weights_travel(plan)) {
        way_->done(lane, lane_op::combine, travel_area::combine_weights, stream);
    }
}

void rank_backend::send_sums(const rank_plan& plan, const combine_args& ranks, reduction, const token_window& window,
                             stream_t stream) {
    const std::int32_t lane = plan.options.lane;
    way_->begin(lane, travel_area::partials, stream);
    gather_kernel_args args;
    fill_reduce_args(args, narrowed(plan, window, stream), plan, ranks);
    launch(comm_, kernels().gather, std::int64_t{config_.num_ranks} * window.of(bound(plan)), &args, stream);
    constexpr std::array partials{travel_area::partials};
    way_->post(lane, lane_op::combine, partials, traffic(plan), true, stream);
}

void rank_backend::finish_sums(const rank_plan& plan, const combine_args& ranks, reduction order,
                               const token_window& window, stream_t stream) {
    way_->arrive(plan.options.lane, lane_op::combine, stream);
    if (const std::int32_t tokens = window.of(plan.num_tokens); tokens != 0) {
        gather_kernel_args args;
        fill_finish_args(args, setting(plan, window), plan, ranks, order);
        launch(comm_, kernels().gather, tokens, &args, stream);
    }
    way_->done(plan.options.lane, lane_op::combine, travel_area::partials, stream);
}

/// per_row: every row goes back to its token's owner, as many tokens at a time as the memory for partial sums holds.
void rank_backend::combine_rows(const rank_plan& plan, const combine_args& ranks, stream_t stream) {
    rank_kernels& k = kernels();
    const std::int32_t lane = plan.options.lane;
    const std::int32_t window = std::max(shape_.staged_lines, shape_.topk) / shape_.topk;
    constexpr std::array partials{travel_area::partials};
    for (std::int32_t first = 0; first < bound(plan); first += window) {
        way_->begin(lane, travel_area::partials, stream);
        templates::return_rows_args<templates::max_driven_ranks> back{};
        gather_kernel_args lines;
        fill_reduce_args(lines, setting(plan), plan, ranks);
        back.list = lines.list;
        back.list.first_token = first;
        back.list.window = window;
        back.rows = static_cast<const templates::u8*>(ranks.rows.data);
        back.row_stride = stride_bytes(ranks.rows);
        back.to_stride = shape_.line_bytes[static_cast<std::size_t>(travel_area::partials)];
        back.row_bytes = static_cast<std::int32_t>(config_.config.hidden * size_of(config_.config.combine_type));
        back.vector_bytes = lines.vector_bytes;
        for (std::int32_t r = 0; r < config_.num_ranks; ++r) {
            back.to[r] = way_->out(travel_area::partials, lane, r);
        }
        launch(comm_, k.return_rows, std::int64_t{config_.num_ranks} * bound(plan), &back, stream);
        way_->post(lane, lane_op::combine, partials, {}, true, stream);
        way_->arrive(lane, lane_op::combine, stream);
        const std::int32_t tokens = std::min(window, plan.num_tokens - first);
        if (tokens > 0) {
            gather_kernel_args args;
            fill_window_args(args, setting(plan), plan, ranks, first, window);
            launch(comm_, k.gather, tokens, &args, stream);
        }
        way_->done(lane, lane_op::combine, travel_area::partials, stream);
    }
}

void rank_backend::combine_receive(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                                   stream_t stream) {
    const rank_plan& plan = static_cast<const rank_plan&>(p);
    const scoped_context current(*comm_.context);
    const ordered_call call = in_order(options.lane, stream);
    if (options.reduction == reduction::per_row) {
        take_back(options.lane);
        combine_rows(plan, ranks[0], stream);
    } else {
        finish_sums(plan, ranks[0], options.reduction, {}, stream);
    }
    report(plan);
}

}  // namespace epjit::host
