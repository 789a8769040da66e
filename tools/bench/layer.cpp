// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace epjit::tools {
namespace {

exchange_config config_of(const bench_shape& s, const bench_routing& routing, exchange_kind kind) {
    exchange_config c;
    c.kind = kind;
    c.hidden = s.hidden;
    c.num_experts = s.experts;
    c.topk = s.topk;
    c.max_tokens_per_rank = s.tokens;
    c.ll_max_tokens_per_rank = s.low_latency ? s.tokens : 0;
    c.input_type = c.dispatch_type = s.dispatch_type();
    c.scales = s.scales();
    c.num_sms = s.num_sms;
    c.expansion_sms = s.expansion_sms;
    if (s.window) {  // not of masked rows, whose capacity is a slot's
        c.window_rows = *std::max_element(routing.capacity.begin(), routing.capacity.end());
    }
    return c;
}

/// Memory of small bf16 (fp8, f32) values: contents do not change the time, NaNs and denormals might mislead.
host::device_buffer filled(const bench_rank& me, std::int64_t bytes) {
    host::device_buffer b(me.context, static_cast<std::size_t>(bytes));
    if (bytes > 0) {
        host::fill_bytes(me.context, b.data(), 0x3c, b.bytes(), me.stream.get());
    }
    return b;
}

/// Rows of which no two are alike; small numbers, no NaN.
void vary(const bench_rank& me, const host::device_buffer& b, dtype type, int rank) {
    std::vector<std::byte> bytes(b.bytes());
    std::uint64_t state = 0x9e3779b97f4a7c15ULL * static_cast<std::uint64_t>(rank + 1);
    const std::size_t width = type == dtype::bf16 ? 2 : 1;
    for (std::size_t i = 0; i + width <= bytes.size(); i += width) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        const auto bits = static_cast<unsigned>(state >> 48);
        if (type == dtype::bf16) {  // +-[0.5, 2)
            bytes[i] = static_cast<std::byte>(bits);
            bytes[i + 1] = static_cast<std::byte>((bits >> 8 & 0x80U) | 0x3fU);
        } else {
            bytes[i] = static_cast<std::byte>(bits & 0xb7U);  // exponents up to 6
        }
    }
    if (!bytes.empty()) {
        host::copy_to_device(me.context, b.data(), bytes.data(), bytes.size(), me.stream.get());
        me.stream.synchronize();
    }
}

tensor_view view_of(const host::device_buffer& b, const host::device_buffer& scales, dtype type, scale_type scale,
                    std::int64_t rows, std::int64_t columns) {
    tensor_view v;
    v.data = b.data();
    v.type = type;
    v.rows = rows;
    v.columns = columns;
    v.scale = scale;
    v.scales = scale != scale_type::none ? scales.data() : nullptr;
    return v;
}

}  // namespace

std::string bench_shape::text() const {
    return fmt::format(
        "T={} H={} K={} E={} {} {} {} {}{}{}{}{}", tokens, hidden, topk, experts, routing, fp8 ? "fp8+scales" : "bf16",
        name(rows), name(mode), alignment != 1 ? fmt::format(" align={}", alignment) : "",
        num_sms != 0 ? fmt::format(" sms={}", num_sms) : "", window ? " window" : "", apart ? " apart" : "");
}

std::vector<std::int64_t> draw_ids(const bench_shape& shape, int rank, int set) {
    std::mt19937_64 random(1 + static_cast<std::uint64_t>(rank) * 1000 + static_cast<std::uint64_t>(set));
    std::vector<double> sums;
    double sum = 0;
    for (std::int32_t e = 0; e < shape.experts; ++e) {
        sums.push_back(sum += shape.routing == "zipf" ? 1.0 / (1.0 + e) : 1.0);
    }
    std::vector<std::int64_t> ids;
    ids.reserve(static_cast<std::size_t>(shape.tokens) * static_cast<std::size_t>(shape.topk));
    for (std::int32_t t = 0; t < shape.tokens; ++t) {
        const auto first = static_cast<std::ptrdiff_t>(ids.size());
        while (ids.size() < static_cast<std::size_t>(first + shape.topk)) {
            const double at = static_cast<double>(random() >> 11) * 0x1p-53 * sum;
            const auto id = std::min<std::int64_t>(std::upper_bound(sums.begin(), sums.end(), at) - sums.begin(),
                                                   shape.experts - 1);
            if (std::find(ids.begin() + first, ids.end(), id) == ids.end()) {
                ids.push_back(id);
            }
        }
    }
    return ids;
}

bench_routing::bench_routing(const bench_shape& shape, int ranks) : capacity(static_cast<std::size_t>(ranks), 1) {
    for (int set = 0; set < shape.sets; ++set) {
        auto& drawn = ids.emplace_back();
        for (int r = 0; r < ranks; ++r) {
            drawn.push_back(draw_ids(shape, r, set));
        }
        const std::vector<rank_rows> counted = count_rows(drawn, shape.topk, shape.experts);
        // Each of a rank's segments wastes less than the alignment.
        const std::int64_t padding = std::int64_t{shape.alignment - 1} * ((shape.experts + ranks - 1) / ranks);
        for (int r = 0; r < ranks; ++r) {
            const std::int64_t needed = output_rows(counted[r], shape.rows) + padding;
            capacity[r] = shape.rows == layout::masked ? ranks * shape.tokens
                                                       : std::max(capacity[r], static_cast<std::int32_t>(needed));
        }
        if (set == 0) {
            rows = counted;
        }
    }
}

bench_layer::bench_layer(bench_rank& me, int rank, const bench_shape& shape, const bench_routing& routing,
                         exchange_kind kind)
    : me_(me), shape_(shape), exchange_(me.comm, config_of(shape, routing, kind)) {
    exchange_.prepare();
    options_.mode = shape.mode;
    options_.layout = shape.rows;
    options_.alignment = shape.alignment;
    options_.source = shape.source;
    for (const auto& set : routing.ids) {
        ids_.push_back(host::to_device<std::int64_t>(me.context, set[static_cast<std::size_t>(rank)]));
        plan_args a;
        a.routing = ids_.back().data();
        a.num_tokens = shape.tokens;
        a.capacity = routing.capacity[static_cast<std::size_t>(rank)];
        args_.push_back(a);
    }
    plan(0);
    const plan_view view = plan_.view(0);
    output_rows_ = shape.rows == layout::masked ? std::int64_t{view.num_slots} * args_[0].capacity
                   : view.rows >= 0             ? view.rows
                                                : args_[0].capacity;
    make_tensors();
    if (shape.varied) {
        vary(me, input_, shape.dispatch_type(), rank);
    }
    dispatch();
    combine();
    me.stream.synchronize();
}

void bench_layer::make_tensors() {
    const bench_shape& s = shape_;
    const std::int64_t groups = (s.hidden + 127) / 128, scale_bytes = size_of(s.scales()) * groups;
    input_ = filled(me_, s.tokens * s.hidden * size_of(s.dispatch_type()));
    scales_ = filled(me_, s.tokens * scale_bytes);
    rows_ = filled(me_, s.window ? 0 : output_rows_ * s.hidden * size_of(s.dispatch_type()));
    row_scales_ = filled(me_, s.window ? 0 : output_rows_ * scale_bytes);
    weights_ = filled(me_, std::int64_t{s.tokens} * s.topk * 4);
    result_ = filled(me_, std::int64_t{s.tokens} * s.hidden * 2);
    if (s.fp8) {
        given_ = filled(me_, output_rows_ * s.hidden * 2);
    }
    dispatch_.input = view_of(input_, scales_, s.dispatch_type(), s.scales(), s.tokens, s.hidden);
    dispatch_.output = view_of(rows_, row_scales_, s.dispatch_type(), s.scales(), output_rows_, s.hidden);
    if (s.window) {
        dispatch_.output = exchange_.window_output(0, 0);
    }
    combine_.rows = view_of(s.fp8 ? given_ : rows_, row_scales_, dtype::bf16, scale_type::none, output_rows_, s.hidden);
    if (s.window && !s.fp8) {
        combine_.rows = dispatch_.output;
    }
    combine_.weights = s.rows == layout::flat ? nullptr : weights_.as<float>();
    if (weights_once()) {
        dispatch_.weights = combine_.weights;
    }
    combine_.output = view_of(result_, row_scales_, dtype::bf16, scale_type::none, s.tokens, s.hidden);
    me_.stream.synchronize();
}

void bench_layer::plan(int set) {
    plan_ =
        exchange_.make_plan({&args_[static_cast<std::size_t>(set)], 1}, options_, me_.stream.get(), std::move(plan_));
}

jit::digest bench_layer::result_digest() const {
    const auto read = [&](const host::device_buffer& b) {
        return jit::hash_bytes(host::to_host<std::byte>(me_.context, b.data(), b.bytes(), me_.stream.get()));
    };
    const jit::digest combined = read(result_);
    const bool all_rows = shape_.fp8 && shape_.rows != layout::masked && shape_.alignment == 1 && shape_.sets == 1;
    return all_rows ? jit::field_hasher().add(combined).add(read(rows_)).finish() : combined;
}

void bench_layer::dispatch() {
    dispatch_options options;
    options.into_window = shape_.window;
    options.follows_plan = !shape_.apart;
    exchange_.dispatch(plan_, {&dispatch_, 1}, options, me_.stream.get());
}

void bench_layer::combine() {
    combine_options options;
    options.weights_dispatched = weights_once();
    exchange_.combine(plan_, {&combine_, 1}, options, me_.stream.get());
}

}  // namespace epjit::tools
