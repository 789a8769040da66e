// SPDX-License-Identifier: Apache-2.0
// A token's row crosses the network once per host: to the rank of its source's number there, which passes it on through
// the host's windows. With reduction::per_host the way back is the mirror: that rank adds up its host's partial sums
// and sends one row. Between hosts every token of a rank travels, also one that no rank of the host wants; leaving
// those out would need a second numbering of tokens per host.
//
// Other reductions, weights, gradients and what a plan needs go between all ranks, as with sendrecv.
#include "host/hybrid/arguments.hpp"
#include "host/hybrid/transport.hpp"
#include "host/ranks/rank_backend.hpp"

#include <utility>

namespace epjit::host {
namespace {

using templates::lane_op;

class hybrid_backend final : public rank_backend {
   public:
    hybrid_backend(communicator_state& comm, const resolved_config& config, std::unique_ptr<hybrid_transport> way,
                   const travel_shape& shape)
        : rank_backend(comm, config, std::move(way), shape),
          net_(static_cast<hybrid_transport&>(*way_)),
          hosts_(net_.hosts()),
          // The caller may have declared other hosts than there are: their order of sums is not the windows'.
          hosts_as_declared_(config.rank_hosts == comm.facts.rank_hosts) {}

   protected:
    void share_plan(rank_plan& plan, stream_t stream) override;
    void send_rows(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                   const token_window& window, stream_t stream) override;
    void await_rows(const rank_plan& plan, stream_t stream) override {
        net_.steps().wait(plan.options.lane, lane_op::dispatch, stream);
    }
    void rows_read(const rank_plan& plan, stream_t stream) override {
        net_.steps().done(plan.options.lane, lane_op::dispatch, travel_area::rows, stream);
    }
    [[nodiscard]] std::uint8_t* arrived(travel_area area, std::int32_t lane,
                                        std::int32_t source) const noexcept override {
        return net_.window(area, lane, config_.first_driven, source);
    }
    void send_sums(const rank_plan& plan, const combine_args& ranks, reduction order, const token_window& window,
                   stream_t stream) override;
    void finish_sums(const rank_plan& plan, const combine_args& ranks, reduction order, const token_window& window,
                     stream_t stream) override;
    [[nodiscard]] std::int32_t relays() const noexcept override { return hosts_.num_hosts > 1 ? hosts_.num_hosts : 0; }

   private:
    [[nodiscard]] bool sums_hosts(reduction order) const noexcept {
        return order == reduction::per_host && hosts_as_declared_;
    }
    /// Tokens of a rank as far as this one knows.
    [[nodiscard]] std::int32_t tokens_of(const rank_plan& plan, std::int32_t rank) const noexcept {
        return plan.exact ? plan.tokens()[rank] : bound(plan);
    }
    /// The tokens of the rail's rank on host `h`.
    [[nodiscard]] relayed_tokens rail_tokens(const rank_plan& plan, std::int32_t h) const noexcept {
        if (h == hosts_.host) {
            return {config_.first_driven, plan.num_tokens, plan.entries, plan.positions};
        }
        const std::int64_t at = std::int64_t{h} * plan.max_tokens * config_.config.topk;
        return {hosts_.rail(h), tokens_of(plan, hosts_.rail(h)), plan.relay_entries + at, plan.relay_positions + at};
    }
    /// Whole rows of an area as lines hold them.
    [[nodiscard]] tensor_view lines_at(std::uint8_t* rows, std::uint8_t* scales, dtype type) const noexcept;
    [[nodiscard]] std::int64_t line_bytes(travel_area area) const noexcept {
        return shape_.line_bytes[static_cast<std::size_t>(area)];
    }
    /// This rank's rows, one a token, where they are sent from.
    void stage_rows(const rank_plan& plan, const tensor_view& input, const dispatch_options& options, stream_t stream);

    hybrid_transport& net_;
    const host_layout hosts_;
    const bool hosts_as_declared_;
};

void hybrid_backend::share_plan(rank_plan& plan, stream_t stream) {
    if (hosts_.num_hosts == 1) {
        return;
    }
    const std::int64_t pairs = std::int64_t{plan.num_tokens} * config_.config.topk;
    const std::int64_t own = std::int64_t{tokens_of(plan, config_.first_driven)} * config_.config.topk;
    constexpr auto entry_bytes = static_cast<std::int64_t>(sizeof(templates::plan_entry));
    // Static mode: as many entries as there may be, those beyond this rank's tokens all ones, which is "unused".
    static_assert(templates::no_rank == 0xffff);
    fill_bytes(comm_.context, plan.entries + pairs, 0xff, static_cast<std::size_t>((own - pairs) * entry_bytes),
               stream);
    net_.start_group();
    for (std::int32_t h = 0; h < hosts_.num_hosts; ++h) {
        if (h != hosts_.host) {
            const std::int64_t theirs = std::int64_t{tokens_of(plan, hosts_.rail(h))} * config_.config.topk;
            const std::int64_t at = std::int64_t{h} * plan.max_tokens * config_.config.topk;
            net_.add_rail(h, plan.entries, own * entry_bytes, plan.relay_entries + at, theirs * entry_bytes);
            net_.add_rail(h, plan.positions, own * 4, plan.relay_positions + at, theirs * 4);
        }
    }
    net_.send_all(lane_op::plan_lines, stream, !plan.exact);
}

tensor_view hybrid_backend::lines_at(std::uint8_t* rows, std::uint8_t* scales, dtype type) const noexcept {
    tensor_view view;
    view.data = rows;
    view.type = type;
    view.rows = shape_.max_lines;
    view.columns = config_.config.hidden;
    view.row_stride = line_bytes(travel_area::rows) / size_of(type);
    if (type == dtype::fp8_e4m3 && config_.config.scales != scale_type::none) {
        view.scale = config_.config.scales;
        view.scales = scales;
        view.scale_row_stride = line_bytes(travel_area::scales) / size_of(config_.config.scales);
    }
    return view;
}

void hybrid_backend::stage_rows(const rank_plan& plan, const tensor_view& input, const dispatch_options& options,
                                stream_t stream) {
    if (plan.num_tokens == 0) {
        return;
    }
    if (quantises(options)) {
        scatter_kernel_args args;
        fill_stage_args(args, setting(plan), net_, plan, input);
        launch_scatter(comm_, kernels().convert, args, plan.num_tokens, 0, stream);
        return;
    }
    const std::int32_t me = config_.first_driven;
    const std::int32_t lane = plan.options.lane;
    copy_rows(comm_.context, net_.outgoing(travel_area::rows, lane, me), line_bytes(travel_area::rows), input.data,
              stride_bytes(input), input.columns * size_of(input.type), plan.num_tokens, stream);
    if (scales_cross(options)) {
        const std::int64_t groups = scale_groups(input.columns);
        copy_rows(comm_.context, net_.outgoing(travel_area::scales, lane, me), line_bytes(travel_area::scales),
                  input.scales, scale_stride_bytes(input), groups * size_of(input.scale), plan.num_tokens, stream);
    }
}

void hybrid_backend::send_rows(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                               const token_window&, stream_t stream) {
    const std::int32_t me = config_.first_driven;
    const std::int32_t lane = options.lane;
    net_.steps().begin(lane, travel_area::rows, stream);
    send_weights(plan, ranks.weights, travel_area::weights, stream);
    if (quantises(options) || hosts_.num_hosts > 1) {
        stage_rows(plan, ranks.input, options, stream);
    }
    net_.start_group();
    net_.append(lane, travel_area::weights, traffic(plan), false);
    for (std::int32_t h = 0; h < hosts_.num_hosts; ++h) {
        const std::int32_t peer = hosts_.rail(h);
        for (const travel_area area : {travel_area::rows, travel_area::scales}) {
            if (h != hosts_.host && (area == travel_area::rows || scales_cross(options))) {
                net_.add_rail(h, net_.outgoing(area, lane, me), tokens_of(plan, me) * line_bytes(area),
                              net_.in(area, lane, peer), tokens_of(plan, peer) * line_bytes(area));
            }
        }
    }
    net_.send_all(lane_op::dispatch, stream, !plan.exact);

    const dtype crossing = crosses_raw(options) ? config_.config.input_type : config_.config.dispatch_type;
    const scatter_program& program = crosses_raw(options) ? kernels().raw : kernels().pass;
    for (std::int32_t n = 0; n < hosts_.num_hosts; ++n) {
        const relayed_tokens tokens = rail_tokens(plan, (hosts_.host + n) % hosts_.num_hosts);
        if (tokens.num_tokens == 0) {
            continue;
        }
        const bool own = tokens.source == me;
        tensor_view rows = ranks.input;
        if (own && quantises(options)) {
            rows = lines_at(net_.outgoing(travel_area::rows, lane, me), net_.outgoing(travel_area::scales, lane, me),
                            crossing);
        } else if (!own) {
            rows = lines_at(net_.in(travel_area::rows, lane, tokens.source),
                            net_.in(travel_area::scales, lane, tokens.source), crossing);
        }
        // What is not quantised is expanded from the caller's rows on this rank.
        scatter_kernel_args args;
        fill_forward_args(args, setting(plan), net_, plan, tokens, rows, own && !quantises(options) ? me : -1);
        launch_scatter(comm_, program, args, tokens.num_tokens, 0, stream);
    }
    net_.steps().signal(lane, lane_op::dispatch, stream);
}

void hybrid_backend::send_sums(const rank_plan& plan, const combine_args& ranks, reduction order,
                               const token_window& window, stream_t stream) {
    if (!sums_hosts(order)) {
        rank_backend::send_sums(plan, ranks, order, window, stream);
        return;
    }
    const std::int32_t me = config_.first_driven;
    const std::int32_t lane = plan.options.lane;
    peer_steps& steps = net_.steps();
    steps.begin(lane, travel_area::partials, stream);
    gather_kernel_args args;
    fill_host_reduce_args(args, setting(plan), net_, plan, ranks);
    launch(comm_, kernels().gather, std::int64_t{config_.num_ranks} * bound(plan), &args, stream);
    steps.signal(lane, lane_op::combine, stream);
    steps.wait(lane, lane_op::combine, stream);
    net_.start_group();
    const std::int64_t line = line_bytes(travel_area::partials);
    for (std::int32_t h = 0; h < hosts_.num_hosts; ++h) {
        const std::int32_t owner = hosts_.rail(h);
        std::uint8_t* const sums = net_.out(travel_area::partials, lane, owner);
        const relayed_tokens tokens = rail_tokens(plan, h);
        if (tokens.num_tokens != 0) {
            fill_host_sum_args(args, setting(plan), net_, plan, tokens, sums);
            launch(comm_, kernels().gather, tokens.num_tokens, &args, stream);
        }
        if (owner != me) {
            net_.add_rail(h, sums, tokens.num_tokens * line, net_.in(travel_area::partials, lane, owner),
                          tokens_of(plan, me) * line);
        }
    }
    steps.done(lane, lane_op::combine, travel_area::partials, stream);
    net_.send_all(lane_op::combine, stream);
}

void hybrid_backend::finish_sums(const rank_plan& plan, const combine_args& ranks, reduction order,
                                 const token_window& window, stream_t stream) {
    if (!sums_hosts(order)) {
        rank_backend::finish_sums(plan, ranks, order, window, stream);
        return;
    }
    if (plan.num_tokens != 0) {
        gather_kernel_args args;
        fill_host_finish_args(args, setting(plan), net_, plan, ranks);
        launch(comm_, kernels().gather, plan.num_tokens, &args, stream);
    }
}

}  // namespace

std::unique_ptr<backend> make_hybrid_backend(communicator_state& comm, const resolved_config& config) {
    const travel_shape shape = shape_travel(config);
    return std::make_unique<hybrid_backend>(comm, config, std::make_unique<hybrid_transport>(comm, config, shape),
                                            shape);
}

}  // namespace epjit::host
