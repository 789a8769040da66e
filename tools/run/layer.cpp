// SPDX-License-Identifier: Apache-2.0
#include "tools/run/layer.hpp"

#include "tools/reference/expert.hpp"
#include "tools/reference/oracle.hpp"
#include "tools/run/experts.hpp"
#include "tools/run/layer_state.hpp"

#include <algorithm>
#include <thread>

namespace epjit::tools {

using detail::rank_tensors;
using detail::view_of;
using reference::observation;
using reference::problem;
using reference::rank_input;

layer::layer(exchange& ex, memory_space& memory, const problem& p, layer_options options)
    : state_(std::make_unique<state>(ex, memory, p, std::move(options))) {}
layer::~layer() = default;
layer::layer(layer&&) noexcept = default;
layer& layer::operator=(layer&&) noexcept = default;

void layer::upload() {
    state& s = *state_;
    for (std::size_t i = 0; i < s.tensors.size(); ++i) {
        const rank_input& in = s.input_of(i);
        rank_tensors& t = s.tensors[i];
        t.routing = s.memory.place(std::span<const std::byte>(in.routing));
        t.weights = s.memory.place(std::span<const float>(in.weights));
        t.input = s.place_rows(in.input, s.job().input);
        t.input_scales = s.memory.place(std::span<const std::byte>(in.input_scales));
        if (s.job().count_tokens) {
            const std::size_t bytes = s.job().slot_expert.size() * sizeof *t.slot_tokens;
            t.slot_tokens = static_cast<std::uint64_t*>(s.memory.allocate(bytes));
        }
        s.plan_arguments.push_back({t.routing, in.tokens, in.capacity, t.slot_tokens});
    }
    s.clear_tokens();
}

void layer::upload_again(const problem& other) {
    state& s = *state_;
    s.job_ = &other;
    const auto replace = [&](void* to, const auto& values) {
        s.memory.upload(to, values.data(), values.size() * sizeof(values[0]));
    };
    for (std::size_t i = 0; i < s.tensors.size(); ++i) {
        const rank_input& in = s.input_of(i);
        const rank_tensors& t = s.tensors[i];
        replace(t.routing, in.routing);
        replace(t.weights, in.weights);
        replace(t.input, in.input);
        replace(t.input_scales, in.input_scales);
    }
    s.clear_tokens();
}

void layer::make_plan() {
    state& s = *state_;
    for (std::int32_t n = 0; n < s.options.iters; ++n) {
        s.poll();
        s.plan_marks.push_back(s.memory.mark());
        s.issue_plan();
    }
    s.plan_marks.push_back(s.memory.mark());
    if (s.options.after_plan) {
        s.options.after_plan(s.plan_);
    }
    if (s.all.empty()) {
        for (std::size_t i = 0; i < s.tensors.size(); ++i) {
            s.allocate_outputs(i);
        }
    }
    s.fetched = false;
    s.poison_outputs();
    s.fill_dispatch_arguments();
}

void layer::dispatch_send() {
    state& s = *state_;
    s.exchange_.dispatch_send(s.plan_, s.dispatch_arguments, s.dispatch_choices, s.memory.stream());
}

void layer::dispatch_receive() {
    state& s = *state_;
    s.exchange_.dispatch_receive(s.plan_, s.dispatch_arguments, s.dispatch_choices, s.memory.stream());
}

void layer::dispatch() {
    state& s = *state_;
    for (std::int32_t n = 0; n < s.options.iters; ++n) {
        s.poll();
        s.dispatch_marks.push_back(s.memory.mark());
        if (s.options.halves) {
            dispatch_send();
            dispatch_receive();
        } else {
            dispatch_options choices = s.dispatch_choices;
            choices.follows_plan = s.options.plan_again;
            if (s.options.plan_again) {
                s.issue_plan();
            }
            s.exchange_.dispatch(s.plan_, s.dispatch_arguments, choices, s.memory.stream());
        }
    }
    s.dispatch_marks.push_back(s.memory.mark());
}

void layer::run_experts() {
    state& s = *state_;
    if (s.options.experts_in_place) {
        for (rank_tensors& t : s.tensors) {
            t.expert_rows = t.rows.data;
        }
        s.fill_combine_arguments();
        return;
    }
    s.fetch_dispatched();
    if (s.options.after_dispatch) {
        s.options.after_dispatch(s.seen);
    }
    std::vector<reference::local_experts> experts;
    for (std::size_t i = 0; i < s.tensors.size(); ++i) {
        experts.push_back(s.options.experts != nullptr
                              ? s.options.experts->fetch(s.memory, static_cast<int>(i))
                              : reference::experts_of(s.job(), s.first + static_cast<std::int32_t>(i)));
    }
    const auto one = [&](std::size_t i) {
        reference::apply_experts(s.job(), s.first + static_cast<std::int32_t>(i), experts[i], s.seen.ranks[i]);
    };
    const std::size_t workers = std::min<std::size_t>(std::max(1u, std::thread::hardware_concurrency()), 8);
    std::size_t bytes = 0;
    for (const rank_tensors& t : s.tensors) {
        bytes += t.rows.bytes;
    }
    if (workers > 1 && s.tensors.size() > 1 && bytes > (4u << 20)) {
        std::vector<std::thread> threads;
        for (std::size_t w = 0; w < workers; ++w) {
            threads.emplace_back([&, w] {
                for (std::size_t i = w; i < s.tensors.size(); i += workers) {
                    one(i);
                }
            });
        }
        for (auto& thread : threads) {
            thread.join();
        }
    } else {
        for (std::size_t i = 0; i < s.tensors.size(); ++i) {
            one(i);
        }
    }
    for (std::size_t i = 0; i < s.tensors.size(); ++i) {
        s.poll();
        s.tensors[i].expert_rows = s.place_rows(s.seen.ranks[i].expert_rows, s.job().combine);
    }
    s.fill_combine_arguments();
}

void layer::combine_send() {
    state& s = *state_;
    s.exchange_.combine_send(s.plan_, s.combine_arguments, s.combine_choices, s.memory.stream());
}

void layer::combine_receive() {
    state& s = *state_;
    s.exchange_.combine_receive(s.plan_, s.combine_arguments, s.combine_choices, s.memory.stream());
}

void layer::combine() {
    state& s = *state_;
    for (std::int32_t n = 0; n < s.options.iters; ++n) {
        s.poll();
        s.combine_marks.push_back(s.memory.mark());
        if (s.options.halves) {
            combine_send();
            combine_receive();
        } else {
            s.exchange_.combine(s.plan_, s.combine_arguments, s.combine_choices, s.memory.stream());
        }
    }
    s.combine_marks.push_back(s.memory.mark());
}

void layer::weight_gradients() {
    state& s = *state_;
    if (!s.job().weight_gradients) {
        return;
    }
    std::vector<weight_gradient_args> args(s.tensors.size());
    for (std::size_t i = 0; i < args.size(); ++i) {
        rank_tensors& t = s.tensors[i];
        const rank_input& in = s.input_of(i);
        if (!in.row_gradients.empty()) {
            // As many as the output has rows; what lies beyond the data is never read.
            std::vector<float> given = in.row_gradients;
            given.resize(static_cast<std::size_t>(t.num_rows));
            args[i].row_gradients = s.memory.place(std::span<const float>(given));
        } else {
            t.gradient = s.memory.place(std::span<const std::byte>(in.gradient));
            args[i].rows = view_of(s.job(), t.expert_rows, s.job().combine, t.num_rows, s.job().combine_stride);
            args[i].gradient = view_of(s.job(), t.gradient, s.job().combine, in.tokens, s.job().hidden);
        }
        args[i].output = reinterpret_cast<float*>(t.weight_gradients.data);
    }
    s.exchange_.weight_gradients(s.plan_, args, s.memory.stream());
}

void layer::record_graph(std::int32_t layers) {
    state& s = *state_;
    const std::uint64_t before = s.plans;
    s.memory.record([&] {
        for (std::int32_t n = 0; n < layers; ++n) {
            s.plan_marks.assign(1, s.memory.mark());
            s.issue_plan();
            s.plan_marks.push_back(s.memory.mark());
            s.dispatch_marks.assign(1, s.memory.mark());
            s.exchange_.dispatch(s.plan_, s.dispatch_arguments, s.dispatch_choices, s.memory.stream());
            s.dispatch_marks.push_back(s.memory.mark());
            s.combine_marks.assign(1, s.memory.mark());
            s.exchange_.combine(s.plan_, s.combine_arguments, s.combine_choices, s.memory.stream());
            s.combine_marks.push_back(s.memory.mark());
        }
    });
    s.graph_plans = s.plans - before;
    s.plans = before;
}

void layer::replay() {
    state_->poll();
    state_->memory.replay();
    state_->plans += state_->graph_plans;
    state_->fetched = false;
}

void layer::replay_graph(std::int32_t replays) {
    record_graph(1);
    state_->poison_outputs();
    for (std::int32_t n = 0; n < replays; ++n) {
        replay();
    }
}

observation layer::finish() {
    state& s = *state_;
    if (!s.fetched) {
        s.fetch_dispatched();
    }
    for (std::size_t i = 0; i < s.tensors.size(); ++i) {
        s.seen.ranks[i].result = s.fetch<std::byte>(s.tensors[i].result);
        if (s.job().weight_gradients) {
            s.seen.ranks[i].weight_gradients = s.fetch<float>(s.tensors[i].weight_gradients);
        }
        if (s.job().count_tokens) {
            s.seen.ranks[i].slot_tokens = s.memory.fetch(s.tensors[i].slot_tokens, s.job().slot_expert.size());
            s.seen.ranks[i].plans = s.plans;
        }
    }
    s.memory.synchronize();
    s.exchange_.check();
    const plan_status status = s.plan_.status();
    s.seen.bad_ids = status.bad_ids;
    s.seen.duplicate_ids = status.duplicate_ids;
    s.seen.excess_ids = status.excess_ids;
    s.seen.dropped_rows = status.dropped_rows;
    s.check_guards();
    observation seen = std::move(s.seen);
    s.forget();
    return seen;
}

void layer::add_times(layer_times& times) {
    state& s = *state_;
    const auto add = [&](const std::vector<std::size_t>& marks, std::vector<double>& out) {
        for (std::size_t i = 0; i + 1 < marks.size(); ++i) {
            out.push_back(s.memory.us_between(marks[i], marks[i + 1]));
        }
    };
    add(s.plan_marks, times.plan_us);
    add(s.dispatch_marks, times.dispatch_us);
    add(s.combine_marks, times.combine_us);
}

exchange_config config_of(const problem& p, exchange_kind kind, std::int32_t lanes) {
    exchange_config c;
    c.kind = kind;
    c.hidden = p.hidden;
    c.num_experts = p.experts;
    c.topk = p.topk;
    c.max_tokens_per_rank = p.max_tokens();
    c.routing = p.form;
    c.input_type = p.input;
    c.dispatch_type = p.dispatch;
    c.scales = p.scales;
    c.combine_type = p.combine;
    if (!p.default_placement) {
        c.placement = {p.slot_expert.data(), p.rank_slots.data(), static_cast<std::int32_t>(p.slot_expert.size())};
    }
    c.rank_hosts = p.rank_hosts.empty() ? nullptr : p.rank_hosts.data();
    c.lanes = lanes;
    return c;
}

plan_options plan_options_of(const problem& p, std::int32_t lane) {
    plan_options o;
    o.mode = p.mode;
    o.layout = p.layout;
    o.overflow = p.overflow;
    o.ids = p.ids;
    o.alignment = p.alignment;
    o.lane = lane;
    return o;
}

std::int32_t window_rows_for(const problem& p) {
    const auto spare = static_cast<std::int64_t>(detail::guard_bytes);  // even scales of a byte fill the guard
    const std::vector<std::int32_t> needed = reference::needed_rows(p);
    std::int64_t most = 0;
    for (std::size_t rank = 0; rank < p.inputs.size(); ++rank) {
        const std::int64_t capacity = p.inputs[rank].capacity;
        most = std::max(most, p.layout == layout::masked ? p.rank_slots[rank] * capacity
                              : p.mode == mode::exact    ? needed[rank]
                                                         : capacity);
    }
    return static_cast<std::int32_t>(most + spare);
}

observation run_problem(exchange& ex, memory_space& memory, const problem& p, const layer_options& options,
                        layer_times* times) {
    layer_options o = options;
    if (o.graph) {
        o.iters = 1;  // of the eager layer before the capture
    }
    layer l(ex, memory, p, o);
    l.upload();
    l.make_plan();
    l.dispatch();
    l.run_experts();
    l.combine();
    if (options.graph) {
        l.replay_graph(options.iters);
    }
    l.weight_gradients();
    observation seen = l.finish();
    if (times != nullptr) {
        l.add_times(*times);
    }
    return seen;
}

}  // namespace epjit::tools
