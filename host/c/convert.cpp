// SPDX-License-Identifier: Apache-2.0
#include "host/c/convert.hpp"

#include "host/c/enumerations.hpp"
#include "host/c/structs.hpp"

namespace epjit::host::c {
namespace {

/// A view that says nothing, which is what all zero means.
bool empty(const epjit_tensor& t) {
    return t.data == nullptr && t.rows == 0 && t.columns == 0 && t.type == 0;
}

tensor_view to_cpp(const epjit_tensor& t, const char* type_field, const char* scale_field) {
    if (empty(t)) {
        return {};
    }
    tensor_view v;
    v.data = t.data;
    v.type = enumerator<dtype>(t.type, type_field);
    v.rows = t.rows;
    v.columns = t.columns;
    v.row_stride = t.row_stride;
    v.scales = t.scales;
    v.scale = enumerator<scale_type>(t.scale, scale_field);
    v.scale_row_stride = t.scale_row_stride;
    return v;
}

}  // namespace

epjit_tensor to_c(const tensor_view& v) {
    epjit_tensor r{};
    r.data = v.data;
    r.type = static_cast<epjit_dtype>(v.type);
    r.rows = v.rows;
    r.columns = v.columns;
    r.row_stride = v.row_stride;
    r.scales = v.scales;
    r.scale = static_cast<epjit_scale_type>(v.scale);
    r.scale_row_stride = v.scale_row_stride;
    return r;
}

epjit::exchange_config to_cpp(const epjit_exchange_config& c) {
    epjit::exchange_config r;
    r.kind = enumerator<exchange_kind>(c.kind, "epjit_exchange_config::kind");
    r.hidden = c.hidden;
    r.num_experts = c.num_experts;
    r.topk = c.topk;
    r.max_tokens_per_rank = c.max_tokens_per_rank;
    r.ll_max_tokens_per_rank = c.ll_max_tokens_per_rank;
    r.routing = enumerator<routing_form>(c.routing, "epjit_exchange_config::routing");
    r.input_type = enumerator<dtype>(c.input_type, "epjit_exchange_config::input_type");
    r.dispatch_type = enumerator<dtype>(c.dispatch_type, "epjit_exchange_config::dispatch_type");
    r.scales = enumerator<scale_type>(c.scales, "epjit_exchange_config::scales");
    r.combine_type = enumerator<dtype>(c.combine_type, "epjit_exchange_config::combine_type");
    r.placement = {c.placement.slot_expert, c.placement.rank_slots, c.placement.num_slots};
    r.rank_hosts = c.rank_hosts;
    r.backward = c.backward != 0;
    r.lanes = c.lanes;
    r.num_sms = c.num_sms;
    r.halves = c.halves != 0;
    r.memory = {c.memory.allocate, c.memory.release, c.memory.user};
    r.staging_bytes = c.staging_bytes;
    r.window_rows = c.window_rows;
    r.expansion_sms = c.expansion_sms;
    return r;
}

epjit_exchange_config to_c(const epjit::exchange_config& c) {
    epjit_exchange_config r{};
    r.struct_size = sizeof r;
    r.kind = static_cast<epjit_exchange_kind>(c.kind);
    r.hidden = c.hidden;
    r.num_experts = c.num_experts;
    r.topk = c.topk;
    r.max_tokens_per_rank = c.max_tokens_per_rank;
    r.ll_max_tokens_per_rank = c.ll_max_tokens_per_rank;
    r.routing = static_cast<epjit_routing_form>(c.routing);
    r.input_type = static_cast<epjit_dtype>(c.input_type);
    r.dispatch_type = static_cast<epjit_dtype>(c.dispatch_type);
    r.scales = static_cast<epjit_scale_type>(c.scales);
    r.combine_type = static_cast<epjit_dtype>(c.combine_type);
    r.placement = {c.placement.slot_expert, c.placement.rank_slots, c.placement.num_slots, 0};
    r.rank_hosts = c.rank_hosts;
    r.backward = c.backward ? 1 : 0;
    r.lanes = c.lanes;
    r.num_sms = c.num_sms;
    r.halves = c.halves ? 1 : 0;
    r.memory = {c.memory.allocate, c.memory.release, c.memory.user};
    r.staging_bytes = c.staging_bytes;
    r.window_rows = c.window_rows;
    r.expansion_sms = c.expansion_sms;
    return r;
}

epjit::plan_options to_cpp(const epjit_plan_options& o) {
    epjit::plan_options r;
    r.mode = enumerator<mode>(o.mode, "epjit_plan_options::mode");
    r.layout = enumerator<layout>(o.layout, "epjit_plan_options::layout");
    r.overflow = enumerator<overflow>(o.overflow, "epjit_plan_options::overflow");
    r.ids = enumerator<id_type>(o.ids, "epjit_plan_options::ids");
    r.alignment = o.alignment;
    r.token_bound = o.token_bound;
    r.lane = o.lane;
    r.source = enumerator<plan_source>(o.source, "epjit_plan_options::source");
    return r;
}

epjit_plan_options to_c(const epjit::plan_options& o) {
    epjit_plan_options r{};
    r.struct_size = sizeof r;
    r.mode = static_cast<epjit_mode>(o.mode);
    r.layout = static_cast<epjit_layout>(o.layout);
    r.overflow = static_cast<epjit_overflow>(o.overflow);
    r.ids = static_cast<epjit_id_type>(o.ids);
    r.alignment = o.alignment;
    r.token_bound = o.token_bound;
    r.lane = o.lane;
    r.source = static_cast<epjit_plan_source>(o.source);
    return r;
}

epjit::plan_options plan_options_of(const epjit_plan_options* options) {
    return options != nullptr ? to_cpp(read_struct(options, to_c(epjit::plan_options{}))) : epjit::plan_options{};
}

epjit::plan_args to_cpp(const epjit_plan_args& a) {
    return {a.routing, a.num_tokens, a.capacity, a.slot_tokens};
}

epjit::dispatch_args to_cpp(const epjit_dispatch_args& a) {
    epjit::dispatch_args r;
    r.input = to_cpp(a.input, "epjit_dispatch_args::input.type", "epjit_dispatch_args::input.scale");
    r.weights = a.weights;
    r.output = to_cpp(a.output, "epjit_dispatch_args::output.type", "epjit_dispatch_args::output.scale");
    r.row_source = a.row_source;
    r.row_weights = a.row_weights;
    r.local_ids = a.local_ids;
    r.local_weights = a.local_weights;
    return r;
}

epjit::dispatch_options to_cpp(const epjit_dispatch_options& o) {
    return {o.weigh_input != 0, o.zero_padding != 0, o.zero_tail != 0, o.lane, o.into_window != 0, o.follows_plan != 0};
}

epjit_dispatch_options to_c(const epjit::dispatch_options& o) {
    epjit_dispatch_options r{};
    r.struct_size = sizeof r;
    r.weigh_input = o.weigh_input ? 1 : 0;
    r.zero_padding = o.zero_padding ? 1 : 0;
    r.zero_tail = o.zero_tail ? 1 : 0;
    r.lane = o.lane;
    r.into_window = o.into_window ? 1 : 0;
    r.follows_plan = o.follows_plan ? 1 : 0;
    return r;
}

epjit::combine_args to_cpp(const epjit_combine_args& a) {
    epjit::combine_args r;
    r.rows = to_cpp(a.rows, "epjit_combine_args::rows.type", "epjit_combine_args::rows.scale");
    r.weights = a.weights;
    r.output = to_cpp(a.output, "epjit_combine_args::output.type", "epjit_combine_args::output.scale");
    return r;
}

epjit::combine_options to_cpp(const epjit_combine_options& o) {
    return {enumerator<reduction>(o.reduction, "epjit_combine_options::reduction"), o.lane, o.weights_dispatched != 0};
}

epjit_combine_options to_c(const epjit::combine_options& o) {
    return {sizeof(epjit_combine_options), static_cast<epjit_reduction>(o.reduction), o.lane,
            o.weights_dispatched ? 1 : 0};
}

epjit::weight_gradient_args to_cpp(const epjit_weight_gradient_args& a) {
    epjit::weight_gradient_args r;
    r.rows = to_cpp(a.rows, "epjit_weight_gradient_args::rows.type", "epjit_weight_gradient_args::rows.scale");
    r.gradient =
        to_cpp(a.gradient, "epjit_weight_gradient_args::gradient.type", "epjit_weight_gradient_args::gradient.scale");
    r.row_gradients = a.row_gradients;
    r.output = a.output;
    return r;
}

}  // namespace epjit::host::c
