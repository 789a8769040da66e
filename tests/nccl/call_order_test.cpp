// SPDX-License-Identifier: Apache-2.0
// Which calls of lsa wait for calls on other streams, against a stub NCCL and a fake driver.
#include "host/driver/device.hpp"
#include "host/exchange/exchange_state.hpp"
#include "tests/nccl/lsa_ranks.hpp"

#include <functional>
#include <optional>
#include <vector>

namespace epjit {
namespace {

using namespace tests;
using host::gpu_stream;
using host::stream_capture;

/// One rank with two exchanges of two lanes on one communicator, and two streams.
class rank_of_two_exchanges {
   public:
    rank_of_two_exchanges(int rank, communicator& communicator)
        : comm(communicator), first(rank, comm, config()), a(comm.state().context), b(comm.state().context) {
        second.emplace(rank, comm, config());
        first.ex.prepare();
        second->ex.prepare();
    }
    static exchange_config config() {
        exchange_config c = rank_of_three::config_of(max_tokens);
        c.lanes = 2;
        return c;
    }
    /// How many times a stream of this rank or of another is told to wait, for each rank, while all do `work`.
    double waits(const std::function<void()>& work) {
        const auto now = [&] {
            nccl_of(comm).barrier_host();
            const long waits = fake<long()>("fake_cuda_stream_waits")();
            nccl_of(comm).barrier_host();
            return waits;
        };
        const long before = now();
        work();
        return static_cast<double>(now() - before) / num_ranks;
    }

    communicator& comm;
    rank_of_three first;
    std::optional<rank_of_three> second;
    gpu_stream a, b;
};

void dispatch(rank_of_three& r, const plan& p, const gpu_stream& stream, std::int32_t lane = 0) {
    const dispatch_args d = r.dispatch();
    dispatch_options options;
    options.lane = lane;
    r.ex.dispatch(p, {&d, 1}, options, stream.get());
}

plan plan_on(rank_of_three& r, const gpu_stream& stream, std::int32_t lane = 0, plan reuse = {}) {
    plan_options options = r.options;
    options.lane = lane;
    return r.ex.make_plan({&r.args, 1}, options, stream.get(), std::move(reuse));
}

/// The fixtures' plans were made on the default stream: from here on each exchange has been used on `a` alone.
void settle(rank_of_two_exchanges& r) {
    r.first.p = plan_on(r.first, r.a);
    r.second->p = plan_on(*r.second, r.a);
}

void with_two_exchanges(const std::function<void(rank_of_two_exchanges&)>& calls) {
    const variable compiler("EPJIT_NVRTC_LIBRARY", EPJIT_FAKE_NVRTC_A), tuning("EPJIT_PROFILE", nullptr);
    const outcomes errors = run_ranks("2.30.7", num_ranks, [&](int rank, communicator& comm, runtime&) {
        rank_of_two_exchanges r(rank, comm);
        settle(r);
        calls(r);
    });
    EXPECT_THAT(errors, Each(""));
}

TEST(calls_of_two_exchanges, on_one_stream_wait_for_nothing) {
    with_two_exchanges([](rank_of_two_exchanges& r) {
        EXPECT_EQ(r.waits([&] {
            for (int i = 0; i < 3; ++i) {
                dispatch(r.first, r.first.p, r.a);
                dispatch(*r.second, r.second->p, r.a);
            }
        }),
                  0);
    });
}

TEST(calls_of_two_exchanges, on_two_streams_wait_once_for_each_others_last) {
    with_two_exchanges([](rank_of_two_exchanges& r) {
        const auto calls_of_the_second = [&] {
            dispatch(*r.second, r.second->p, r.b);
            dispatch(*r.second, r.second->p, r.b);
        };
        // Its lane has come from another stream too.
        EXPECT_EQ(r.waits(calls_of_the_second), 2);
        EXPECT_EQ(r.waits(calls_of_the_second), 0) << "the first has done nothing since";
        for (int i = 0; i < 3; ++i) {
            EXPECT_EQ(r.waits([&] { dispatch(r.first, r.first.p, r.a); }), 1);
            EXPECT_EQ(r.waits(calls_of_the_second), 1);
        }
    });
}

TEST(calls_of_two_exchanges, wait_for_both_lanes_of_the_other) {
    with_two_exchanges([](rank_of_two_exchanges& r) {
        const gpu_stream c(r.comm.state().context);
        const plan lane_1 = plan_on(r.first, r.b, 1);
        r.second->p = plan_on(*r.second, c, 0, std::move(r.second->p));
        EXPECT_EQ(r.waits([&] {
            dispatch(r.first, r.first.p, r.a);
            dispatch(r.first, lane_1, r.b, 1);
        }),
                  2)
            << "each lane for the second exchange, and not for the other lane";
        EXPECT_EQ(r.waits([&] { dispatch(*r.second, r.second->p, c); }), 2);
    });
}

TEST(calls_of_two_exchanges, wait_for_nothing_across_the_border_of_a_capture) {
    with_two_exchanges([](rank_of_two_exchanges& r) {
        // The fake driver knows one capture at a time.
        for (int turn = 0; turn < num_ranks; ++turn) {
            EXPECT_EQ(r.waits([&] {
                if (r.comm.first_driven() != turn) {
                    return;
                }
                stream_capture capture(r.comm.state().context, r.b.get());
                dispatch(*r.second, r.second->p, r.b);
                static_cast<void>(capture.end());
            }),
                      0);
        }
    });
}

TEST(calls_of_two_exchanges, forget_one_that_is_gone) {
    with_two_exchanges([](rank_of_two_exchanges& r) {
        r.second.reset();
        EXPECT_EQ(r.waits([&] { dispatch(r.first, r.first.p, r.a); }), 0);
        const plan other = plan_on(r.first, r.b, 1);
        EXPECT_EQ(r.waits([&] { dispatch(r.first, other, r.b, 1); }), 0);
    });
}

}  // namespace
}  // namespace epjit
