// SPDX-License-Identifier: Apache-2.0
// What the random cases do not show: addresses beyond 8 GiB, counters that stand still, reports at the next host call.
#include "epjit/epjit.hpp"
#include "host/driver/device.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/runtime/runtime_state.hpp"
#include "tests/gpu/environment.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace epjit::tests {
namespace {

using host::device_buffer;

/// One rank's layer with device memory, K distinct experts a token.
struct small_layer {
    small_layer(runtime& rt, std::int32_t tokens, std::int32_t hidden_, std::int32_t topk_, std::int32_t experts_)
        : comm(communicator::loopback(rt, 1)), context(comm.state().context), stream(context) {
        config.hidden = hidden_;
        config.topk = topk_;
        config.num_experts = experts_;
        config.max_tokens_per_rank = tokens;
        for (std::int32_t t = 0; t < tokens; ++t) {
            for (std::int32_t k = 0; k < topk_; ++k) {
                ids.push_back((t * 7 + k * 3) % experts_);
            }
        }
        device_ids = host::to_device<std::int64_t>(context, ids);
        args.num_tokens = tokens;
        args.routing = device_ids.data();
    }
    [[nodiscard]] tensor_view view(const device_buffer& buffer, std::int64_t rows) const {
        tensor_view v;
        v.data = buffer.data();
        v.type = dtype::bf16;
        v.rows = rows;
        v.columns = config.hidden;
        return v;
    }

    communicator comm;
    host::shared_context context;
    host::gpu_stream stream;
    exchange_config config;
    std::vector<std::int64_t> ids;
    device_buffer device_ids;
    plan_args args;
};

TEST(loopback, static_mode_allocates_compiles_uploads_and_waits_for_nothing_once_warm) {
    EPJIT_NEEDS_GPU();
    runtime& rt = gpu_runtime();
    small_layer l(rt, 128, 256, 4, 16);
    exchange ex(l.comm, l.config);
    ex.prepare();
    plan_options options;
    options.mode = mode::fixed;
    l.args.capacity = static_cast<std::int32_t>(ex.worst_case_rows(0, options));
    const std::int64_t rows = l.args.capacity;
    device_buffer input(l.context, 128 * 256 * 2), output(l.context, static_cast<std::size_t>(rows) * 256 * 2),
        result(l.context, 128 * 256 * 2);
    host::fill_bytes(l.context, input.data(), 0x3c, 128 * 256 * 2, l.stream.get());
    // compute-sanitizer's initcheck does not see what bulk copies write: without this it takes combine's reads for
    // wild.
    host::fill_bytes(l.context, output.data(), 0xff, static_cast<std::size_t>(rows) * 256 * 2, l.stream.get());
    dispatch_args d;
    d.input = l.view(input, 128);
    d.output = l.view(output, rows);
    combine_args c;
    c.rows = l.view(output, rows);
    c.output = l.view(result, 128);
    plan p = ex.make_plan({&l.args, 1}, options, l.stream.get());
    ex.dispatch(p, {&d, 1}, {}, l.stream.get());
    ex.combine(p, {&c, 1}, {}, l.stream.get());
    const counters before = rt.counters();
    for (int i = 0; i < 20; ++i) {
        p = ex.make_plan({&l.args, 1}, options, l.stream.get(), std::move(p));
        ex.dispatch(p, {&d, 1}, {}, l.stream.get());
        ex.combine(p, {&c, 1}, {}, l.stream.get());
    }
    l.stream.synchronize();
    const counters after = rt.counters();
    EXPECT_EQ(after.allocations, before.allocations);
    EXPECT_EQ(after.compiles, before.compiles);
    EXPECT_EQ(after.cache_memory_hits, before.cache_memory_hits);
    EXPECT_EQ(after.cache_disk_hits, before.cache_disk_hits);
    EXPECT_EQ(after.modules_loaded, before.modules_loaded);
    EXPECT_EQ(after.uploads, before.uploads);
    EXPECT_EQ(after.host_waits, before.host_waits);
    EXPECT_EQ(after.launches, before.launches + 60);
}

TEST(loopback, exact_mode_waits_once_for_each_plan_and_reports_the_counts) {
    EPJIT_NEEDS_GPU();
    runtime& rt = gpu_runtime();
    small_layer l(rt, 100, 64, 2, 8);
    exchange ex(l.comm, l.config);
    const std::uint64_t waits = rt.counters().host_waits;
    const plan p = ex.make_plan({&l.args, 1}, {}, l.stream.get());
    EXPECT_EQ(rt.counters().host_waits, waits + 1);
    const plan_view v = p.view(0);
    EXPECT_EQ(v.rows, 200);
    std::vector<std::int32_t> expected(8, 0);
    for (const std::int64_t id : l.ids) {
        ++expected[static_cast<std::size_t>(id)];
    }
    EXPECT_EQ(std::vector<std::int32_t>(v.host_counts, v.host_counts + 8), expected);
    EXPECT_EQ(host::to_host<std::int32_t>(l.context, v.counts, 8, l.stream.get()), expected);
}

TEST(loopback, rows_over_capacity_fail_the_next_host_call_where_asked) {
    EPJIT_NEEDS_GPU();
    runtime& rt = gpu_runtime();
    small_layer l(rt, 64, 64, 2, 8);
    exchange ex(l.comm, l.config);
    plan_options options;
    options.mode = mode::fixed;
    l.args.capacity = 100;  // of 128 rows
    device_buffer input(l.context, 64 * 64 * 2), output(l.context, 100 * 64 * 2);
    host::fill_bytes(l.context, input.data(), 0x3c, 64 * 64 * 2, l.stream.get());
    dispatch_args d;
    d.input = l.view(input, 64);
    d.output = l.view(output, 100);
    const plan p = ex.make_plan({&l.args, 1}, options, l.stream.get());
    l.stream.synchronize();
    EXPECT_EQ(p.status().dropped_rows, 28U);
    try {
        ex.dispatch(p, {&d, 1}, {}, l.stream.get());
        FAIL() << "no error";
    } catch (const capacity_error& e) {
        EXPECT_NE(e.message().find("28 rows"), std::string::npos) << e.what();
        EXPECT_NE(e.remedy().find("capacity"), std::string::npos) << e.what();
    }
    options.overflow = overflow::drop;
    const plan dropping = ex.make_plan({&l.args, 1}, options, l.stream.get());
    ex.dispatch(dropping, {&d, 1}, {}, l.stream.get());
    l.stream.synchronize();
    EXPECT_EQ(dropping.status().dropped_rows, 28U);
}

TEST(loopback, no_tokens_at_all_still_writes_counts) {
    EPJIT_NEEDS_GPU();
    small_layer l(gpu_runtime(), 16, 64, 2, 8);
    exchange ex(l.comm, l.config);
    plan_args none;
    const plan p = ex.make_plan({&none, 1}, {}, l.stream.get());
    EXPECT_EQ(p.view(0).rows, 0);
    EXPECT_EQ(host::to_host<std::int32_t>(l.context, p.view(0).counts, 8, l.stream.get()),
              std::vector<std::int32_t>(8, 0));
    dispatch_args d;
    d.input.columns = d.output.columns = 64;
    ex.dispatch(p, {&d, 1}, {}, l.stream.get());
    combine_args c;
    c.rows.columns = c.output.columns = 64;
    ex.combine(p, {&c, 1}, {}, l.stream.get());
    l.stream.synchronize();
}

TEST(loopback, sparse_and_dense_routing_make_the_identical_plan) {
    EPJIT_NEEDS_GPU();
    runtime& rt = gpu_runtime();
    small_layer l(rt, 500, 64, 4, 32);
    std::vector<std::uint8_t> map(500 * 32, 0);
    for (std::size_t i = 0; i < l.ids.size(); ++i) {
        map[i / 4 * 32 + static_cast<std::size_t>(l.ids[i])] = 1;
    }
    const device_buffer device_map = host::to_device<std::uint8_t>(l.context, map);
    std::vector<std::int32_t> sources[2], counts[2], offsets[2];
    for (const bool sparse : {false, true}) {
        l.config.routing = sparse ? routing_form::sparse : routing_form::dense;
        exchange ex(l.comm, l.config);
        plan_args a = l.args;
        a.routing = sparse ? device_map.data() : l.device_ids.data();
        plan_options options;
        options.alignment = 8;
        const plan p = ex.make_plan({&a, 1}, options, l.stream.get());
        const std::int64_t rows = p.view(0).rows;
        device_buffer input(l.context, 500 * 64 * 2), output(l.context, static_cast<std::size_t>(rows) * 128),
            source(l.context, static_cast<std::size_t>(rows) * 8);
        host::fill_bytes(l.context, input.data(), 0, input.bytes(), l.stream.get());
        dispatch_args d;
        d.input = l.view(input, 500);
        d.output = l.view(output, rows);
        d.row_source = source.as<std::int32_t>();
        ex.dispatch(p, {&d, 1}, {}, l.stream.get());
        sources[sparse] =
            host::to_host<std::int32_t>(l.context, source.data(), static_cast<std::size_t>(rows) * 2, l.stream.get());
        counts[sparse] = host::to_host<std::int32_t>(l.context, p.view(0).counts, 32, l.stream.get());
        offsets[sparse] = host::to_host<std::int32_t>(l.context, p.view(0).offsets, 33, l.stream.get());
    }
    EXPECT_EQ(counts[0], counts[1]);
    EXPECT_EQ(offsets[0], offsets[1]);
    EXPECT_EQ(sources[0], sources[1]);
}

// 80,000 tokens x 8 rows x 14,336 bytes: 9.2 GB of rows.
TEST(loopback, rows_beyond_8_gib_land_where_they_belong) {
    EPJIT_NEEDS_GPU();
    runtime& rt = gpu_runtime();
    constexpr std::int32_t tokens = 80'000, hidden = 7168, topk = 8, experts = 64;
    const host::shared_context context = rt.state().context(0);
    std::size_t available = 0, total = 0;
    {
        const host::scoped_context current(*context);
        context->api().check(context->api().memory_info(&available, &total), "cuMemGetInfo");
    }
    if (available < std::size_t{13} << 30) {
        GTEST_SKIP() << "needs 13 GiB of free GPU memory, there are " << available << " bytes";
    }
    small_layer l(rt, tokens, hidden, topk, experts);
    exchange ex(l.comm, l.config);
    const plan p = ex.make_plan({&l.args, 1}, {}, l.stream.get());
    const std::int64_t rows = p.view(0).rows;
    ASSERT_EQ(rows, std::int64_t{tokens} * topk);
    // Values in [1,2): sums of eight equal ones are exact.
    std::vector<std::uint16_t> values(static_cast<std::size_t>(tokens) * hidden);
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::size_t token = i / hidden;
        values[i] = static_cast<std::uint16_t>(0x3f80U | ((token * 2654435761U + i * 40503U) >> 9 & 0x7fU));
    }
    const device_buffer input = host::to_device<std::uint16_t>(l.context, values);
    device_buffer output(l.context, static_cast<std::size_t>(rows) * hidden * 2),
        source(l.context, static_cast<std::size_t>(rows) * 8), result(l.context, values.size() * 2);
    dispatch_args d;
    d.input = l.view(input, tokens);
    d.output = l.view(output, rows);
    d.row_source = source.as<std::int32_t>();
    ex.dispatch(p, {&d, 1}, {}, l.stream.get());
    combine_args c;
    c.rows = l.view(output, rows);
    c.output = l.view(result, tokens);
    ex.combine(p, {&c, 1}, {}, l.stream.get());
    const auto sources =
        host::to_host<std::int32_t>(l.context, source.data(), static_cast<std::size_t>(rows) * 2, l.stream.get());
    std::mt19937_64 random(3);
    for (int i = 0; i < 2000; ++i) {
        // The last rows always: they lie beyond 8 GiB.
        const std::int64_t row = i < 1000 ? rows - 1 - i : static_cast<std::int64_t>(random() % std::uint64_t(rows));
        const std::size_t token = static_cast<std::size_t>(sources[static_cast<std::size_t>(row) * 2 + 1]);
        ASSERT_LT(token, static_cast<std::size_t>(tokens));
        const auto seen =
            host::to_host<std::uint16_t>(l.context, output.as<std::uint16_t>() + row * hidden, hidden, l.stream.get());
        ASSERT_EQ(std::memcmp(seen.data(), values.data() + token * hidden, hidden * 2), 0) << "row " << row;
    }
    for (int i = 0; i < 500; ++i) {
        const std::size_t token = random() % tokens;
        const auto seen = host::to_host<std::uint16_t>(l.context, result.as<std::uint16_t>() + token * hidden, hidden,
                                                       l.stream.get());
        for (std::size_t h = 0; h < hidden; ++h) {
            ASSERT_EQ(seen[h], values[token * hidden + h] + (3U << 7)) << "token " << token << " element " << h;
        }
    }
}

}  // namespace
}  // namespace epjit::tests
