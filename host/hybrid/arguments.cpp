// SPDX-License-Identifier: Apache-2.0
#include "host/hybrid/arguments.hpp"

namespace epjit::host {
namespace {

std::int64_t line_stride(const rank_setting& s, travel_area area) noexcept {
    return s.shape.line_bytes[static_cast<std::size_t>(area)];
}

/// A list of the tokens, found as `numbering` says.
template <class Args>
void list_tokens(Args& args, const rank_setting& s, const rank_plan& plan, const relayed_tokens& tokens,
                 templates::row_numbering numbering) {
    templates::row_list list = own_tokens(s, plan, numbering);
    list.positions = tokens.positions;
    start(args, s, plan, list);
    args.entries = tokens.entries;
    args.layout = templates::row_layout::flat;  // a row a rank, whatever the layout of the output
    args.num_tokens = tokens.num_tokens;
    args.ranks[tokens.source].num_tokens = tokens.num_tokens;
}

relayed_tokens tokens_of(const rank_setting& s, const rank_plan& plan) noexcept {
    return {s.config.first_driven, plan.num_tokens, plan.entries, plan.positions};
}

void read_from(templates::scatter_rank& from, const tensor_view& rows) noexcept {
    from.input = rows.data;
    from.input_scales = rows.scales;
    from.input_stride = stride_bytes(rows);
    from.input_scale_stride = scale_stride_bytes(rows);
}

void write_to(templates::scatter_rank& to, const rank_setting& s, void* rows, void* scales) noexcept {
    to.output = rows;
    to.output_scales = scales;
    to.output_stride = line_stride(s, travel_area::rows);
    to.output_scale_stride = static_cast<std::int32_t>(line_stride(s, travel_area::scales));
    to.capacity = s.shape.max_lines;
}

}  // namespace

void fill_stage_args(scatter_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                     const rank_plan& plan, const tensor_view& input) {
    const std::int32_t me = s.config.first_driven;
    const std::int32_t lane = plan.options.lane;
    list_tokens(args, s, plan, tokens_of(s, plan), templates::row_numbering::token);
    args.list.merge = s.config.num_ranks;  // every destination is the one of rank 0
    read_from(args.ranks[me], input);
    std::uint8_t* rows = way.outgoing(travel_area::rows, lane, me);
    write_to(args.ranks[0], s, rows, way.outgoing(travel_area::scales, lane, me));
    args.vector_bytes =
        widest_access(bits_of(s.config.config.hidden * size_of(input.type)) | bits_of(input.data) |
                      bits_of(stride_bytes(input)) | bits_of(rows) | bits_of(line_stride(s, travel_area::rows)));
}

void fill_forward_args(scatter_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                       const rank_plan& plan, const relayed_tokens& tokens, const tensor_view& rows,
                       std::int32_t skip) {
    const host_layout& hosts = way.hosts();
    list_tokens(args, s, plan, tokens, templates::row_numbering::position);
    args.list.skip_rank = skip;
    args.list.first_holder = hosts.first();
    args.list.num_holders = hosts.width;
    read_from(args.ranks[tokens.source], rows);
    std::uint64_t bits = bits_of(s.config.config.hidden * size_of(rows.type)) | bits_of(rows.data) |
                         bits_of(stride_bytes(rows)) | bits_of(line_stride(s, travel_area::rows));
    for (std::int32_t r = hosts.first(); r < hosts.first() + hosts.width; ++r) {
        std::uint8_t* to = way.window(travel_area::rows, plan.options.lane, r, tokens.source);
        write_to(args.ranks[r], s, to, way.window(travel_area::scales, plan.options.lane, r, tokens.source));
        bits |= bits_of(to);
    }
    args.vector_bytes = widest_access(bits);
}

void fill_host_reduce_args(gather_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                           const rank_plan& plan, const combine_args& ranks) {
    const host_layout& hosts = way.hosts();
    fill_reduce_args(args, s, plan, ranks);
    // Windows and ordinary regions start at multiples of 256 bytes alike, so that the widest access stays.
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        const std::int32_t adder = hosts.first() + r % hosts.width;
        const std::int32_t region = r / hosts.width * hosts.width + hosts.local;
        args.ranks[r].output = way.window(travel_area::partials, plan.options.lane, adder, region);
    }
}

void fill_host_sum_args(gather_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                        const rank_plan& plan, const relayed_tokens& tokens, void* output) {
    const host_layout& hosts = way.hosts();
    const std::int64_t stride = line_stride(s, travel_area::partials);
    list_tokens(args, s, plan, tokens, templates::row_numbering::position);
    args.list.first_holder = hosts.first();
    args.list.num_holders = hosts.width;
    args.order = templates::sum_order::per_rank;
    std::uint64_t bits =
        bits_of(s.config.config.hidden * size_of(s.config.config.combine_type)) | bits_of(output) | bits_of(stride);
    for (std::int32_t q = 0; q < hosts.width; ++q) {
        templates::gather_rank& from = args.ranks[hosts.first() + q];
        from.rows = way.window(travel_area::partials, plan.options.lane, s.config.first_driven,
                               tokens.source / hosts.width * hosts.width + q);
        from.row_stride = stride;
        bits |= bits_of(from.rows);
    }
    args.ranks[tokens.source].output = output;
    args.ranks[tokens.source].output_stride = stride;
    args.vector_bytes = widest_access(bits);
}

void fill_host_finish_args(gather_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                           const rank_plan& plan, const combine_args& ranks) {
    const host_layout& hosts = way.hosts();
    const std::int64_t stride = line_stride(s, travel_area::partials);
    list_tokens(args, s, plan, tokens_of(s, plan), templates::row_numbering::token);
    args.list.merge = hosts.width;  // from here on entry `rank` of the table is a host
    args.order = templates::sum_order::per_rank;
    std::uint64_t bits = bits_of(s.config.config.hidden * size_of(s.config.config.combine_type)) |
                         bits_of(ranks.output.data) | bits_of(stride_bytes(ranks.output)) | bits_of(stride);
    for (std::int32_t h = 0; h < hosts.num_hosts; ++h) {
        args.ranks[h].rows = way.in(travel_area::partials, plan.options.lane, hosts.rail(h));
        args.ranks[h].row_stride = stride;
        bits |= bits_of(args.ranks[h].rows);
    }
    args.ranks[s.config.first_driven].output = ranks.output.data;
    args.ranks[s.config.first_driven].output_stride = stride_bytes(ranks.output);
    args.vector_bytes = widest_access(bits);
}

}  // namespace epjit::host
