// SPDX-License-Identifier: Apache-2.0
// Gradients of the routing weights: made by the ranks that hold the rows, brought home to the tokens' owners.
#include "epjit/error.hpp"
#include "host/ranks/rank_backend.hpp"

#include <array>

namespace epjit::host {

using templates::lane_op;

/// Gradients of the window's tokens to the ranks that hold their rows.
void rank_backend::send_gradients(const rank_plan& plan, const weight_gradient_args& ranks, bool by_rows,
                                  const token_window& window, stream_t stream) {
    const std::int32_t lane = plan.options.lane;
    way_->begin(lane, travel_area::rows, stream);
    const std::int32_t tokens = window.of(plan.num_tokens);
    if (by_rows) {
        // Nothing of this rank's is to cross.
    } else if (way_->whole_tensors()) {
        way_->put_tensor(lane, ranks.gradient, false, stream);
    } else if (tokens != 0) {
        scatter_kernel_args send;
        fill_send_args(send, setting(plan, window), plan, ranks.gradient, false);
        launch_scatter(comm_, kernels().gradients, send, tokens, 0, stream);
    }
    constexpr std::array rows{travel_area::rows};
    way_->post(lane, lane_op::gradient_rows, rows, traffic(plan), false, stream);
    way_->arrive(lane, lane_op::gradient_rows, stream);
}

void rank_backend::weight_gradients(plan_state& p, std::span<const weight_gradient_args> ranks, stream_t stream) {
    rank_plan& plan = static_cast<rank_plan&>(p);
    way_->check();
    refuse_early(plan);
    if (!config_.config.backward) {
        throw config_error("weight_gradients on an exchange that was made without backward",
                           "set exchange_config::backward on every rank");
    }
    rank_kernels& k = kernels();
    const std::int32_t lane = plan.options.lane;
    const scoped_context current(*comm_.context);
    const ordered_call call = in_order(lane, stream);
    take_back(lane);
    const weight_gradient_args& given = ranks[0];
    const bool by_rows =
        given.row_gradients != nullptr || (given.rows.data == nullptr && given.gradient.data == nullptr);
    // A rank with neither tokens nor rows cannot know which way the others go: the rows' step is taken by all, and only
    // where sizes are exact nothing is moved for nothing.
    const bool crosses = !by_rows || way_->peers_written() || !plan.exact || way_->whole_tensors();
    const std::int64_t warps = k.weight_gradient.threads / 32;
    gather_kernel_args args;
    const auto work_on = [&](const token_window& window) {
        if (crosses) {
            send_gradients(plan, given, by_rows, window, stream);
        }
        if (window.first == 0) {
            way_->begin(lane, travel_area::scalars, stream);
        }
        fill_line_gradient_args(args, narrowed(plan, window, stream), plan, given, by_rows);
        const std::int64_t lines = std::int64_t{config_.num_ranks} * window.of(bound(plan));
        launch(comm_, k.weight_gradient, (lines + warps - 1) / warps, &args, stream);
        if (is_last(plan, window)) {
            constexpr std::array scalars{travel_area::scalars};
            way_->post(lane, lane_op::gradients, scalars, traffic(plan), true, stream);
        }
        if (crosses) {
            way_->done(lane, lane_op::gradients, travel_area::rows, stream);
        }
    };
    by_windows(plan, 1, work_on);
    way_->arrive(lane, lane_op::gradients, stream);
    if (plan.num_tokens != 0) {
        fill_token_gradient_args(args, setting(plan), plan, given);
        launch(comm_, k.weight_gradient, (plan.num_tokens + warps - 1) / warps, &args, stream);
    }
    way_->done(lane, lane_op::gradients, travel_area::scalars, stream);
}

}  // namespace epjit::host
