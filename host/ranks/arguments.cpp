// SPDX-License-Identifier: Apache-2.0
#include "host/ranks/arguments.hpp"

#include "host/exchange/windows.hpp"

#include <algorithm>

namespace epjit::host {

templates::row_list own_tokens(const rank_setting& s, const rank_plan& plan, templates::row_numbering numbering) {
    templates::row_list list{};
    list.positions = plan.positions;
    list.failed = s.failed;
    list.list_stride = s.shape.max_lines;
    list.me = s.config.first_driven;
    list.numbering = numbering;
    list.skip_rank = -1;
    list.num_ranks = s.config.num_ranks;
    return list;
}

templates::row_list arrived_lines(const rank_setting& s, const rank_plan& plan) {
    templates::row_list list = own_tokens(s, plan, templates::row_numbering::plan);
    list.lines = plan.lines;
    list.line_first = plan.line_first;
    if (s.window_lines != nullptr) {
        list.line_first = s.window_lines;
        list.line_skip = s.window_lines + s.config.num_ranks + 1;
    } else {
        list.first_token = s.window.first;
        list.window = s.window.tokens;
    }
    return list;
}

void start(scatter_kernel_args& args, const rank_setting& s, const rank_plan& plan, const templates::row_list& list) {
    templates::scatter_head head{};
    head.list = list;
    head.entries = plan.entries;
    head.entry_slots = plan.entry_slots;
    head.rank_first = s.tables.rank_first;
    head.slot_counts = plan.slot_counts;
    head.slot_offsets = plan.slot_offsets;
    head.rank_rows = plan.rank_rows;
    static_cast<templates::scatter_head&>(args) = head;
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        args.ranks[r] = {};
    }
}

namespace {

templates::gather_head gather_head_of(const rank_plan& plan, const templates::row_list& list) {
    templates::gather_head head{};
    head.list = list;
    head.entries = plan.entries;
    head.layout = static_cast<templates::row_layout>(plan.options.layout);
    return head;
}

}  // namespace

void start(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan, const templates::row_list& list) {
    static_cast<templates::gather_head&>(args) = gather_head_of(plan, list);
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        args.ranks[r] = {};
        args.ranks[r].host = s.config.rank_hosts[static_cast<std::size_t>(r)];
    }
}

namespace {

std::int32_t lane_of(const rank_plan& plan) noexcept {
    return plan.options.lane;
}

std::int64_t line_stride(const rank_setting& s, travel_area area) noexcept {
    return s.shape.line_bytes[static_cast<std::size_t>(area)];
}

bool by_token(const rank_setting& s) noexcept {
    return s.whole_tensors || s.window.narrows();
}

/// Where row 0 would lie of a region of rows, scales or partial sums: rows are numbered by token from the window's
/// first, which has the region's first place.
std::uint8_t* row_zero(const rank_setting& s, travel_area area, std::uint8_t* region) noexcept {
    return region - s.window.first * line_stride(s, area);
}
std::uint8_t* rows_in(const rank_setting& s, const rank_plan& plan, travel_area area, std::int32_t rank) {
    return row_zero(s, area, s.way.in(area, lane_of(plan), rank));
}
std::uint8_t* rows_out(const rank_setting& s, const rank_plan& plan, travel_area area, std::int32_t rank) {
    return row_zero(s, area, s.way.out(area, lane_of(plan), rank));
}

/// The table's part that says whose tokens they are.
template <class Args>
void own_the_tokens(Args& args, const rank_setting& s, const rank_plan& plan) {
    args.ranks[s.config.first_driven].num_tokens = plan.num_tokens;
    args.num_tokens = plan.num_tokens;
}

}  // namespace

void fill_send_args(scatter_kernel_args& args, const rank_setting& s, const rank_plan& plan, const tensor_view& input,
                    bool keep_own) {
    const std::int32_t me = s.config.first_driven;
    const token_window window = s.window;
    templates::row_list list =
        own_tokens(s, plan, window.narrows() ? templates::row_numbering::token : templates::row_numbering::position);
    list.skip_rank = keep_own ? -1 : me;
    start(args, s, plan, list);
    args.layout = templates::row_layout::flat;  // a row a rank, whatever the layout of the output
    own_the_tokens(args, s, plan);
    templates::scatter_rank& from = args.ranks[me];
    from.input_stride = stride_bytes(input);
    from.input_scale_stride = scale_stride_bytes(input);
    // The window's tokens are the kernel's, counted from 0.
    args.entries += std::int64_t{window.first} * s.config.config.topk;
    args.entry_slots += std::int64_t{window.first} * s.config.config.topk;
    args.num_tokens = window.of(plan.num_tokens);
    from.num_tokens = args.num_tokens;
    from.input = static_cast<const std::byte*>(input.data) + window.first * from.input_stride;
    from.input_scales = input.scales == nullptr ? nullptr
                                                : static_cast<const std::byte*>(input.scales) +
                                                      std::int64_t{window.first} * from.input_scale_stride;
    std::uint64_t bits =
        bits_of(s.config.config.hidden * size_of(input.type)) | bits_of(from.input) | bits_of(from.input_stride);
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        templates::scatter_rank& to = args.ranks[r];
        to.output = s.way.out(travel_area::rows, lane_of(plan), r);
        to.output_scales = s.way.out(travel_area::scales, lane_of(plan), r);
        to.output_stride = line_stride(s, travel_area::rows);
        to.output_scale_stride = static_cast<std::int32_t>(line_stride(s, travel_area::scales));
        to.capacity = s.shape.staged_lines;
        bits |= bits_of(to.output) | bits_of(to.output_stride);
    }
    args.vector_bytes = widest_access(bits);
}

void fill_expand_args(scatter_kernel_args& args, const rank_setting& s, const rank_plan& plan,
                      const dispatch_args& ranks, const dispatch_options& options, dtype crossing, bool own_input) {
    const exchange_config& c = s.config.config;
    const std::int32_t me = s.config.first_driven;
    start(args, s, plan, arrived_lines(s, plan));
    args.layout = static_cast<templates::row_layout>(plan.options.layout);
    args.weight_columns = c.topk;
    args.weigh_input = options.weigh_input ? 1 : 0;
    args.zero_padding = options.zero_padding ? 1 : 0;
    args.zero_tail = options.zero_tail ? 1 : 0;
    // Rows without a token are visited only where something has to be written there.
    const bool padded = plan.options.layout == layout::expert_major && plan.options.alignment > 1;
    const bool fills = s.window.first == 0 &&
                       (ranks.row_source != nullptr || ranks.row_weights != nullptr || ranks.local_ids != nullptr ||
                        ranks.local_weights != nullptr || options.zero_tail || (padded && options.zero_padding));
    if (fills) {
        args.fill_first_slot = s.config.placement.rank_first[static_cast<std::size_t>(me)];
        args.fill_last_slot = s.config.placement.rank_first[static_cast<std::size_t>(me) + 1];
        args.fill_first_rank = me;
        args.fill_last_rank = me + 1;
    }
    const bool weights = options.weigh_input || ranks.row_weights != nullptr || ranks.local_weights != nullptr;
    templates::scatter_rank& to = args.ranks[me];
    to.output = ranks.output.data;
    to.output_scales = ranks.output.scales;
    to.row_source = ranks.row_source;
    to.row_weights = ranks.row_weights;
    to.local_ids = ranks.local_ids;
    to.local_weights = ranks.local_weights;
    to.output_stride = stride_bytes(ranks.output);
    to.output_scale_stride = scale_stride_bytes(ranks.output);
    to.capacity = plan.capacity;
    std::uint64_t bits = bits_of(c.hidden * size_of(crossing)) | bits_of(c.hidden * size_of(c.dispatch_type)) |
                         bits_of(to.output) | bits_of(to.output_stride);
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        templates::scatter_rank& from = args.ranks[r];
        from.input = rows_in(s, plan, travel_area::rows, r);
        from.input_scales = rows_in(s, plan, travel_area::scales, r);
        from.input_stride = line_stride(s, travel_area::rows);
        from.input_scale_stride = static_cast<std::int32_t>(line_stride(s, travel_area::scales));
        from.by_token = by_token(s) ? 1 : 0;
        if (r == me && own_input) {
            from.input = ranks.input.data;
            from.input_scales = ranks.input.scales;
            from.input_stride = stride_bytes(ranks.input);
            from.input_scale_stride = scale_stride_bytes(ranks.input);
            from.by_token = 1;
        }
        from.weights =
            weights ? reinterpret_cast<const float*>(s.way.in(travel_area::weights, lane_of(plan), r)) : nullptr;
        bits |= bits_of(from.input) | bits_of(from.input_stride);
    }
    args.vector_bytes = widest_access(bits);
}

void fill_reduce_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan,
                      const combine_args& ranks) {
    const exchange_config& c = s.config.config;
    start(args, s, plan, arrived_lines(s, plan));
    args.order = templates::sum_order::per_rank;
    args.weight_columns = c.topk;
    std::uint64_t bits =
        bits_of(c.hidden * size_of(c.combine_type)) | bits_of(ranks.rows.data) | bits_of(stride_bytes(ranks.rows));
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        templates::gather_rank& to = args.ranks[r];
        to.output = rows_out(s, plan, travel_area::partials, r);
        to.output_stride = line_stride(s, travel_area::partials);
        to.by_token = by_token(s) ? 1 : 0;
        if (plan.options.layout != layout::flat) {
            to.weights = reinterpret_cast<const float*>(s.way.in(travel_area::combine_weights, lane_of(plan), r));
        }
        bits |= bits_of(to.output) | bits_of(to.output_stride);
    }
    args.ranks[s.config.first_driven].rows = ranks.rows.data;
    args.ranks[s.config.first_driven].row_stride = stride_bytes(ranks.rows);
    args.vector_bytes = widest_access(bits);
}

namespace {

/// What both last steps of a combine share: this rank's tokens, rows from every rank.
void fill_returned(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan, const combine_args& ranks,
                   const templates::row_list& list) {
    const exchange_config& c = s.config.config;
    start(args, s, plan, list);
    own_the_tokens(args, s, plan);
    std::uint64_t bits =
        bits_of(c.hidden * size_of(c.combine_type)) | bits_of(ranks.output.data) | bits_of(stride_bytes(ranks.output));
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        templates::gather_rank& from = args.ranks[r];
        from.rows = rows_in(s, plan, travel_area::partials, r);
        from.row_stride = line_stride(s, travel_area::partials);
        bits |= bits_of(from.rows) | bits_of(from.row_stride);
    }
    args.ranks[s.config.first_driven].output = ranks.output.data;
    args.ranks[s.config.first_driven].output_stride = stride_bytes(ranks.output);
    args.vector_bytes = widest_access(bits);
}

}  // namespace

void fill_finish_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan, const combine_args& ranks,
                      reduction order) {
    templates::row_list list =
        own_tokens(s, plan, by_token(s) ? templates::row_numbering::token : templates::row_numbering::position);
    list.first_token = s.window.first;
    list.window = s.window.tokens;
    fill_returned(args, s, plan, ranks, list);
    args.layout = templates::row_layout::flat;  // one partial sum a rank
    args.order = static_cast<templates::sum_order>(order);
}

void fill_window_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan, const combine_args& ranks,
                      std::int32_t first_token, std::int32_t window) {
    templates::row_list list = own_tokens(s, plan, templates::row_numbering::entry);
    list.first_token = first_token;
    list.window = window;
    fill_returned(args, s, plan, ranks, list);
    args.order = templates::sum_order::per_row;
    args.weight_columns = weight_columns(s.config.config);
    args.ranks[s.config.first_driven].weights = ranks.weights;
}

void fill_line_gradient_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan,
                             const weight_gradient_args& ranks, bool by_rows) {
    const std::int32_t me = s.config.first_driven;
    start(args, s, plan, arrived_lines(s, plan));
    args.weight_columns = s.config.config.topk;
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        templates::gather_rank& to = args.ranks[r];
        to.output = s.way.out(travel_area::scalars, lane_of(plan), r);
        to.gradient = rows_in(s, plan, travel_area::rows, r);
        to.gradient_stride = line_stride(s, travel_area::rows);
        to.by_token = by_token(s) ? 1 : 0;
    }
    templates::gather_rank& own = args.ranks[me];
    own.rows = ranks.rows.data;
    own.row_stride = stride_bytes(ranks.rows);
    own.row_gradients = by_rows ? ranks.row_gradients : nullptr;
    if (!by_rows) {
        own.gradient = ranks.gradient.data;
        own.gradient_stride = stride_bytes(ranks.gradient);
        own.by_token = 1;
    }
}

void fill_token_gradient_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan,
                              const weight_gradient_args& ranks) {
    start(args, s, plan, own_tokens(s, plan, templates::row_numbering::line_entry));
    own_the_tokens(args, s, plan);
    args.weight_columns = weight_columns(s.config.config);
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        args.ranks[r].row_gradients = reinterpret_cast<const float*>(s.way.in(travel_area::scalars, lane_of(plan), r));
    }
    args.ranks[s.config.first_driven].output = ranks.output;
}

namespace {

/// Widest access that the rows of `input` allow.
std::int32_t input_access(const rank_setting& s, const tensor_view& input) {
    return widest_access(bits_of(s.config.config.hidden * size_of(input.type)) | bits_of(input.data) |
                         bits_of(stride_bytes(input)));
}

/// What the heads of both whole combines share; returns the bits of this rank's own rows and output. `few`: of few
/// tokens.
template <class Head>
std::uint64_t start_combine(Head& head, templates::gather_rank& own, const rank_setting& s, const rank_plan& plan,
                            const combine_args& ranks, reduction order, bool few) {
    const exchange_config& c = s.config.config;
    static_cast<templates::gather_head&>(head) = gather_head_of(plan, arrived_lines(s, plan));
    head.num_tokens = s.window.first + s.window.of(plan.num_tokens);
    head.order = static_cast<templates::sum_order>(order);
    head.own_weight_columns = weight_columns(c);
    head.line_weights = s.way.line_weights(lane_of(plan), few);
    head.weighted = plan.options.layout != layout::flat ? 1 : 0;
    own.rows = ranks.rows.data;
    own.row_stride = stride_bytes(ranks.rows);
    own.weights = ranks.weights;
    own.output = ranks.output.data;
    own.output_stride = stride_bytes(ranks.output);
    return bits_of(c.hidden * size_of(c.combine_type)) | bits_of(ranks.rows.data) | bits_of(stride_bytes(ranks.rows)) |
           bits_of(ranks.output.data) | bits_of(stride_bytes(ranks.output));
}

}  // namespace

void fill_dispatch_args(templates::dispatch_head& head, templates::scatter_rank* table, const rank_setting& s,
                        const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options) {
    scatter_kernel_args args;
    fill_expand_args(args, s, plan, ranks, options, s.config.config.dispatch_type, true);
    static_cast<templates::scatter_head&>(head) = args;
    head.num_tokens = s.window.first + s.window.of(plan.num_tokens);
    head.own_weight_columns = weight_columns(s.config.config);
    const std::int32_t me = s.config.first_driven;
    const bool weights = ranks.weights != nullptr;
    std::copy(args.ranks, args.ranks + s.config.num_ranks, table);
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        templates::scatter_rank& rank = table[r];
        if (r == me) {
            rank.weights = ranks.weights;
            rank.own_weight_columns = head.own_weight_columns;
            rank.num_tokens = plan.num_tokens;
            continue;
        }
        rank.output = rows_out(s, plan, travel_area::rows, r);
        rank.output_scales = rows_out(s, plan, travel_area::scales, r);
        rank.output_stride = line_stride(s, travel_area::rows);
        rank.output_scale_stride = static_cast<std::int32_t>(line_stride(s, travel_area::scales));
        rank.local_weights =
            weights ? reinterpret_cast<float*>(s.way.out(travel_area::weights, lane_of(plan), r)) : nullptr;
    }
    head.send_bytes = input_access(s, ranks.input);
}

void fill_direct_args(templates::dispatch_head& head, templates::scatter_rank* table, const rank_setting& s,
                      const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options) {
    fill_dispatch_args(head, table, s, plan, ranks, options);
    const window_layout lent(s.config.config);
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        if (r != s.config.first_driven) {
            table[r].output = s.way.window(lane_of(plan), r);
            table[r].output_scales = s.way.window(lane_of(plan), r) + lent.scales_at;
            table[r].output_stride = lent.row_bytes;
            table[r].output_scale_stride = static_cast<std::int32_t>(lent.scale_row_bytes);
        }
    }
}

void fill_combine_args(templates::combine_head& head, templates::gather_rank* table, const rank_setting& s,
                       const rank_plan& plan, const combine_args& ranks, reduction order) {
    const std::int32_t me = s.config.first_driven;
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        table[r] = {};
        table[r].host = s.config.rank_hosts[static_cast<std::size_t>(r)];
    }
    std::uint64_t bits = start_combine(head, table[me], s, plan, ranks, order, false);
    head.weight_columns = s.config.config.topk;
    for (std::int32_t r = 0; r < s.config.num_ranks; ++r) {
        if (r == me) {
            continue;
        }
        templates::gather_rank& rank = table[r];
        rank.rows = rows_in(s, plan, travel_area::partials, r);
        rank.row_stride = line_stride(s, travel_area::partials);
        rank.output = rows_out(s, plan, travel_area::partials, r);
        rank.output_stride = line_stride(s, travel_area::partials);
        bits |= bits_of(rank.rows) | bits_of(rank.output) | bits_of(rank.row_stride);
    }
    head.vector_bytes = widest_access(bits);
}

void fill_ll_dispatch_args(templates::ll_dispatch_args& args, const rank_setting& s, const rank_plan& plan,
                           const dispatch_args& ranks, const dispatch_options& options) {
    scatter_kernel_args all;
    fill_expand_args(all, s, plan, ranks, options, s.config.config.dispatch_type, true);
    static_cast<templates::scatter_head&>(args) = all;
    args.num_tokens = plan.num_tokens;
    args.own = all.ranks[s.config.first_driven];
    args.own.weights = ranks.weights;
    args.own_weight_columns = weight_columns(s.config.config);
    args.send_bytes = input_access(s, ranks.input);
    args.rows = s.way.packets(travel_area::rows, lane_of(plan));
}

void fill_ll_combine_args(templates::ll_combine_args& args, const rank_setting& s, const rank_plan& plan,
                          const combine_args& ranks, reduction order) {
    args.vector_bytes = widest_access(start_combine(args, args.own, s, plan, ranks, order, true));
    args.sums = s.way.packets(travel_area::partials, lane_of(plan));
    std::copy(s.config.host_order.begin(), s.config.host_order.end(), args.hosts);
}

}  // namespace epjit::host
