// SPDX-License-Identifier: Apache-2.0
// Bad host-visible input gets a typed error with the values and a remedy, on every exchange; here on host.
#include "epjit/epjit.hpp"
#include "host/exchange/backend.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace epjit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

template <class Error, class Call>
std::string message_of(Call call) {
    try {
        call();
    } catch (const Error& e) {
        EXPECT_FALSE(e.remedy().empty()) << e.what();
        return e.what();
    } catch (const std::exception& e) {
        ADD_FAILURE() << "another error: " << e.what();
        return e.what();
    }
    ADD_FAILURE() << "no error";
    return {};
}

runtime_options quiet() {
    runtime_options o;
    o.cache_path = "";
    return o;
}

/// Two ranks of two experts each, four tokens a rank.
class front : public ::testing::Test {
   protected:
    front() : rt(quiet()), comm(communicator::host(rt, 2)) {
        config.hidden = 8;
        config.num_experts = 4;
        config.topk = 2;
        config.max_tokens_per_rank = 4;
        ids = {0, 1, 1, 2, 2, 3, 3, 0};
        for (int r = 0; r < 2; ++r) {
            routing.push_back({ids.data(), 4, 0});
        }
    }
    [[nodiscard]] tensor_view tensor(std::int64_t rows) {
        tensor_view v;
        v.data = memory.data();
        v.rows = rows;
        v.columns = 8;
        return v;
    }
    [[nodiscard]] std::vector<dispatch_args> dispatch_for(const plan& p) {
        std::vector<dispatch_args> d(2);
        for (int r = 0; r < 2; ++r) {
            d[r].input = tensor(4);
            d[r].output = tensor(p.view(r).rows);
            d[r].output.data = output.data();
        }
        return d;
    }
    [[nodiscard]] std::vector<combine_args> combine_for(const plan& p) {
        std::vector<combine_args> c(2);
        for (int r = 0; r < 2; ++r) {
            c[r].rows = tensor(p.view(r).rows);
            c[r].output = tensor(4);
            c[r].output.data = output.data();
        }
        return c;
    }

    runtime rt;
    communicator comm;
    exchange_config config;
    std::vector<std::int64_t> ids;
    std::vector<plan_args> routing;
    std::vector<std::uint16_t> memory = std::vector<std::uint16_t>(1024, 0), output = memory;
};

TEST_F(front, config_values_are_checked_with_field_and_value) {
    const auto refused = [&](auto change) {
        exchange_config c = config;
        change(c);
        return message_of<config_error>([&] { exchange(comm, c); });
    };
    EXPECT_THAT(refused([](auto& c) { c.hidden = 0; }), HasSubstr("hidden is 0"));
    EXPECT_THAT(refused([](auto& c) { c.num_experts = 4000; }), HasSubstr("num_experts is 4000"));
    EXPECT_THAT(refused([](auto& c) { c.topk = 5; }), HasSubstr("topk is 5"));
    // Eight slots hold copies of four experts: still four different experts at most.
    EXPECT_THAT(refused([](auto& c) {
                    static const std::vector<std::int32_t> experts{0, 1, 2, 3, 0, 1, 2, 3}, per_rank{4, 4};
                    c.placement = {experts.data(), per_rank.data(), 8};
                    c.routing = routing_form::slots;
                    c.topk = 5;
                }),
                AllOf(HasSubstr("topk is 5"), HasSubstr("4 experts"), HasSubstr("among an expert's copies")));
    EXPECT_THAT(refused([](auto& c) { c.max_tokens_per_rank = -1; }), HasSubstr("max_tokens_per_rank is -1"));
    EXPECT_THAT(refused([](auto& c) { c.max_tokens_per_rank = 2'000'000'000; }), HasSubstr("can be addressed"));
    EXPECT_THAT(refused([](auto& c) { c.ll_max_tokens_per_rank = 9; }), HasSubstr("ll_max_tokens_per_rank is 9"));
    EXPECT_THAT(refused([](auto& c) { c.lanes = 3; }), HasSubstr("lanes is 3"));
    EXPECT_THAT(refused([](auto& c) { c.num_sms = -2; }), HasSubstr("num_sms is -2"));
    EXPECT_THAT(refused([](auto& c) { c.window_rows = -1; }), HasSubstr("window_rows is -1"));
    EXPECT_THAT(refused([](auto& c) { c.staging_bytes = -1; }), HasSubstr("staging_bytes is -1"));
    EXPECT_THAT(refused([](auto& c) {
                    c.staging_bytes = 4096;
                    c.halves = true;
                }),
                AllOf(HasSubstr("staging_bytes is 4096"), HasSubstr("halves is set")));
    EXPECT_THAT(refused([](auto& c) { c.version = 2; }), HasSubstr("version is 2"));
    EXPECT_THAT(refused([](auto& c) { c.dispatch_type = dtype::fp8_e4m3; }), HasSubstr("needs scales"));
    EXPECT_THAT(refused([](auto& c) { c.scales = scale_type::f32; }), HasSubstr("carry no scales"));
    EXPECT_THAT(refused([](auto& c) { c.memory.release = [](void*, void*) {}; }), HasSubstr("memory_hooks"));
    EXPECT_THAT(refused([](auto& c) { c.kind = exchange_kind::loopback; }), HasSubstr("'host' communicator"));
}

TEST_F(front, what_is_not_built_is_named) {
    for (const exchange_kind kind :
         {exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense, exchange_kind::hybrid}) {
        exchange_config c = config;
        c.kind = kind;
        EXPECT_THAT(message_of<config_error>([&] { exchange(comm, c); }),
                    HasSubstr(fmt::format("'{}' was asked for on a 'host' communicator", name(kind))));
    }
    exchange_config c = config;
    c.combine_type = dtype::fp8_e4m3;
    EXPECT_THAT(message_of<unsupported_error>([&] { exchange(comm, c); }), HasSubstr("combine_type fp8"));
    c = config;
    c.dispatch_type = dtype::f32;
    EXPECT_THAT(message_of<unsupported_error>([&] { exchange(comm, c); }), HasSubstr("bf16 rows to f32"));
    EXPECT_THAT(message_of<config_error>([&] { communicator::host(rt, 65); }), HasSubstr("65 ranks"));
}

TEST_F(front, placement_is_checked) {
    const std::vector<std::int32_t> slots{0, 1, 2, 2}, bad{0, 1, 2, 7}, full{0, 1, 2, 3, 0}, two{2, 2}, five{2, 3};
    const auto refused = [&](placement p) {
        exchange_config c = config;
        c.placement = p;
        return message_of<config_error>([&] { exchange(comm, c); });
    };
    EXPECT_THAT(refused({slots.data(), two.data(), 4}), HasSubstr("expert 3 of 4 has no slot"));
    EXPECT_THAT(refused({bad.data(), two.data(), 4}), HasSubstr("slot_expert[3] is 7"));
    EXPECT_THAT(refused({full.data(), two.data(), 5}), HasSubstr("sums to 4"));
    EXPECT_THAT(refused({full.data(), nullptr, 5}), HasSubstr("half given"));
    const host::placement_tables t = host::resolve({full.data(), five.data(), 5}, 4, 2);
    EXPECT_EQ(t.expert_first, (std::vector<std::int32_t>{0, 2, 3, 4, 5}));
    EXPECT_EQ(t.expert_slots, (std::vector<std::uint16_t>{0, 4, 1, 2, 3}));
    EXPECT_EQ(t.rank_first, (std::vector<std::int32_t>{0, 2, 5}));
}

TEST_F(front, default_placement_gives_the_first_ranks_one_more_and_refuses_no_count) {
    EXPECT_EQ(host::resolve({}, 7, 3).rank_first, (std::vector<std::int32_t>{0, 3, 5, 7}));
    EXPECT_EQ(host::resolve({}, 2, 4).rank_first, (std::vector<std::int32_t>{0, 1, 2, 2, 2}));
}

TEST_F(front, worst_case_covers_padding_and_few_slots) {
    exchange ex(comm, config);
    plan_options o;
    EXPECT_EQ(ex.worst_case_rows(0, o), 16);  // 8 tokens x min(K 2, L 2)
    o.alignment = 4;
    EXPECT_EQ(ex.worst_case_rows(0, o), 20);  // 16 + 2 x 3 = 22, whole segments of 4
    o.layout = layout::flat;
    EXPECT_EQ(ex.worst_case_rows(1, o), 8);
    o.layout = layout::masked;
    EXPECT_EQ(ex.worst_case_rows(1, o), 16);
    EXPECT_THAT(message_of<config_error>([&] { static_cast<void>(ex.worst_case_rows(2, o)); }),
                HasSubstr("driven rank 2"));
}

TEST_F(front, plan_arguments_are_checked) {
    exchange ex(comm, config);
    const auto refused = [&](std::vector<plan_args> args, plan_options o) {
        return message_of<config_error>([&] { static_cast<void>(ex.make_plan(args, o, nullptr)); });
    };
    EXPECT_THAT(refused({routing[0]}, {}), HasSubstr("1 argument structs, the communicator drives 2"));
    auto args = routing;
    args[1].num_tokens = 5;
    EXPECT_THAT(refused(args, {}), HasSubstr("rank 1 brings 5 tokens, the bound is 4"));
    args = routing;
    args[0].routing = nullptr;
    EXPECT_THAT(refused(args, {}), HasSubstr("routing of rank 0 is null"));
    plan_options o;
    o.mode = mode::fixed;
    EXPECT_THAT(refused(routing, o), HasSubstr("static expert_major needs a capacity"));
    o = {};
    o.layout = layout::masked;
    EXPECT_THAT(refused(routing, o), HasSubstr("exact masked needs a capacity"));
    o = {};
    o.alignment = 0;
    EXPECT_THAT(refused(routing, o), HasSubstr("alignment is 0"));
    o = {};
    o.token_bound = 3;
    EXPECT_THAT(refused(routing, o), HasSubstr("4 tokens, the bound is 3"));
    o = {};
    o.lane = 1;
    EXPECT_THAT(refused(routing, o), HasSubstr("lane is 1"));
}

TEST_F(front, dispatch_arguments_are_checked) {
    exchange ex(comm, config);
    const plan p = ex.make_plan(routing, {}, nullptr);
    const auto refused = [&](auto change) {
        auto d = dispatch_for(p);
        dispatch_options o;
        change(d, o);
        return message_of<config_error>([&] { ex.dispatch(p, d, o, nullptr); });
    };
    EXPECT_THAT(refused([](auto& d, auto&) { d.pop_back(); }), HasSubstr("1 argument structs"));
    EXPECT_THAT(refused([](auto& d, auto&) { d[1].input.data = nullptr; }),
                HasSubstr("dispatch input of rank 1 is null"));
    EXPECT_THAT(refused([](auto& d, auto&) { d[0].input.type = dtype::f32; }), HasSubstr("is f32"));
    EXPECT_THAT(refused([](auto& d, auto&) { d[0].input.columns = 9; }), HasSubstr("9 columns, H is 8"));
    EXPECT_THAT(refused([](auto& d, auto&) { d[0].input.rows = 3; }), HasSubstr("3 rows, 4 are needed"));
    EXPECT_THAT(refused([](auto& d, auto&) { --d[0].output.rows; }), HasSubstr("are needed"));
    EXPECT_THAT(refused([](auto& d, auto&) { d[0].output.row_stride = 4; }), HasSubstr("row_stride 4"));
    EXPECT_THAT(refused([](auto&, auto& o) { o.weigh_input = true; }), HasSubstr("weigh_input needs them"));
    EXPECT_THAT(refused([&](auto& d, auto&) { d[1].row_weights = reinterpret_cast<float*>(output.data()); }),
                HasSubstr("row_weights or local_weights output needs them"));
    EXPECT_THAT(refused([&](auto& d, auto&) { d[1].local_ids = reinterpret_cast<std::int32_t*>(output.data()); }),
                HasSubstr("exist on flat only"));
    EXPECT_THAT(refused([](auto&, auto& o) { o.lane = 1; }), HasSubstr("dispatch on lane 1"));
    EXPECT_THAT(refused([&](auto& d, auto&) { d[0].input.data = reinterpret_cast<std::byte*>(memory.data()) + 1; }),
                HasSubstr("not aligned"));
    EXPECT_THAT(refused([](auto& d, auto&) { d[0].output.scale = scale_type::f32; }), HasSubstr("scales 'f32'"));
}

TEST_F(front, lent_outputs_are_of_a_rank_and_a_lane_and_belong_to_the_exchange) {
    config.lanes = 2;
    const exchange none(comm, config);
    EXPECT_THAT(message_of<config_error>([&] { static_cast<void>(none.window_output(0, 0)); }),
                HasSubstr("an exchange that lends none"));
    const std::size_t without = none.workspace_bytes();
    config.window_rows = 16;
    const exchange ex(comm, config);
    EXPECT_EQ(ex.workspace_bytes() - without, 4 * 16 * 8 * 2);
    const tensor_view first = ex.window_output(0, 0);
    EXPECT_EQ(first.rows, 16);
    EXPECT_EQ(first.columns, 8);
    EXPECT_EQ(first.type, dtype::bf16);
    EXPECT_EQ(first.scales, nullptr);
    EXPECT_EQ(ex.window_output(0, 0).data, first.data);
    EXPECT_NE(ex.window_output(0, 1).data, first.data);
    EXPECT_NE(ex.window_output(1, 0).data, first.data);
    EXPECT_THAT(message_of<config_error>([&] { static_cast<void>(ex.window_output(2, 0)); }),
                HasSubstr("driven rank 2 and lane 0, there are 2 and 2"));
    EXPECT_THAT(message_of<config_error>([&] { static_cast<void>(ex.window_output(0, 2)); }), HasSubstr("lane 2"));
    config.input_type = config.dispatch_type = dtype::fp8_e4m3;
    config.scales = scale_type::f32;
    const exchange fp8(comm, config);
    const tensor_view scaled = fp8.window_output(1, 1);
    EXPECT_EQ(static_cast<std::byte*>(scaled.scales) - static_cast<std::byte*>(scaled.data), 256);
    EXPECT_EQ(scaled.scale, scale_type::f32);
}

TEST_F(front, a_dispatch_into_a_window_is_given_that_window) {
    config.window_rows = 16;
    exchange ex(comm, config);
    const plan p = ex.make_plan(routing, {}, nullptr);
    dispatch_options into;
    into.into_window = true;
    auto d = dispatch_for(p);
    EXPECT_THAT(message_of<config_error>([&] { ex.dispatch(p, d, into, nullptr); }),
                AllOf(HasSubstr("the output of rank 0 is not the one lent for lane 0"), HasSubstr("window_output")));
    for (int r = 0; r < 2; ++r) {
        d[r].output = ex.window_output(r, 0);
    }
    ex.dispatch(p, d, into, nullptr);
    ex.dispatch(p, d, {}, nullptr);  // it is memory like any other
    d[1].output.row_stride = 16;
    EXPECT_THAT(message_of<config_error>([&] { ex.dispatch(p, d, into, nullptr); }), HasSubstr("output of rank 1"));
    d[1].output = d[0].output;
    EXPECT_THAT(message_of<config_error>([&] { ex.dispatch(p, d, into, nullptr); }), HasSubstr("output of rank 1"));
    config.window_rows = 1;
    exchange small(comm, config);
    const plan q = small.make_plan(routing, {}, nullptr);
    for (int r = 0; r < 2; ++r) {
        d[r].output = small.window_output(r, 0);
    }
    EXPECT_THAT(message_of<config_error>([&] { small.dispatch(q, d, into, nullptr); }), HasSubstr("has 1 rows"));
}

TEST_F(front, flat_refuses_what_one_row_for_several_experts_cannot_have) {
    exchange ex(comm, config);
    plan_options options;
    options.layout = layout::flat;
    const plan p = ex.make_plan(routing, options, nullptr);
    std::vector<float> weights(16, 1.0F);
    auto c = combine_for(p);
    EXPECT_THAT(message_of<config_error>([&] {
                    ex.combine(p, c, {reduction::per_row, 0}, nullptr);
                }),
                HasSubstr("per_row on flat"));
    c[1].weights = weights.data();
    EXPECT_THAT(message_of<config_error>([&] { ex.combine(p, c, {}, nullptr); }),
                HasSubstr("combine weights of rank 1 on flat"));
    auto d = dispatch_for(p);
    dispatch_options o;
    o.weigh_input = true;
    EXPECT_THAT(message_of<config_error>([&] { ex.dispatch(p, d, o, nullptr); }), HasSubstr("weigh_input on flat"));
    std::vector<weight_gradient_args> g(2);
    EXPECT_THAT(message_of<config_error>([&] { ex.weight_gradients(p, g, nullptr); }), HasSubstr("on flat"));
}

TEST_F(front, weights_that_dispatch_did_not_have_cannot_be_promised_again) {
    exchange ex(comm, config);
    const plan p = ex.make_plan(routing, {}, nullptr);
    std::vector<float> weights(16, 1.0F);
    auto d = dispatch_for(p);
    auto c = combine_for(p);
    combine_options same;
    same.weights_dispatched = true;
    for (auto& a : c) {
        a.weights = weights.data();
    }
    const auto refused = [&] { return message_of<config_error>([&] { ex.combine(p, c, same, nullptr); }); };
    EXPECT_THAT(refused(), HasSubstr("the plan's last dispatch was given none"));
    d[0].weights = weights.data();
    ex.dispatch(p, d, {}, nullptr);
    EXPECT_THAT(refused(), HasSubstr("the plan's last dispatch was given none")) << "rank 1 had none";
    d[1].weights = weights.data();
    ex.dispatch(p, d, {}, nullptr);
    ex.combine(p, c, same, nullptr);
    c[1].weights = nullptr;
    EXPECT_THAT(refused(), HasSubstr("weights of rank 1 are null"));
}

TEST_F(front, plans_belong_to_their_exchange_and_outlive_no_confusion) {
    exchange ex(comm, config);
    plan p;
    {
        const exchange other(comm, config);
        p = const_cast<exchange&>(other).make_plan(routing, {}, nullptr);
    }
    const exchange third(comm, config);
    const auto d = dispatch_for(p);
    EXPECT_THAT(message_of<config_error>([&] { ex.dispatch(p, d, {}, nullptr); }),
                HasSubstr("a plan of another exchange"));
    EXPECT_THAT(message_of<config_error>([&] { const_cast<exchange&>(third).dispatch(p, d, {}, nullptr); }),
                HasSubstr("a plan of another exchange"));
    EXPECT_THAT(message_of<config_error>([&] { ex.dispatch(plan(), d, {}, nullptr); }), HasSubstr("empty plan"));
    EXPECT_THAT(message_of<config_error>([&] { static_cast<void>(plan().view(0)); }), HasSubstr("empty plan"));
    EXPECT_THAT(message_of<config_error>([&] { static_cast<void>(p.view(2)); }), HasSubstr("driven rank 2"));
}

TEST_F(front, halves_come_in_order) {
    exchange ex(comm, config);
    const plan p = ex.make_plan(routing, {}, nullptr);
    const plan q = ex.make_plan(routing, {}, nullptr);
    const auto d = dispatch_for(p);
    const auto c = combine_for(p);
    EXPECT_THAT(message_of<config_error>([&] { ex.dispatch_receive(p, d, {}, nullptr); }),
                HasSubstr("dispatch_receive on lane 0 without its dispatch_send"));
    ex.dispatch_send(p, d, {}, nullptr);
    EXPECT_THAT(message_of<config_error>([&] { ex.combine(p, c, {}, nullptr); }),
                HasSubstr("between dispatch_send and dispatch_receive"));
    EXPECT_THAT(message_of<config_error>([&] { ex.combine_receive(p, c, {}, nullptr); }), HasSubstr("without its"));
    EXPECT_THAT(message_of<config_error>([&] { ex.dispatch_receive(q, d, {}, nullptr); }), HasSubstr("another plan"));
    ex.dispatch_receive(p, d, {}, nullptr);
    ex.combine(p, c, {}, nullptr);
}

TEST_F(front, moved_from_objects_say_so) {
    exchange ex(comm, config);
    exchange taken(std::move(ex));
    EXPECT_THAT(message_of<config_error>([&] { ex.prepare(); }), HasSubstr("exchange was moved from"));  // NOLINT
    communicator other(std::move(comm));
    EXPECT_THAT(message_of<config_error>([&] { exchange(comm, config); }), HasSubstr("communicator was moved from"));
    EXPECT_EQ(comm.num_ranks(), 0);
}

}  // namespace
}  // namespace epjit
