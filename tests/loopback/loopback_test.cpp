// SPDX-License-Identifier: Apache-2.0
// The loopback exchange against a fake driver: what is launched with which arguments, counters, waits and errors.
#include "epjit/epjit.hpp"
#include "host/driver/device.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/loopback/arguments.hpp"
#include "host/loopback/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <dlfcn.h>
#include <limits>
#include <vector>

namespace epjit::host {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// The fake driver's controls.
struct fake_cuda {
    template <class F>
    static F* symbol(const char* name) {
        static void* const library = dlopen(EPJIT_FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
        return reinterpret_cast<F*>(dlsym(library, name));
    }
    static std::size_t num_launches() { return symbol<std::size_t()>("fake_cuda_num_launches")(); }
    static void plan_result(int rows, int dropped, int timed_out) {
        symbol<void(int, int, int)>("fake_cuda_set_plan_result")(rows, dropped, timed_out);
    }
    static void plan_hangs(int value) { symbol<void(int)>("fake_cuda_set_plan_hangs")(value); }
    static void query_failure(int value) { symbol<void(int)>("fake_cuda_set_query_failure")(value); }
    static void reject_loads(int value) { symbol<void(int)>("fake_cuda_set_reject_loads")(value); }
    static long live() { return symbol<long()>("fake_cuda_live_allocations")(); }
    static long graphs() { return symbol<long()>("fake_cuda_live_graphs")(); }
    static long stream_waits() { return symbol<long()>("fake_cuda_stream_waits")(); }
};

struct seen_launch {
    std::string kernel;
    unsigned shape[4];
    const void* args;
    template <class Args>
    [[nodiscard]] Args as() const {
        Args a;
        std::memcpy(static_cast<void*>(&a), args, sizeof a);
        return a;
    }
};
seen_launch launch_at(std::size_t index) {
    seen_launch l;
    l.kernel = fake_cuda::symbol<const char*(std::size_t, unsigned*, const void**)>("fake_cuda_launch")(index, l.shape,
                                                                                                        &l.args);
    return l;
}

runtime_options with_fakes() {
    runtime_options o;
    o.cache_path = "";
    o.cuda_library = EPJIT_FAKE_CUDA;
    o.nvrtc_library = EPJIT_FAKE_NVRTC_A;
    o.first_wait_timeout_ms = 50;
    o.wait_timeout_ms = 50;
    return o;
}

/// One rank with one expert: ten tokens of 64 bf16.
class loopback_fake : public ::testing::Test {
   protected:
    loopback_fake() : rt(with_fakes()) {
        fake_cuda::plan_result(10, 0, 0);
        fake_cuda::plan_hangs(0);
        fake_cuda::query_failure(0);
        config.hidden = 64;
        config.num_experts = config.topk = 1;
        config.max_tokens_per_rank = 10;
        args.routing = ids.data();
        args.num_tokens = 10;
        args.capacity = 10;
        d.input = tensor(10);
        d.output = tensor(10);
        c.rows = tensor(10);
        c.output = tensor(10);
        fixed.mode = mode::fixed;
    }
    [[nodiscard]] tensor_view tensor(std::int64_t rows) {
        tensor_view v;
        v.data = memory.data();
        v.rows = rows;
        v.columns = 64;
        return v;
    }

    runtime rt;
    exchange_config config;
    std::vector<std::int64_t> ids = std::vector<std::int64_t>(10, 0);
    alignas(16) std::array<std::byte, 2048> memory{};
    plan_args args;
    plan_options fixed;
    dispatch_args d;
    combine_args c;
};

TEST_F(loopback_fake, a_replay_whose_result_is_wrong_is_not_ready) {
    // The fake driver captures and replays, and computes nothing.
    fake_cuda::plan_result(0, 0, 0);
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    std::vector<std::string> blockers;
    const readiness seen = prove_readiness(
        ex,
        [](void* user, std::string_view id, std::string_view, std::string_view why) {
            static_cast<std::vector<std::string>*>(user)->push_back(std::string(id) + ": " + std::string(why));
        },
        &blockers);
    EXPECT_TRUE(seen.captured && seen.instantiated && seen.replayed) << (blockers.empty() ? "" : blockers[0]);
    EXPECT_FALSE(seen.verified || seen.ready());
    ASSERT_EQ(blockers.size(), 1U);
    EXPECT_THAT(blockers[0],
                HasSubstr("result_not_verified: verify failed: the numbers of rows of rank 0 in replay 1"));
}

TEST_F(loopback_fake, resident_tensors_lie_on_the_device_and_steps_upload_nothing) {
    communicator comm = communicator::loopback(rt, 1);
    resident_registry weights(comm);
    const std::vector<float> data = {1, 2, 3};
    const std::size_t shard[] = {data.size() * sizeof(float)};
    const tensor_spec spec("expert_scale", tensor_use::constant, residence::stacked);
    const int number = weights.add(spec, data.data(), shard);
    EXPECT_NE(weights.get(number, 0), data.data());
    EXPECT_EQ(host::to_host<float>(comm.state().context, weights.get(number, 0), data.size()), data);
    exchange ex(comm, config);
    const counters before = rt.counters();
    EXPECT_EQ(before.uploads, 2U);  // the shard, and the exchange's tables
    plan p = ex.make_plan({&args, 1}, fixed, nullptr);
    for (int i = 0; i < 10; ++i) {
        weights.add(spec, data.data(), shard);
        ex.dispatch(p, {&d, 1}, {}, nullptr);
        ex.combine(p, {&c, 1}, {}, nullptr);
    }
    EXPECT_EQ(rt.counters().uploads, before.uploads);
}

TEST_F(loopback_fake, static_mode_stands_still_once_warm) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    plan p = ex.make_plan({&args, 1}, fixed, nullptr);
    ex.dispatch(p, {&d, 1}, {}, nullptr);
    ex.combine(p, {&c, 1}, {}, nullptr);
    const counters before = rt.counters();
    EXPECT_EQ(before.uploads, 1U);
    EXPECT_EQ(before.compiles, 3U);
    EXPECT_EQ(before.modules_loaded, 3U);
    for (int i = 0; i < 10; ++i) {
        p = ex.make_plan({&args, 1}, fixed, nullptr, std::move(p));
        ex.dispatch(p, {&d, 1}, {}, nullptr);
        ex.combine(p, {&c, 1}, {}, nullptr);
    }
    const counters after = rt.counters();
    EXPECT_EQ(after.allocations, before.allocations);
    EXPECT_EQ(after.compiles, before.compiles);
    EXPECT_EQ(after.cache_memory_hits, before.cache_memory_hits);
    EXPECT_EQ(after.uploads, before.uploads);
    EXPECT_EQ(after.modules_loaded, before.modules_loaded);
    EXPECT_EQ(after.host_waits, 0U);
    EXPECT_EQ(after.launches, before.launches + 30);
    EXPECT_EQ(p.view(0).rows, -1);
    EXPECT_EQ(p.view(0).host_counts, nullptr);
}

TEST_F(loopback_fake, launches_carry_the_callers_arguments) {
    communicator comm = communicator::loopback(rt, 1);
    config.num_sms = 3;
    exchange ex(comm, config);
    const std::size_t first = fake_cuda::num_launches();
    const plan p = ex.make_plan({&args, 1}, {}, nullptr);
    ex.dispatch(p, {&d, 1}, {}, nullptr);
    d.input.row_stride = 65;  // no longer a multiple of 16 bytes: the general kernel
    ex.dispatch(p, {&d, 1}, {}, nullptr);
    ex.combine(p, {&c, 1}, {}, nullptr);
    ASSERT_EQ(fake_cuda::num_launches(), first + 4);

    const seen_launch planned = launch_at(first);
    EXPECT_THAT(planned.kernel, HasSubstr("plan_kernel"));
    EXPECT_EQ(planned.shape[3], 1U) << "the plan kernel has a grid barrier: it is launched cooperatively";
    const auto plan_seen = planned.as<templates::plan_args<1>>();
    EXPECT_EQ(plan_seen.num_tokens, 10);
    EXPECT_EQ(plan_seen.ranks[0].routing, ids.data());
    EXPECT_EQ(plan_seen.ranks[0].capacity, std::numeric_limits<std::int32_t>::max()) << "exact mode is unbounded";
    EXPECT_EQ(plan_seen.width, templates::id_width::i64);
    EXPECT_EQ(plan_seen.expert_slots, nullptr) << "expert e has the slot e";
    EXPECT_EQ(plan_seen.barrier[0] | plan_seen.barrier[1], 0U);

    const seen_launch bulk = launch_at(first + 1);
    EXPECT_THAT(bulk.kernel, HasSubstr("scatter_bulk_kernel"));
    EXPECT_EQ(bulk.shape[0], 3U) << "num_sms bounds the grid";
    const auto rows = bulk.as<templates::scatter_args<1>>();
    EXPECT_EQ(rows.vector_bytes, 16);
    EXPECT_EQ(rows.ranks[0].input, memory.data());
    EXPECT_EQ(rows.ranks[0].input_stride, 128);
    EXPECT_EQ(rows.ranks[0].capacity, 10) << "exact mode: the rows there are";
    EXPECT_EQ(rows.zero_padding, 1);

    const seen_launch general = launch_at(first + 2);
    EXPECT_THAT(general.kernel, HasSubstr("scatter_kernel"));
    EXPECT_EQ(general.as<templates::scatter_args<1>>().vector_bytes, 2);
    const seen_launch summed = launch_at(first + 3);
    EXPECT_THAT(summed.kernel, HasSubstr("gather_kernel"));
    EXPECT_EQ(summed.as<templates::gather_args<1>>().order, templates::sum_order::per_rank);
}

TEST_F(loopback_fake, lent_outputs_are_memory_of_the_gpu_that_a_dispatch_finds_there) {
    const long before = fake_cuda::live();
    {
        communicator comm = communicator::loopback(rt, 1);
        config.window_rows = 16;
        config.lanes = 2;
        exchange ex(comm, config);
        const plan p = ex.make_plan({&args, 1}, {}, nullptr);
        d.output = ex.window_output(0, 0);
        EXPECT_NE(d.output.data, ex.window_output(0, 1).data);
        dispatch_options into;
        into.into_window = true;
        ex.dispatch(p, {&d, 1}, into, nullptr);
        const counters once = rt.counters();
        const std::size_t first = fake_cuda::num_launches();
        ex.dispatch(p, {&d, 1}, into, nullptr);
        ASSERT_EQ(fake_cuda::num_launches(), first + 1);
        EXPECT_EQ(launch_at(first).as<templates::scatter_args<1>>().ranks[0].output, d.output.data);
        EXPECT_EQ(rt.counters().allocations, once.allocations);
    }
    EXPECT_EQ(fake_cuda::live(), before);
}

TEST_F(loopback_fake, exact_mode_polls_once_and_knows_the_rows) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    fake_cuda::plan_result(7, 0, 0);
    const plan p = ex.make_plan({&args, 1}, {}, nullptr);
    EXPECT_EQ(p.view(0).rows, 7);
    EXPECT_EQ(p.view(0).host_counts[0], 7);
    EXPECT_EQ(rt.counters().host_waits, 1U);
}

TEST_F(loopback_fake, a_plan_that_never_ends_is_a_timeout_and_the_exchange_refuses_work) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    ex.prepare();
    fake_cuda::plan_hangs(1);
    try {
        static_cast<void>(ex.make_plan({&args, 1}, {}, nullptr));
        FAIL() << "no error";
    } catch (const timeout_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("waited 50 ms"));
        EXPECT_THAT(e.what(), HasSubstr("expected sequence 1, seen 0"));
        EXPECT_THAT(e.remedy(), HasSubstr("EPJIT_WAIT_TIMEOUT_MS"));
    }
    fake_cuda::plan_hangs(0);
    EXPECT_THROW(static_cast<void>(ex.make_plan({&args, 1}, {}, nullptr)), timeout_error);
}

TEST_F(loopback_fake, a_failed_stream_is_a_cuda_error_at_once) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    fake_cuda::plan_hangs(1);
    fake_cuda::query_failure(700);
    EXPECT_THROW(static_cast<void>(ex.make_plan({&args, 1}, {}, nullptr)), cuda_error);
}

TEST_F(loopback_fake, dropped_rows_fail_the_next_host_call_unless_dropping_was_asked_for) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    fake_cuda::plan_result(10, 3, 0);
    const plan p = ex.make_plan({&args, 1}, fixed, nullptr);
    EXPECT_EQ(p.status().dropped_rows, 3U);
    EXPECT_THROW(ex.dispatch(p, {&d, 1}, {}, nullptr), capacity_error);
    fixed.overflow = overflow::drop;
    const plan q = ex.make_plan({&args, 1}, fixed, nullptr);
    ex.dispatch(q, {&d, 1}, {}, nullptr);
}

TEST_F(loopback_fake, a_barrier_that_timed_out_on_the_device_is_reported_at_the_next_host_call) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    fake_cuda::plan_result(10, 0, 1);
    const plan p = ex.make_plan({&args, 1}, fixed, nullptr);
    EXPECT_THROW(ex.dispatch(p, {&d, 1}, {}, nullptr), timeout_error);
}

TEST_F(loopback_fake, a_lane_orders_its_streams) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    const gpu_stream a(comm.state().context), b(comm.state().context);
    const plan p = ex.make_plan({&args, 1}, fixed, a.get());
    const long before = fake_cuda::stream_waits();
    ex.dispatch(p, {&d, 1}, {}, a.get());
    EXPECT_EQ(fake_cuda::stream_waits(), before);
    ex.combine(p, {&c, 1}, {}, b.get());
    EXPECT_EQ(fake_cuda::stream_waits(), before + 1);
}

// As frameworks do it: eager calls on one stream, the capture on another.
TEST_F(loopback_fake, a_capture_on_another_stream_than_the_lanes_last_waits_for_nothing_outside) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    const gpu_stream a(comm.state().context), b(comm.state().context);
    plan p = ex.make_plan({&args, 1}, fixed, a.get());
    ex.dispatch(p, {&d, 1}, {}, a.get());
    const long before = fake_cuda::stream_waits();
    gpu_graph graph;
    {
        stream_capture capture(comm.state().context, b.get());
        p = ex.make_plan({&args, 1}, fixed, b.get(), std::move(p));
        ex.dispatch(p, {&d, 1}, {}, b.get());
        ex.combine(p, {&c, 1}, {}, b.get());
        graph = capture.end();
    }
    EXPECT_EQ(fake_cuda::stream_waits(), before);
    graph.launch(b.get());
    ex.dispatch(p, {&d, 1}, {}, a.get());
    EXPECT_EQ(fake_cuda::stream_waits(), before + 1) << "the capture has ended: streams are ordered again";
}

TEST_F(loopback_fake, a_rejected_entry_is_compiled_once_more_and_then_reported) {
    {
        communicator comm = communicator::loopback(rt, 1);
        exchange ex(comm, config);
        fake_cuda::reject_loads(1);
        ex.prepare();
        EXPECT_EQ(rt.counters().compiles, 4U);
    }
    runtime other(with_fakes());
    communicator comm = communicator::loopback(other, 1);
    exchange ex(comm, config);
    fake_cuda::reject_loads(2);
    try {
        ex.prepare();
        FAIL() << "no error";
    } catch (const cuda_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("cuModuleLoadData"));
    }
    fake_cuda::reject_loads(0);
}

TEST_F(loopback_fake, everything_taken_is_given_back) {
    const long before = fake_cuda::live();
    {
        communicator comm = communicator::loopback(rt, 1);
        plan p;
        {
            exchange ex(comm, config);
            p = ex.make_plan({&args, 1}, fixed, nullptr);
            EXPECT_GT(fake_cuda::live(), before);
        }
    }
    EXPECT_EQ(fake_cuda::live(), before);
}

TEST_F(loopback_fake, memory_hooks_bring_the_workspace) {
    struct arena {
        int taken = 0, given = 0;
    } counts;
    config.memory.user = &counts;
    config.memory.allocate = [](void* user, std::size_t bytes) {
        ++static_cast<arena*>(user)->taken;
        return std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    };
    config.memory.release = [](void* user, void* p) {
        ++static_cast<arena*>(user)->given;
        std::free(p);
    };
    {
        communicator comm = communicator::loopback(rt, 1);
        exchange ex(comm, config);
        const plan p = ex.make_plan({&args, 1}, fixed, nullptr);
        EXPECT_EQ(counts.taken, 2);  // tables and the plan
    }
    EXPECT_EQ(counts.given, 2);
    config.memory.allocate = [](void*, std::size_t) -> void* { return nullptr; };
    communicator comm = communicator::loopback(rt, 1);
    EXPECT_THROW(exchange(comm, config), config_error);
}

TEST(loopback_device, a_device_that_is_not_there_is_a_config_error) {
    runtime rt(with_fakes());
    try {
        communicator::loopback(rt, 1, 5);
        FAIL() << "no error";
    } catch (const config_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("device 5 does not exist: the driver sees 1 GPU(s)"));
    }
}

TEST(loopback_device, out_of_memory_says_how_much_was_asked_for_and_free) {
    runtime rt(with_fakes());
    const communicator comm = communicator::loopback(rt, 1);
    try {
        const device_buffer buffer(comm.state().context, std::size_t{3} << 30);
        FAIL() << "no error";
    } catch (const cuda_error& e) {
        EXPECT_THAT(e.what(), HasSubstr("of 3221225472 bytes on device 0 (1073741824 of 1073741824 free)"));
    }
}

TEST(arguments, widest_access_divides_every_address_and_stride) {
    EXPECT_EQ(widest_access(0), 16);
    EXPECT_EQ(widest_access(0x1000), 16);
    EXPECT_EQ(widest_access(0x1000 | 8), 8);
    EXPECT_EQ(widest_access(0x1000 | 14336 | 4), 4);
    EXPECT_EQ(widest_access(14), 2);
    EXPECT_EQ(widest_access(7), 1);
}

TEST(arguments, plan_parts_do_not_overlap_and_what_must_be_zero_comes_first) {
    resolved_config config;
    config.num_ranks = 3;
    config.config.topk = 4;
    config.placement.num_slots = 10;
    const plan_offsets o = lay_out_plan(config, 30, 7, 13);
    EXPECT_EQ(o.barrier, 0U);
    EXPECT_GE(o.zeroed, o.device_status + sizeof(templates::plan_status));
    EXPECT_GE(o.block_counts, o.device_status + sizeof(templates::plan_status));
    EXPECT_GE(o.zeroed, o.block_counts + 7 * 13 * 4);
    EXPECT_LE(o.zeroed, o.entries);
    EXPECT_GE(o.entry_slots, o.entries + 30 * 4 * 8);
    EXPECT_GE(o.slot_counts, o.entry_slots + 30 * 4 * 2);
    EXPECT_GE(o.slot_offsets, o.slot_counts + 10 * 4);
    EXPECT_GE(o.rank_rows, o.slot_offsets + 13 * 4);
    EXPECT_GE(o.total, o.rank_rows + 3 * 4);
}

TEST(poll, ends_when_the_stream_does) {
    const std::uint32_t never = 0;
    EXPECT_EQ(poll_ready(&never, 1, std::chrono::milliseconds(1000), [] { return false; }), poll_outcome::work_ended);
    EXPECT_EQ(poll_ready(&never, 0, std::chrono::milliseconds(1000), [] { return true; }), poll_outcome::ready);
    EXPECT_EQ(poll_ready(&never, 1, std::chrono::milliseconds(3), [] { return true; }), poll_outcome::timed_out);
}

TEST_F(loopback_fake, a_captured_layer_is_replayed_launch_by_launch) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    const gpu_stream stream(comm.state().context);
    plan p = ex.make_plan({&args, 1}, fixed, stream.get());
    const std::size_t before = fake_cuda::num_launches();
    gpu_graph graph;
    {
        stream_capture capture(comm.state().context, stream.get());
        EXPECT_TRUE(is_capturing(comm.state().context, stream.get()));
        p = ex.make_plan({&args, 1}, fixed, stream.get(), std::move(p));
        ex.dispatch(p, {&d, 1}, {}, stream.get());
        ex.combine(p, {&c, 1}, {}, stream.get());
        EXPECT_FALSE(graph);
        graph = capture.end();
    }
    EXPECT_FALSE(is_capturing(comm.state().context, stream.get()));
    EXPECT_EQ(fake_cuda::num_launches(), before);
    graph.launch(stream.get());
    graph.launch(stream.get());
    ASSERT_EQ(fake_cuda::num_launches(), before + 6);
    EXPECT_THAT(launch_at(before).kernel, HasSubstr("plan"));
    EXPECT_THAT(launch_at(before + 4).kernel, HasSubstr("scatter"));
    EXPECT_THAT(launch_at(before + 5).kernel, HasSubstr("gather"));
    EXPECT_EQ(fake_cuda::graphs(), 1);
    graph = {};
    EXPECT_EQ(fake_cuda::graphs(), 0);
}

TEST_F(loopback_fake, what_cannot_be_captured_is_refused_by_name_and_the_capture_goes_on) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    const gpu_stream stream(comm.state().context);
    const auto refused = [&](const plan_options& options) {
        try {
            static_cast<void>(ex.make_plan({&args, 1}, options, stream.get()));
        } catch (const unsupported_error& e) {
            return std::string(e.what());
        }
        return std::string("nothing was refused");
    };
    plan p;
    {
        stream_capture capture(comm.state().context, stream.get());
        EXPECT_THAT(refused(fixed), AllOf(HasSubstr("the kernels of exchange 'loopback' are not loaded"),
                                          HasSubstr("exchange::prepare() before the capture begins")));
        EXPECT_EQ(rt.counters().compiles, 0U);
        EXPECT_NO_THROW(static_cast<void>(capture.end()));
    }
    ex.prepare();
    {
        stream_capture capture(comm.state().context, stream.get());
        EXPECT_THAT(refused(fixed), AllOf(HasSubstr("memory for a new plan"), HasSubstr("`reuse`")));
        EXPECT_THAT(refused({}), AllOf(HasSubstr("exact mode waits for the counts"), HasSubstr("mode::fixed")));
        EXPECT_NO_THROW(static_cast<void>(capture.end()));
    }
    p = ex.make_plan({&args, 1}, fixed, stream.get());
    {
        stream_capture capture(comm.state().context, stream.get());
        p = ex.make_plan({&args, 1}, fixed, stream.get(), std::move(p));
        EXPECT_TRUE(capture.end());
    }
}

TEST_F(loopback_fake, all_that_a_step_launches_is_loaded_before_the_first_launch) {
    communicator comm = communicator::loopback(rt, 1);
    config.backward = true;
    exchange ex(comm, config);
    ex.prepare();
    const counters before = rt.counters();
    const std::size_t launches = fake_cuda::num_launches();
    EXPECT_GT(before.compiles, 0U);
    const plan p = ex.make_plan({&args, 1}, fixed, nullptr);
    ex.dispatch(p, {&d, 1}, {}, nullptr);
    ex.combine(p, {&c, 1}, {}, nullptr);
    std::array<float, 10> gradients{};
    weight_gradient_args g;
    g.rows = tensor(10);
    g.gradient = tensor(10);
    g.output = gradients.data();
    ex.weight_gradients(p, {&g, 1}, nullptr);
    EXPECT_EQ(fake_cuda::num_launches(), launches + 4);
    EXPECT_EQ(rt.counters().compiles, before.compiles);
    EXPECT_EQ(rt.counters().modules_loaded, before.modules_loaded);
}

TEST_F(loopback_fake, a_wait_spoils_a_capture_and_the_stream_stays_usable) {
    communicator comm = communicator::loopback(rt, 1);
    exchange ex(comm, config);
    const gpu_stream stream(comm.state().context);
    {
        stream_capture capture(comm.state().context, stream.get());
        EXPECT_THROW(stream.synchronize(), cuda_error);
        EXPECT_THROW(static_cast<void>(capture.end()), cuda_error);
    }
    { const stream_capture abandoned(comm.state().context, stream.get()); }
    EXPECT_FALSE(is_capturing(comm.state().context, stream.get()));
    EXPECT_EQ(fake_cuda::graphs(), 0);
    stream.synchronize();
}

}  // namespace
}  // namespace epjit::host
