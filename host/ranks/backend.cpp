// SPDX-License-Identifier: Apache-2.0
// Halves of a dispatch, and what calls of a rank share. Plans: planning.cpp; whole calls: one_launch.cpp,
// low_latency.cpp.
#include "epjit/error.hpp"
#include "host/nccl/communicator.hpp"
#include "host/ranks/rank_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
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
    comm_.order.forget(this);
    comm_.nccl->forget(&way_->link(0).control->failed);
    way_->close();
}

rank_kernels& rank_backend::kernels() {
    if (!kernels_) {
        kernels_.emplace(comm_, config_);
    }
    return *kernels_;
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

ordered_call rank_backend::begin_call(const rank_plan& plan, std::int32_t lane, stream_t stream) {
    way_->check();
    refuse_early(plan);
    take_back(lane);
    return in_order(lane, stream);
}

void rank_backend::dispatch_send(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                                 stream_t stream) {
    rank_plan& plan = static_cast<rank_plan&>(p);
    plan.keeps_weights = false;
    kernels();
    if (options.into_window) {
        check_window_rows(plan);
    }
    const scoped_context current(*comm_.context);
    require_one_window(plan, "dispatch_send");
    const ordered_call call = begin_call(plan, options.lane, stream);
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
    const ordered_call call = in_order(options.lane, stream);
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
