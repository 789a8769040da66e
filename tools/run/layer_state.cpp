// SPDX-License-Identifier: Apache-2.0
#include "tools/run/layer_state.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::tools {

using detail::guarded;
using detail::poison;
using detail::rank_tensors;
using detail::view_of;
using reference::problem;
using reference::rank_input;
using reference::rank_output;

namespace detail {

tensor_view view_of(const problem& p, void* data, dtype type, std::int64_t rows, std::int64_t stride) {
    tensor_view v;
    v.data = data;
    v.type = type;
    v.rows = rows;
    v.columns = p.hidden;
    v.row_stride = stride;
    return v;
}

}  // namespace detail

void layer::state::allocate_outputs(std::size_t i) {
    rank_tensors& t = tensors[i];
    const rank_input& in = input_of(i);
    const plan_view view = plan_.view(static_cast<int>(i));
    t.num_rows = job().layout == layout::masked ? std::int64_t{view.num_slots} * in.capacity
                 : job().mode == mode::exact    ? view.rows
                                                : in.capacity;
    const auto rows = static_cast<std::size_t>(t.num_rows);
    const auto name = [&](const char* what) { return fmt::format("{} of rank {}", what, first + static_cast<int>(i)); };
    const auto shift = [&](dtype type) { return static_cast<std::size_t>(options.misalignment * size_of(type)); };
    if (options.into_window) {
        borrow_rows(i, fmt::format("of rank {}", first + static_cast<int>(i)));
    } else {
        t.rows = make_output(rows * static_cast<std::size_t>(job().dispatch_stride * size_of(job().dispatch)),
                             name("rows"), shift(job().dispatch));
        t.scales = make_output(rows * static_cast<std::size_t>(job().groups() * size_of(job().scales)), name("scales"));
    }
    t.row_source = make_output(rows * 8, name("row_source"));
    const std::size_t ids = flat() ? rows * static_cast<std::size_t>(job().topk) * 4 : 0;
    t.row_weights = make_output(flat() ? 0 : rows * 4, name("row_weights"));
    t.local_ids = make_output(ids, name("local_ids"));
    t.local_weights = make_output(ids, name("local_weights"));
    t.result = make_output(static_cast<std::size_t>(in.tokens * job().combine_stride * size_of(job().combine)),
                           name("combined rows"), shift(job().combine));
    if (job().weight_gradients) {
        t.weight_gradients =
            make_output(static_cast<std::size_t>(in.tokens * job().weight_columns() * 4), name("weight gradients"));
    }
}

void layer::state::borrow_rows(std::size_t i, const std::string& whose) {
    rank_tensors& t = tensors[i];
    const tensor_view lent = exchange_.window_output(static_cast<int>(i), options.lane);
    if (t.num_rows > lent.rows) {
        throw config_error(fmt::format("{} rows {} into a window of {}", t.num_rows, whose, lent.rows),
                           "make the exchange with more window_rows");
    }
    const auto rows = static_cast<std::size_t>(t.num_rows), room = static_cast<std::size_t>(lent.rows);
    const auto row_bytes = static_cast<std::size_t>(job().hidden * size_of(job().dispatch));
    const auto scale_bytes = static_cast<std::size_t>(job().groups() * size_of(job().scales));
    t.rows = borrow_output(lent.data, rows * row_bytes, room * row_bytes, "rows " + whose);
    t.scales = borrow_output(lent.scales, rows * scale_bytes, room * scale_bytes, "scales " + whose);
}

void layer::state::clear_tokens() {
    plans = 0;
    for (const rank_tensors& t : tensors) {
        if (t.slot_tokens != nullptr) {
            memory.fill(t.slot_tokens, 0, job().slot_expert.size() * sizeof *t.slot_tokens);
        }
    }
}

void layer::state::issue_plan() {
    plan_options o = plan_options_of(job(), options.lane);
    o.token_bound = options.token_bound;
    o.source = options.source;
    plan_ = exchange_.make_plan(plan_arguments, o, memory.stream(), std::move(plan_));
    ++plans;
}

void layer::state::fill_dispatch_arguments() {
    dispatch_arguments.resize(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        rank_tensors& t = tensors[i];
        dispatch_args& a = dispatch_arguments[i];
        a.input = view_of(job(), t.input, job().input, input_of(i).tokens, job().input_stride);
        if (job().input == dtype::fp8_e4m3) {
            a.input.scales = t.input_scales;
            a.input.scale = job().scales;
        }
        a.output = view_of(job(), t.rows.data, job().dispatch, t.num_rows, job().dispatch_stride);
        if (job().scales != scale_type::none) {
            a.output.scales = t.scales.data;
            a.output.scale = job().scales;
        }
        a.weights = t.weights;
        a.row_source = reinterpret_cast<std::int32_t*>(t.row_source.data);
        a.row_weights = flat() ? nullptr : reinterpret_cast<float*>(t.row_weights.data);
        a.local_ids = flat() ? reinterpret_cast<std::int32_t*>(t.local_ids.data) : nullptr;
        a.local_weights = flat() ? reinterpret_cast<float*>(t.local_weights.data) : nullptr;
    }
    dispatch_choices.weigh_input = job().weigh_input;
    dispatch_choices.zero_padding = job().zero_padding;
    dispatch_choices.zero_tail = job().zero_tail;
    dispatch_choices.lane = options.lane;
    dispatch_choices.into_window = options.into_window;
    dispatch_choices.follows_plan = options.follows_plan;
}

void layer::state::fill_combine_arguments() {
    combine_arguments.resize(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        rank_tensors& t = tensors[i];
        combine_args& a = combine_arguments[i];
        a.rows = view_of(job(), t.expert_rows, job().combine, t.num_rows, job().combine_stride);
        a.weights = job().weigh_combine && !flat() ? t.weights : nullptr;
        a.output = view_of(job(), t.result.data, job().combine, input_of(i).tokens, job().combine_stride);
    }
    combine_choices = {job().reduction, options.lane, options.weights_dispatched && job().weigh_combine && !flat()};
}

void layer::state::fetch_dispatched() {
    fetched = true;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const rank_tensors& t = tensors[i];
        rank_output& out = seen.ranks[i];
        const plan_view view = plan_.view(static_cast<int>(i));
        const auto slots = static_cast<std::size_t>(view.num_slots);
        out.counts = memory.fetch(view.counts, slots);
        out.offsets = memory.fetch(view.offsets, slots + 1);
        out.num_rows = memory.fetch(view.num_rows, 1)[0];
        out.allocated_rows = t.num_rows;
        out.rows = fetch<std::byte>(t.rows);
        out.scales = fetch<std::byte>(t.scales);
        out.row_source = fetch<std::int32_t>(t.row_source);
        out.row_weights = fetch<float>(t.row_weights);
        out.local_ids = fetch<std::int32_t>(t.local_ids);
        out.local_weights = fetch<float>(t.local_weights);
    }
}

void layer::state::check_guards() {
    for (const guarded& g : all) {
        const auto guard = memory.fetch(g.data + g.bytes, g.guard);
        const auto spoiled =
            std::find_if(guard.begin(), guard.end(), [](std::byte b) { return b != std::byte{poison}; });
        if (spoiled != guard.end()) {
            throw error(error_kind::internal, fmt::format("memory behind {} was overwritten, {} bytes past its end",
                                                          g.name, spoiled - guard.begin()));
        }
    }
}

}  // namespace epjit::tools
