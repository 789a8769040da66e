// SPDX-License-Identifier: Apache-2.0
// What exchanges hand to NCCL: where it is written, where it arrives, how many messages and bytes it takes.
#include "host/ranks/transport.hpp"

#include "epjit/exchange.hpp"
#include "host/driver/device.hpp"
#include "host/exchange/exchange_state.hpp"
#include "host/ranks/backend.hpp"
#include "tests/nccl/support.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <thread>
#include <vector>

namespace epjit::tests {
namespace {

using host::travel_area;
using testing::AnyOf;
using testing::Each;

constexpr const char* version = "2.30.7";
constexpr std::array dispatched{travel_area::rows, travel_area::weights, travel_area::scales};

host::resolved_config config_of(exchange_kind kind, int ranks, int rank) {
    host::resolved_config c;
    c.config.kind = kind;
    c.config.hidden = 200;
    c.config.num_experts = 8;
    c.config.topk = 2;
    c.config.max_tokens_per_rank = 5;
    c.config.dispatch_type = dtype::fp8_e4m3;
    c.config.scales = scale_type::f32;
    c.config.backward = true;
    c.num_ranks = ranks;
    c.num_driven = 1;
    c.first_driven = rank;
    c.placement = host::resolve(placement{}, 8, ranks);
    c.rank_hosts.assign(ranks, 0);
    return c;
}

/// The byte at `at` of what `from` sends to `to`.
std::uint8_t byte_of(int from, int to, travel_area area, std::int64_t at) {
    return static_cast<std::uint8_t>(1 + (from * 7 + to * 31 + static_cast<int>(area) * 61 + at * 13) % 251);
}

/// Writes what goes out, and checks what came in; `lines` [from][to] of each, or all where the host does not know.
void move_areas(host::transport& way, const host::travel_shape& shape, int me, std::span<const travel_area> areas,
                const std::vector<std::vector<std::int32_t>>& lines, bool exact) {
    const int ranks = static_cast<int>(lines.size());
    std::vector<std::int32_t> received;
    const auto bytes_of = [&](travel_area area, int from, int to) {
        return exact ? lines[from][to] * shape.line_bytes[static_cast<std::size_t>(area)] : shape.region(area);
    };
    for (int r = 0; r < ranks; ++r) {
        received.push_back(lines[r][me]);
        for (const travel_area area : areas) {
            for (std::int64_t i = 0; r != me && i < shape.region(area); ++i) {
                way.out(area, 0, r)[i] = byte_of(me, r, area, i);
                way.in(area, 0, r)[i] = 0;
            }
        }
    }
    const host::line_traffic traffic{exact ? lines[me].data() : nullptr, exact ? received.data() : nullptr};
    way.post(0, templates::lane_op::dispatch, areas, traffic, false, nullptr);
    for (int r = 0; r < ranks; ++r) {
        for (const travel_area area : areas) {
            for (std::int64_t i = 0; r != me && i < bytes_of(area, r, me); ++i) {
                ASSERT_EQ(way.in(area, 0, r)[i], byte_of(r, me, area, i))
                    << "area " << static_cast<int>(area) << " from " << r << " to " << me << ", byte " << i;
            }
        }
    }
}

TEST(sendrecv_transport, regions_arrive_where_they_are_read_and_whole_ones_are_one_message_a_rank) {
    constexpr int ranks = 3;
    const std::vector<std::vector<std::int32_t>> lines{{1, 2, 0}, {5, 3, 4}, {0, 0, 1}};
    const outcomes errors = run_ranks(version, ranks, [&](int rank, communicator& comm, runtime&) {
        const host::resolved_config config = config_of(exchange_kind::sendrecv, ranks, rank);
        const host::travel_shape shape = host::shape_travel(config);
        const auto way = host::make_sendrecv_transport(comm.state(), config, shape);
        const auto sends_of = [&](std::span<const travel_area> areas, bool exact) {
            nccl_of(comm).barrier_host();
            const int before = stub_get(version, "sends");
            nccl_of(comm).barrier_host();
            move_areas(*way, shape, rank, areas, lines, exact);
            nccl_of(comm).barrier_host();
            const int after = stub_get(version, "sends");
            nccl_of(comm).barrier_host();
            return after - before;
        };
        for (const std::size_t count : {2, 3}) {
            EXPECT_EQ(sends_of(std::span(dispatched).first(count), false), ranks * (ranks - 1));
        }
        EXPECT_EQ(sends_of(dispatched, true), 3 * 3) << "three pairs have lines";
        for (const travel_area area : {travel_area::combine_weights, travel_area::partials, travel_area::scalars}) {
            EXPECT_EQ(sends_of(std::span(&area, 1), false), ranks * (ranks - 1));
        }
    });
    EXPECT_THAT(errors, Each(""));
}

/// A small layer of one rank on memory that nothing reads for its values: the fake GPU's kernels do nothing.
class empty_layer {
   public:
    static constexpr int tokens = 16, rows = 64, hidden = 64;

    empty_layer(communicator& comm, exchange_kind kind, int ll_tokens = 0)
        : memory_(comm.state().context, 1 << 20), exchange_(comm, config_of(kind, ll_tokens)) {
        tensor_ = {memory_.data(), dtype::bf16, rows, hidden};
        own_ = {memory_.data(), dtype::bf16, tokens, hidden};
    }
    [[nodiscard]] exchange& ex() { return exchange_; }
    void make_plan(plan_source source = plan_source::automatic) {
        plan_options options;
        options.mode = mode::fixed;
        options.source = source;
        const plan_args brought{memory_.data(), tokens, rows};
        plan_ = exchange_.make_plan({&brought, 1}, options, nullptr, std::move(plan_));
    }
    void dispatch() {
        dispatch_args args;
        args.input = own_;
        args.output = tensor_;
        exchange_.dispatch(plan_, {&args, 1}, {}, nullptr);
    }
    void combine(reduction order) {
        combine_args args;
        args.rows = tensor_;
        args.output = own_;
        exchange_.combine(plan_, {&args, 1}, {order, 0}, nullptr);
    }
    void weight_gradients() {
        weight_gradient_args args;
        args.rows = tensor_;
        args.gradient = own_;
        args.output = memory_.as<float>();
        exchange_.weight_gradients(plan_, {&args, 1}, nullptr);
    }

   private:
    static exchange_config config_of(exchange_kind kind, int ll_tokens) {
        exchange_config config;
        config.kind = kind;
        config.hidden = hidden;
        config.num_experts = 8;
        config.topk = 2;
        config.max_tokens_per_rank = tokens;
        config.ll_max_tokens_per_rank = ll_tokens;
        config.backward = true;
        return config;
    }
    host::device_buffer memory_;
    exchange exchange_;
    plan plan_;
    tensor_view tensor_, own_;
};

TEST(network, kernels_of_real_ranks_are_loaded_before_their_first_step) {
    const variable compiler("EPJIT_NVRTC_LIBRARY", EPJIT_FAKE_NVRTC_A);
    for (const exchange_kind kind :
         {exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense, exchange_kind::hybrid}) {
        for (const int ll_tokens : {0, empty_layer::tokens}) {
            const stub_switch teams(version, "team_size", kind == exchange_kind::hybrid ? 2 : 0);
            const outcomes errors = run_ranks(version, 4, [&](int, communicator& comm, runtime& rt) {
                empty_layer layer(comm, kind, ll_tokens);
                layer.ex().prepare();
                nccl_of(comm).barrier_host();
                const counters before = rt.counters();
                EXPECT_GT(before.compiles, 0U);
                nccl_of(comm).barrier_host();
                for (const plan_source source : {plan_source::automatic, plan_source::counts, plan_source::gathered}) {
                    layer.make_plan(source);
                    layer.dispatch();
                    for (const reduction order : {reduction::per_rank, reduction::per_host, reduction::per_row}) {
                        layer.combine(order);
                    }
                    layer.weight_gradients();
                }
                nccl_of(comm).barrier_host();
                EXPECT_EQ(rt.counters().compiles, before.compiles) << name(kind);
                EXPECT_EQ(rt.counters().modules_loaded, before.modules_loaded) << name(kind);
                nccl_of(comm).barrier_host();
            });
            EXPECT_THAT(errors, Each("")) << name(kind);
        }
    }
}

// NCCL takes several messages to one rank up in a loop of its kernel that an abort may leave half done: what a graph
// captures has none.
TEST(network, no_group_of_a_static_step_holds_two_messages_to_one_rank) {
    const variable compiler("EPJIT_NVRTC_LIBRARY", EPJIT_FAKE_NVRTC_A);
    for (const exchange_kind kind : {exchange_kind::sendrecv, exchange_kind::dense, exchange_kind::hybrid}) {
        const stub_switch teams(version, "team_size", kind == exchange_kind::hybrid ? 2 : 0);
        const stub_switch counted(version, "most_messages", 0);
        const outcomes errors = run_ranks(version, 4, [&](int, communicator& comm, runtime&) {
            empty_layer layer(comm, kind);
            layer.ex().prepare();
            for (const plan_source source : {plan_source::counts, plan_source::gathered}) {
                layer.make_plan(source);
                layer.dispatch();
                for (const reduction order : {reduction::per_rank, reduction::per_host, reduction::per_row}) {
                    layer.combine(order);
                }
            }
            nccl_of(comm).barrier_host();
        });
        EXPECT_THAT(errors, Each("")) << name(kind);
        EXPECT_EQ(stub_get(version, "most_messages"), 1) << name(kind);
    }
}

// Where NCCL has no windows the slower exchange is taken; each rank says so once, with the reason, however many
// exchanges it makes.
TEST(fallback, is_logged_once_with_its_reason) {
    constexpr const char* old = "2.27.3";
    log_lines log;
    runtime rt = stub_runtime(old, 20'000, &log);
    const std::array<int, 2> devices{0, 0};
    std::array<communicator, 2> comms;
    communicator::local(rt, devices, comms);
    std::array<std::array<exchange_kind, 3>, 2> made{};
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < comms.size(); ++r) {
        threads.emplace_back([&, r] {
            for (exchange_kind& kind : made[r]) {
                kind = empty_layer(comms[r], exchange_kind::automatic).ex().kind();
            }
        });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    for (const auto& kinds : made) {
        EXPECT_THAT(kinds, Each(AnyOf(exchange_kind::dense, exchange_kind::sendrecv)));
    }
    EXPECT_EQ(std::count_if(log.lines.begin(), log.lines.end(),
                            [](const std::string& line) {
                                return line.find("NCCL 2.27.3 has windows, but peer pointers") != std::string::npos;
                            }),
              2)
        << "one line a rank";
}

/// Bytes that leave the hosts in a dispatch and in a combine of a layer in static mode, over all ranks: hosts of two.
struct far_bytes {
    int dispatch = 0, combine = 0;
};

far_bytes far_bytes_of(exchange_kind kind, int ranks, host::travel_shape& shape) {
    const stub_switch teams(version, "team_size", 2);
    const variable compiler("EPJIT_NVRTC_LIBRARY", EPJIT_FAKE_NVRTC_A);
    far_bytes far;
    const outcomes errors = run_ranks(version, ranks, [&](int rank, communicator& comm, runtime&) {
        empty_layer layer(comm, kind);
        layer.ex().prepare();
        layer.make_plan();
        const auto measure = [&](int& bytes, const auto& call) {
            nccl_of(comm).barrier_host();
            const int before = stub_get(version, "far_bytes");
            nccl_of(comm).barrier_host();
            call();
            nccl_of(comm).barrier_host();
            if (rank == 0) {
                bytes = stub_get(version, "far_bytes") - before;
            }
            nccl_of(comm).barrier_host();
        };
        measure(far.dispatch, [&] { layer.dispatch(); });
        measure(far.combine, [&] { layer.combine(reduction::per_host); });
        if (rank == 0) {
            shape = host::shape_travel(layer.ex().state().config);
        }
    });
    EXPECT_THAT(errors, Each(""));
    return far;
}

TEST(network, a_row_and_a_sum_cross_once_per_host_with_hybrid_and_once_per_rank_with_sendrecv) {
    for (const int ranks : {4, 6}) {
        const int hosts = ranks / 2;
        const int far_ranks = ranks - 2;
        host::travel_shape shape;
        const auto line = [&](travel_area area) {
            return static_cast<int>(shape.line_bytes[static_cast<std::size_t>(area)]) * empty_layer::tokens;
        };
        const auto region = [&](travel_area area) { return static_cast<int>(shape.region(area)); };
        const far_bytes hybrid = far_bytes_of(exchange_kind::hybrid, ranks, shape);
        EXPECT_EQ(hybrid.dispatch,
                  ranks * ((hosts - 1) * line(travel_area::rows) + far_ranks * region(travel_area::weights)));
        EXPECT_EQ(hybrid.combine, ranks * ((hosts - 1) * line(travel_area::partials) +
                                           far_ranks * region(travel_area::combine_weights)));
        const far_bytes sendrecv = far_bytes_of(exchange_kind::sendrecv, ranks, shape);
        EXPECT_EQ(sendrecv.dispatch, ranks * far_ranks * (region(travel_area::rows) + region(travel_area::weights)));
        EXPECT_EQ(sendrecv.combine,
                  ranks * far_ranks * (region(travel_area::partials) + region(travel_area::combine_weights)));
    }
}

}  // namespace
}  // namespace epjit::tests
