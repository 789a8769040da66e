// SPDX-License-Identifier: Apache-2.0
#include "tools/run/layer.hpp"

#include "epjit/error.hpp"
#include "host/exchange/exchange_state.hpp"
#include "tools/reference/expert.hpp"
#include "tools/run/experts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <thread>

namespace epjit::tools {
namespace {

using reference::observation;
using reference::problem;
using reference::rank_input;
using reference::rank_output;

constexpr std::size_t guard_bytes = 256;
constexpr unsigned char poison = 0xa5;

/// An output with poisoned contents and a guard behind it.
struct guarded {
    std::byte* data = nullptr;
    std::size_t bytes = 0;
    std::string name;
};

/// One rank's tensors in the exchange's memory.
struct rank_tensors {
    void* routing = nullptr;
    float* weights = nullptr;
    std::byte *input = nullptr, *input_scales = nullptr, *gradient = nullptr, *expert_rows = nullptr;
    float* row_gradients = nullptr;
    guarded rows, scales, row_source, row_weights, local_ids, local_weights, result, weight_gradients;
    std::int64_t num_rows = 0;
};

tensor_view view_of(const problem& p, void* data, dtype type, std::int64_t rows, std::int64_t stride) {
    tensor_view v;
    v.data = data;
    v.type = type;
    v.rows = rows;
    v.columns = p.hidden;
    v.row_stride = stride;
    return v;
}

}  // namespace

struct layer::state {
    state(exchange& ex, memory_space& space, const problem& job, layer_options o)
        : exchange_(ex),
          memory(space),
          job_(&job),
          options(std::move(o)),
          first(ex.state().config.first_driven),
          tensors(static_cast<std::size_t>(ex.state().config.num_driven)) {
        forget();
    }
    void forget() {
        seen = {};
        seen.first_rank = first;
        seen.ranks.resize(tensors.size());
        fetched = false;
    }

    [[nodiscard]] const problem& job() const { return *job_; }
    [[nodiscard]] const rank_input& input_of(std::size_t i) const {
        return job().inputs[static_cast<std::size_t>(first) + i];
    }
    [[nodiscard]] bool flat() const { return job().layout == layout::flat; }

    void poll() const {
        if (options.cancel != nullptr && options.cancel->load()) {
            throw error(error_kind::cancelled, "run was interrupted");
        }
    }

    guarded make_output(std::size_t bytes, std::string name, std::size_t shift = 0) {
        auto* const base = static_cast<std::byte*>(memory.allocate(bytes + shift + guard_bytes));
        guarded g{base + shift, bytes, std::move(name)};
        all.push_back(g);
        return g;
    }

    void poison_outputs() {
        for (const guarded& g : all) {
            memory.fill(g.data, poison, g.bytes + guard_bytes);
        }
    }

    /// Rows that start where the options say.
    std::byte* place_rows(const reference::bytes& rows, dtype type) {
        if (options.misalignment == 0) {
            return memory.place(std::span<const std::byte>(rows));
        }
        const auto shift = static_cast<std::size_t>(options.misalignment * size_of(type));
        auto* const base = static_cast<std::byte*>(memory.allocate(rows.size() + shift));
        memory.upload(base + shift, rows.data(), rows.size());
        return base + shift;
    }

    void allocate_outputs(std::size_t i);
    void issue_plan();
    void fill_dispatch_arguments();
    void fill_combine_arguments();
    void fetch_dispatched();
    void check_guards();

    template <class T>
    std::vector<T> fetch(const guarded& g) {
        return memory.fetch(reinterpret_cast<const T*>(g.data), g.bytes / sizeof(T));
    }

    exchange& exchange_;
    memory_space& memory;
    const problem* job_;
    const layer_options options;
    const std::int32_t first;
    std::vector<rank_tensors> tensors;
    std::vector<guarded> all;
    std::vector<plan_args> plan_arguments;
    std::vector<dispatch_args> dispatch_arguments;
    epjit::dispatch_options dispatch_choices;
    std::vector<combine_args> combine_arguments;
    epjit::combine_options combine_choices;
    std::vector<std::size_t> plan_marks, dispatch_marks, combine_marks;
    plan plan_;
    observation seen;
    bool fetched = false;  ///< `seen` holds what the last dispatch gave
};

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
    t.rows = make_output(rows * static_cast<std::size_t>(job().dispatch_stride * size_of(job().dispatch)), name("rows"),
                         shift(job().dispatch));
    t.scales = make_output(rows * static_cast<std::size_t>(job().groups() * size_of(job().scales)), name("scales"));
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

void layer::state::issue_plan() {
    plan_options o = plan_options_of(job(), options.lane);
    o.token_bound = options.token_bound;
    plan_ = exchange_.make_plan(plan_arguments, o, memory.stream(), std::move(plan_));
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
    combine_choices = {job().reduction, options.lane};
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
        const auto guard = memory.fetch(g.data + g.bytes, guard_bytes);
        const auto spoiled =
            std::find_if(guard.begin(), guard.end(), [](std::byte b) { return b != std::byte{poison}; });
        if (spoiled != guard.end()) {
            throw error(error_kind::internal, fmt::format("memory behind {} was overwritten, {} bytes past its end",
                                                          g.name, spoiled - guard.begin()));
        }
    }
}

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
        s.plan_arguments.push_back({t.routing, in.tokens, in.capacity});
    }
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
            s.exchange_.dispatch(s.plan_, s.dispatch_arguments, s.dispatch_choices, s.memory.stream());
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
}

void layer::replay() {
    state_->poll();
    state_->memory.replay();
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
    }
    s.memory.synchronize();
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
