// SPDX-License-Identifier: Apache-2.0
// Gradients of the routing weights: made by the ranks that hold the rows, brought home to the tokens' owners.
#include "epjit/error.hpp"
#include "host/ranks/rank_backend.hpp"

#include <array>

namespace epjit::host {

using templates::lane_op;

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
    order_[static_cast<std::size_t>(lane)].on(*comm_.context, stream);
    take_back(lane);
    const weight_gradient_args& given = ranks[0];
    const bool by_rows =
        given.row_gradients != nullptr || (given.rows.data == nullptr && given.gradient.data == nullptr);
    // A rank with neither tokens nor rows cannot know which way the others go: the rows' step is taken by all, and only
    // where sizes are exact nothing is moved for nothing.
    const bool crosses = !by_rows || way_->peers_written() || !plan.exact || way_->whole_tensors();
    if (crosses) {
        way_->begin(lane, travel_area::rows, stream);
        if (by_rows) {
            // Nothing of this rank's is to cross.
        } else if (way_->whole_tensors()) {
            way_->put_tensor(lane, ranks[0].gradient, false, stream);
        } else if (plan.num_tokens != 0) {
            scatter_kernel_args send;
            fill_send_args(send, setting(plan), plan, ranks[0].gradient, false);
            launch_scatter(comm_, k.gradients, send, plan.num_tokens, 0, stream);
        }
        constexpr std::array rows{travel_area::rows};
        way_->post(lane, lane_op::gradient_rows, rows, traffic(plan), false, stream);
        way_->arrive(lane, lane_op::gradient_rows, stream);
    }
    way_->begin(lane, travel_area::scalars, stream);
    gather_kernel_args args;
    fill_line_gradient_args(args, setting(plan), plan, given, by_rows);
    const std::int64_t warps = k.weight_gradient.threads / 32;
    launch(comm_, k.weight_gradient, (std::int64_t{config_.num_ranks} * bound(plan) + warps - 1) / warps, &args,
           stream);
    constexpr std::array scalars{travel_area::scalars};
    way_->post(lane, lane_op::gradients, scalars, traffic(plan), true, stream);
    if (crosses) {
        way_->done(lane, lane_op::gradients, travel_area::rows, stream);
    }
    way_->arrive(lane, lane_op::gradients, stream);
    if (plan.num_tokens != 0) {
        fill_token_gradient_args(args, setting(plan), plan, given);
        launch(comm_, k.weight_gradient, (plan.num_tokens + warps - 1) / warps, &args, stream);
    }
    way_->done(lane, lane_op::gradients, travel_area::scalars, stream);
}

}  // namespace epjit::host
