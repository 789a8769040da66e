// SPDX-License-Identifier: Apache-2.0
#include "tools/run/layer.hpp"

#include "epjit/error.hpp"
#include "tools/reference/expert.hpp"

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

class layer {
   public:
    layer(exchange& ex, memory_space& memory, const problem& p, const layer_options& options, layer_times* times)
        : exchange_(ex), memory_(memory), p_(p), options_(options), times_(times), tensors_(p.inputs.size()) {}

    observation run() {
        upload_inputs();
        make_plans();
        if (options_.after_plan) {
            options_.after_plan(plan_);
        }
        seen_.ranks.resize(tensors_.size());
        for (std::size_t r = 0; r < tensors_.size(); ++r) {
            allocate_outputs(r);
        }
        dispatch();
        fetch_dispatched();
        if (options_.after_dispatch) {
            options_.after_dispatch(seen_);
        }
        run_experts();
        combine();
        fetch_combined();
        if (p_.weight_gradients) {
            collect_weight_gradients();
        }
        fetch_status();
        record_times();
        check_guards();
        return std::move(seen_);
    }

   private:
    void poll() const {
        if (options_.cancel != nullptr && options_.cancel->load()) {
            throw error(error_kind::cancelled, "run was interrupted");
        }
    }

    guarded make_output(std::size_t bytes, std::string name) {
        guarded g{static_cast<std::byte*>(memory_.allocate(bytes + guard_bytes)), bytes, std::move(name)};
        memory_.fill(g.data, poison, bytes + guard_bytes);
        all_.push_back(g);
        return g;
    }

    void upload_inputs() {
        for (std::size_t r = 0; r < tensors_.size(); ++r) {
            const rank_input& in = p_.inputs[r];
            rank_tensors& t = tensors_[r];
            t.routing = memory_.place(std::span<const std::byte>(in.routing));
            t.weights = memory_.place(std::span<const float>(in.weights));
            t.input = memory_.place(std::span<const std::byte>(in.input));
            t.input_scales = memory_.place(std::span<const std::byte>(in.input_scales));
        }
    }

    void make_plans() {
        std::vector<plan_args> args;
        for (std::size_t r = 0; r < tensors_.size(); ++r) {
            args.push_back({tensors_[r].routing, p_.inputs[r].tokens, p_.inputs[r].capacity});
        }
        for (std::int32_t i = 0; i < options_.iters; ++i) {
            poll();
            plan_marks_.push_back(memory_.mark());
            plan_ = exchange_.make_plan(args, plan_options_of(p_, options_.lane), memory_.stream(), std::move(plan_));
        }
        plan_marks_.push_back(memory_.mark());
    }

    void allocate_outputs(std::size_t r) {
        rank_tensors& t = tensors_[r];
        const rank_input& in = p_.inputs[r];
        const plan_view view = plan_.view(static_cast<int>(r));
        t.num_rows = p_.layout == layout::masked ? std::int64_t{view.num_slots} * in.capacity
                     : p_.mode == mode::exact    ? view.rows
                                                 : in.capacity;
        const auto rows = static_cast<std::size_t>(t.num_rows);
        const auto name = [&](const char* what) { return fmt::format("{} of rank {}", what, r); };
        t.rows = make_output(rows * static_cast<std::size_t>(p_.dispatch_stride * size_of(p_.dispatch)), name("rows"));
        t.scales = make_output(rows * static_cast<std::size_t>(p_.groups() * size_of(p_.scales)), name("scales"));
        t.row_source = make_output(rows * 8, name("row_source"));
        const bool flat = p_.layout == layout::flat;
        const std::size_t ids = flat ? rows * static_cast<std::size_t>(p_.topk) * 4 : 0;
        t.row_weights = make_output(flat ? 0 : rows * 4, name("row_weights"));
        t.local_ids = make_output(ids, name("local_ids"));
        t.local_weights = make_output(ids, name("local_weights"));
        t.result = make_output(static_cast<std::size_t>(in.tokens * p_.combine_stride * size_of(p_.combine)),
                               name("combined rows"));
        if (p_.weight_gradients) {
            t.weight_gradients =
                make_output(static_cast<std::size_t>(in.tokens * p_.weight_columns() * 4), name("weight gradients"));
        }
    }

    [[nodiscard]] tensor_view view_of(void* data, dtype type, std::int64_t rows, std::int64_t stride) const {
        tensor_view v;
        v.data = data;
        v.type = type;
        v.rows = rows;
        v.columns = p_.hidden;
        v.row_stride = stride;
        return v;
    }

    void dispatch() {
        const bool flat = p_.layout == layout::flat;
        std::vector<dispatch_args> args(tensors_.size());
        for (std::size_t r = 0; r < args.size(); ++r) {
            rank_tensors& t = tensors_[r];
            dispatch_args& a = args[r];
            a.input = view_of(t.input, p_.input, p_.inputs[r].tokens, p_.input_stride);
            if (p_.input == dtype::fp8_e4m3) {
                a.input.scales = t.input_scales;
                a.input.scale = p_.scales;
            }
            a.output = view_of(t.rows.data, p_.dispatch, t.num_rows, p_.dispatch_stride);
            if (p_.scales != scale_type::none) {
                a.output.scales = t.scales.data;
                a.output.scale = p_.scales;
            }
            a.weights = t.weights;
            a.row_source = reinterpret_cast<std::int32_t*>(t.row_source.data);
            a.row_weights = flat ? nullptr : reinterpret_cast<float*>(t.row_weights.data);
            a.local_ids = flat ? reinterpret_cast<std::int32_t*>(t.local_ids.data) : nullptr;
            a.local_weights = flat ? reinterpret_cast<float*>(t.local_weights.data) : nullptr;
        }
        dispatch_options o;
        o.weigh_input = p_.weigh_input;
        o.zero_padding = p_.zero_padding;
        o.zero_tail = p_.zero_tail;
        o.lane = options_.lane;
        for (std::int32_t i = 0; i < options_.iters; ++i) {
            poll();
            dispatch_marks_.push_back(memory_.mark());
            if (options_.halves) {
                exchange_.dispatch_send(plan_, args, o, memory_.stream());
                exchange_.dispatch_receive(plan_, args, o, memory_.stream());
            } else {
                exchange_.dispatch(plan_, args, o, memory_.stream());
            }
        }
        dispatch_marks_.push_back(memory_.mark());
    }

    template <class T>
    std::vector<T> fetch(const guarded& g) {
        return memory_.fetch(reinterpret_cast<const T*>(g.data), g.bytes / sizeof(T));
    }

    void fetch_dispatched() {
        for (std::size_t r = 0; r < tensors_.size(); ++r) {
            const rank_tensors& t = tensors_[r];
            rank_output& out = seen_.ranks[r];
            const plan_view view = plan_.view(static_cast<int>(r));
            const auto slots = static_cast<std::size_t>(view.num_slots);
            out.counts = memory_.fetch(view.counts, slots);
            out.offsets = memory_.fetch(view.offsets, slots + 1);
            out.num_rows = memory_.fetch(view.num_rows, 1)[0];
            out.allocated_rows = t.num_rows;
            out.rows = fetch<std::byte>(t.rows);
            out.scales = fetch<std::byte>(t.scales);
            out.row_source = fetch<std::int32_t>(t.row_source);
            out.row_weights = fetch<float>(t.row_weights);
            out.local_ids = fetch<std::int32_t>(t.local_ids);
            out.local_weights = fetch<float>(t.local_weights);
        }
    }

    void run_experts() {
        const auto one = [&](std::size_t r) {
            reference::apply_experts(p_, static_cast<std::int32_t>(r), seen_.ranks[r]);
        };
        const std::size_t workers = std::min<std::size_t>(std::max(1u, std::thread::hardware_concurrency()), 8);
        std::size_t bytes = 0;
        for (const rank_tensors& t : tensors_) {
            bytes += t.rows.bytes;
        }
        if (workers > 1 && bytes > (4u << 20)) {
            std::vector<std::thread> threads;
            for (std::size_t w = 0; w < workers; ++w) {
                threads.emplace_back([&, w] {
                    for (std::size_t r = w; r < tensors_.size(); r += workers) {
                        one(r);
                    }
                });
            }
            for (auto& thread : threads) {
                thread.join();
            }
        } else {
            for (std::size_t r = 0; r < tensors_.size(); ++r) {
                one(r);
            }
        }
        for (std::size_t r = 0; r < tensors_.size(); ++r) {
            poll();
            tensors_[r].expert_rows = memory_.place(std::span<const std::byte>(seen_.ranks[r].expert_rows));
        }
    }

    void combine() {
        std::vector<combine_args> args(tensors_.size());
        for (std::size_t r = 0; r < args.size(); ++r) {
            rank_tensors& t = tensors_[r];
            args[r].rows = view_of(t.expert_rows, p_.combine, t.num_rows, p_.combine_stride);
            args[r].weights = p_.weigh_combine && p_.layout != layout::flat ? t.weights : nullptr;
            args[r].output = view_of(t.result.data, p_.combine, p_.inputs[r].tokens, p_.combine_stride);
        }
        const combine_options o{p_.reduction, options_.lane};
        for (std::int32_t i = 0; i < options_.iters; ++i) {
            poll();
            combine_marks_.push_back(memory_.mark());
            if (options_.halves) {
                exchange_.combine_send(plan_, args, o, memory_.stream());
                exchange_.combine_receive(plan_, args, o, memory_.stream());
            } else {
                exchange_.combine(plan_, args, o, memory_.stream());
            }
        }
        combine_marks_.push_back(memory_.mark());
    }

    void fetch_combined() {
        for (std::size_t r = 0; r < tensors_.size(); ++r) {
            seen_.ranks[r].result = fetch<std::byte>(tensors_[r].result);
        }
    }

    void collect_weight_gradients() {
        std::vector<weight_gradient_args> args(tensors_.size());
        for (std::size_t r = 0; r < args.size(); ++r) {
            rank_tensors& t = tensors_[r];
            const rank_input& in = p_.inputs[r];
            if (!in.row_gradients.empty()) {
                // As many as the output has rows; what lies beyond the data is never read.
                std::vector<float> given = in.row_gradients;
                given.resize(static_cast<std::size_t>(t.num_rows));
                args[r].row_gradients = memory_.place(std::span<const float>(given));
            } else {
                t.gradient = memory_.place(std::span<const std::byte>(in.gradient));
                args[r].rows = view_of(t.expert_rows, p_.combine, t.num_rows, p_.combine_stride);
                args[r].gradient = view_of(t.gradient, p_.combine, in.tokens, p_.hidden);
            }
            args[r].output = reinterpret_cast<float*>(t.weight_gradients.data);
        }
        exchange_.weight_gradients(plan_, args, memory_.stream());
        for (std::size_t r = 0; r < tensors_.size(); ++r) {
            seen_.ranks[r].weight_gradients = fetch<float>(tensors_[r].weight_gradients);
        }
    }

    void fetch_status() {
        memory_.synchronize();
        const plan_status status = plan_.status();
        seen_.bad_ids = status.bad_ids;
        seen_.duplicate_ids = status.duplicate_ids;
        seen_.excess_ids = status.excess_ids;
        seen_.dropped_rows = status.dropped_rows;
    }

    void record_times() {
        if (times_ == nullptr) {
            return;
        }
        const auto fill = [&](const std::vector<std::size_t>& marks, std::vector<double>& out) {
            for (std::size_t i = 0; i + 1 < marks.size(); ++i) {
                out.push_back(memory_.us_between(marks[i], marks[i + 1]));
            }
        };
        fill(plan_marks_, times_->plan_us);
        fill(dispatch_marks_, times_->dispatch_us);
        fill(combine_marks_, times_->combine_us);
    }

    void check_guards() {
        for (const guarded& g : all_) {
            const auto guard = memory_.fetch(g.data + g.bytes, guard_bytes);
            const auto spoiled =
                std::find_if(guard.begin(), guard.end(), [](std::byte b) { return b != std::byte{poison}; });
            if (spoiled != guard.end()) {
                throw error(error_kind::internal, fmt::format("memory behind {} was overwritten, {} bytes past its end",
                                                              g.name, spoiled - guard.begin()));
            }
        }
    }

    exchange& exchange_;
    memory_space& memory_;
    const problem& p_;
    const layer_options& options_;
    layer_times* times_;
    std::vector<rank_tensors> tensors_;
    std::vector<guarded> all_;
    std::vector<std::size_t> plan_marks_, dispatch_marks_, combine_marks_;
    plan plan_;
    observation seen_;
};

}  // namespace

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
    return layer(ex, memory, p, options, times).run();
}

}  // namespace epjit::tools
