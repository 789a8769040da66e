// SPDX-License-Identifier: Apache-2.0
// Plan, permute and unpermute on one GPU beside what its memory allows, measured in the same run.
#include "epjit/epjit.hpp"
#include "host/driver/device.hpp"
#include "host/exchange/communicator_state.hpp"
#include "tools/bench/host_side.hpp"
#include "tools/bench/ranks_suite.hpp"
#include "tools/bench/suite.hpp"
#include "tools/command/context.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

namespace epjit::tools {
namespace {

using host::device_buffer;

constexpr int warmup_iterations = 50;
constexpr int timed_iterations = 200;
constexpr int batch_iterations = 25;
constexpr std::size_t copy_bytes = std::size_t{1} << 29;

/// A GPU with two large buffers, and what its memory does.
struct bench_device {
    bench_device(runtime& rt, int index)
        : comm(communicator::loopback(rt, 1, index)),
          context(comm.state().context),
          stream(context),
          from(context, copy_bytes),
          to(context, copy_bytes) {
        host::fill_bytes(context, from.data(), 1, copy_bytes, stream.get());
    }

    /// Keeps the GPU busy while the host enqueues a batch; otherwise the host's own time would be measured.
    void occupy() {
        for (int i = 0; i < 4; ++i) {
            host::copy_on_device(context, to.data(), from.data(), copy_bytes, stream.get());
        }
    }

    /// Median microseconds of `work(i)` on the stream, after a warm-up.
    double median_us(const std::function<void(int)>& work) {
        std::vector<double> times;
        std::vector<host::gpu_event> starts, ends;
        for (int i = 0; i < batch_iterations; ++i) {
            starts.emplace_back(context);
            ends.emplace_back(context);
        }
        for (int first = 0; first < warmup_iterations + timed_iterations; first += batch_iterations) {
            occupy();
            for (int i = 0; i < batch_iterations; ++i) {
                starts[i].record(stream.get());
                work(first + i);
                ends[i].record(stream.get());
            }
            stream.synchronize();
            for (int i = 0; i < batch_iterations && first >= warmup_iterations; ++i) {
                times.push_back(ends[i].us_since(starts[i]));
            }
        }
        const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
        std::nth_element(times.begin(), middle, times.end());
        return *middle;
    }

    communicator comm;
    host::shared_context context;
    host::gpu_stream stream;
    device_buffer from, to;
};

std::vector<std::int64_t> draw_ids(std::int32_t tokens, std::int32_t topk, std::int32_t experts, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::int32_t> pool(experts);
    for (std::int32_t e = 0; e < experts; ++e) {
        pool[e] = e;
    }
    std::vector<std::int64_t> ids;
    ids.reserve(static_cast<std::size_t>(tokens) * topk);
    for (std::int32_t t = 0; t < tokens; ++t) {
        for (std::int32_t k = 0; k < topk; ++k) {
            const auto rest = static_cast<std::uint64_t>(experts - k);
            std::swap(pool[k], pool[k + static_cast<std::int32_t>(random() % rest)]);
            ids.push_back(pool[k]);
        }
    }
    return ids;
}

device_buffer upload_ids(const bench_device& gpu, const std::vector<std::int64_t>& ids, id_type type) {
    if (type == id_type::i64) {
        return host::to_device<std::int64_t>(gpu.context, ids);
    }
    const std::vector<std::int32_t> narrow(ids.begin(), ids.end());
    return host::to_device<std::int32_t>(gpu.context, narrow);
}

struct route_shape {
    std::int32_t tokens = 4096, hidden = 7168, topk = 8, experts = 256;
    [[nodiscard]] std::string text() const {
        return fmt::format("T={} H={} K={} E={} bf16", tokens, hidden, topk, experts);
    }
    [[nodiscard]] exchange_config config() const {
        exchange_config c;
        c.hidden = hidden;
        c.topk = topk;
        c.num_experts = experts;
        c.max_tokens_per_rank = tokens;
        return c;
    }
};

tensor_view rows_of(const device_buffer& buffer, const route_shape& s, std::int64_t rows) {
    tensor_view v;
    v.data = buffer.data();
    v.type = dtype::bf16;
    v.rows = rows;
    v.columns = s.hidden;
    return v;
}

/// Microseconds that `bytes` read and written take at the measured copy rate.
double floor_of(const bench_report& report, std::uint64_t bytes) {
    return static_cast<double>(bytes) / report.rates.at("copy_read_write_gb_per_s") * 1e-3;
}

void add_row(bench_report& report, const bench_device& gpu, std::string name, double us, std::uint64_t bytes,
             std::string shape) {
    bench_row row;
    row.name = std::move(name);
    row.us = us;
    row.floor_us = floor_of(report, bytes);
    row.bytes = bytes;
    row.sms = gpu.context->num_sms();
    row.exchange = "loopback";
    row.shape = std::move(shape);
    row.launches = 1;
    report.rows.push_back(std::move(row));
}

/// What the options ask for, of rows that are moved.
route_shape asked_shape(const context& ctx) {
    const ranks_options options = ranks_options_of(ctx);
    const bench_shape s = options.model.value_or(bench_shape{});
    return {options.tokens.value_or(s.tokens), s.hidden, s.topk, s.experts};
}

void bench_plan(bench_device& gpu, bench_report& report, std::int32_t tokens, id_type type) {
    constexpr int sets = 4;
    route_shape s;
    s.tokens = tokens;
    exchange ex(gpu.comm, s.config());
    ex.prepare();
    plan_options options;
    options.mode = mode::fixed;
    options.ids = type;
    std::vector<device_buffer> ids;
    std::vector<plan> plans(sets);
    std::vector<plan_args> args(sets);
    for (int i = 0; i < sets; ++i) {
        ids.push_back(upload_ids(gpu, draw_ids(tokens, s.topk, s.experts, static_cast<std::uint64_t>(i) + 1), type));
        args[i].routing = ids.back().data();
        args[i].num_tokens = tokens;
        args[i].capacity = tokens * s.topk;
    }
    const double us = gpu.median_us([&](int i) {
        const int set = i % sets;
        plans[set] = ex.make_plan({&args[set], 1}, options, gpu.stream.get(), std::move(plans[set]));
    });
    // Ids are read once; an entry (8 bytes) and its slot (2) are written, read back and its row written again.
    const auto entries = static_cast<std::uint64_t>(tokens) * static_cast<std::uint64_t>(s.topk);
    add_row(report, gpu, fmt::format("plan {} ids", name(type)), us,
            entries * (static_cast<std::uint64_t>(size_of(type)) + 10 + 10 + 4),
            fmt::format("T={} K={} E={}", tokens, s.topk, s.experts));
}

/// One launch makes the plans of 64 virtual ranks; the row is of one.
void bench_plan_of_many(runtime& rt, bench_device& gpu, bench_report& report) {
    constexpr std::int32_t ranks = 64;
    route_shape s;
    communicator many = communicator::loopback(rt, ranks, 0);
    exchange ex(many, s.config());
    ex.prepare();
    plan_options options;
    options.mode = mode::fixed;
    std::vector<device_buffer> ids;
    std::vector<plan_args> args(ranks);
    for (std::int32_t r = 0; r < ranks; ++r) {
        ids.push_back(
            upload_ids(gpu, draw_ids(s.tokens, s.topk, s.experts, static_cast<std::uint64_t>(r) + 1), id_type::i64));
        args[r].routing = ids.back().data();
        args[r].num_tokens = s.tokens;
        args[r].capacity = 2 * s.tokens * s.topk;
    }
    plan made;
    const double us =
        gpu.median_us([&](int) { made = ex.make_plan(args, options, gpu.stream.get(), std::move(made)); }) / ranks;
    gpu.stream.synchronize();
    const auto entries = static_cast<std::uint64_t>(s.tokens) * static_cast<std::uint64_t>(s.topk);
    add_row(report, gpu, "plan of 64 virtual ranks, each", us, entries * (8 + 10 + 10 + 4),
            fmt::format("T={} K={} E={}", s.tokens, s.topk, s.experts));
}

void bench_host_side(const context& ctx, bench_report& report) {
    runtime rt(ctx.runtime_options());
    watch_driver(rt);
    bench_machine machine(rt, one_gpu{});
    add_host_rows(machine, bench_shape{}, exchange_kind::loopback, report);
}

void bench_rows(const route_shape& s, bench_device& gpu, bench_report& report) {
    constexpr int sets = 3;
    exchange ex(gpu.comm, s.config());
    ex.prepare();
    const std::int64_t rows = std::int64_t{s.tokens} * s.topk;
    const std::size_t row_bytes = static_cast<std::size_t>(s.hidden) * 2;
    std::vector<device_buffer> ids, inputs, outputs, results;
    std::vector<plan> plans;
    for (int i = 0; i < sets; ++i) {
        ids.push_back(
            upload_ids(gpu, draw_ids(s.tokens, s.topk, s.experts, static_cast<std::uint64_t>(i) + 1), id_type::i64));
        plan_args a;
        a.routing = ids.back().data();
        a.num_tokens = s.tokens;
        plans.push_back(ex.make_plan({&a, 1}, {}, gpu.stream.get()));
        inputs.emplace_back(gpu.context, static_cast<std::size_t>(s.tokens) * row_bytes);
        outputs.emplace_back(gpu.context, static_cast<std::size_t>(rows) * row_bytes);
        results.emplace_back(gpu.context, static_cast<std::size_t>(s.tokens) * row_bytes);
        // 0x3c3c is a small bf16; contents do not change the time, NaNs and denormals might mislead.
        host::fill_bytes(gpu.context, inputs.back().data(), 0x3c, inputs.back().bytes(), gpu.stream.get());
    }
    const std::vector<float> weights(static_cast<std::size_t>(rows), 0.125F);
    const device_buffer device_weights = host::to_device<float>(gpu.context, weights);
    const std::uint64_t bytes = (static_cast<std::uint64_t>(s.tokens) + static_cast<std::uint64_t>(rows)) * row_bytes;
    add_row(report, gpu, "permute", gpu.median_us([&](int i) {
        const int set = i % sets;
        dispatch_args a;
        a.input = rows_of(inputs[set], s, s.tokens);
        a.output = rows_of(outputs[set], s, rows);
        ex.dispatch(plans[set], {&a, 1}, {}, gpu.stream.get());
    }),
            bytes, s.text());
    add_row(report, gpu, "unpermute weighted", gpu.median_us([&](int i) {
        const int set = i % sets;
        combine_args a;
        a.rows = rows_of(outputs[set], s, rows);
        a.weights = device_weights.as<float>();
        a.output = rows_of(results[set], s, s.tokens);
        ex.combine(plans[set], {&a, 1}, {}, gpu.stream.get());
    }),
            bytes, s.text());
}

}  // namespace

void route_suite(const context& ctx, bench_report& report) {
    runtime rt(ctx.runtime_options());
    bench_device gpu(rt, 0);
    const double copy_us = gpu.median_us(
        [&](int) { host::copy_on_device(gpu.context, gpu.to.data(), gpu.from.data(), copy_bytes, gpu.stream.get()); });
    report.rates["copy_read_write_gb_per_s"] = 2.0 * static_cast<double>(copy_bytes) / copy_us * 1e-3;
    bench_rows(asked_shape(ctx), gpu, report);
    for (const std::int32_t tokens : {4096, 65'536}) {
        bench_plan(gpu, report, tokens, id_type::i64);
        bench_plan(gpu, report, tokens, id_type::i32);
    }
    bench_plan_of_many(rt, gpu, report);
    bench_host_side(ctx, report);
    report.notes.push_back(
        fmt::format("route on {}: goals are ratio 1.08 for permute and unpermute, 12 us for a plan of 4096 tokens, 40 "
                    "us for 65,536, 15 us for each of 64 ranks",
                    gpu.context->name()));
}

}  // namespace epjit::tools
