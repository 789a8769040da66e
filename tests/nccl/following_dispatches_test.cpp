// SPDX-License-Identifier: Apache-2.0
// Which dispatches of lsa may begin before their plan has ended, against a stub NCCL and a fake driver.
#include "host/driver/device.hpp"
#include "host/exchange/exchange_state.hpp"
#include "tests/nccl/lsa_ranks.hpp"

#include <fmt/format.h>

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace epjit {
namespace {

using namespace tests;
using testing::ElementsAre;

constexpr dispatch_options promised{.follows_plan = true};

/// The calls of one rank on a stream.
class caller {
   public:
    explicit caller(rank_of_three& r, plan_source source = plan_source::automatic, std::int32_t bound = 0,
                    stream_t stream = nullptr)
        : r_(r), stream_(stream) {
        r.options.source = source;
        r.bring_at_most(bound);
    }
    [[nodiscard]] plan make_plan(plan reuse = {}) const {
        return r_.ex.make_plan({&r_.args, 1}, r_.options, stream_, std::move(reuse));
    }
    void dispatch(const plan& p, const dispatch_options& options) const {
        const dispatch_args d = r_.dispatch();
        r_.ex.dispatch(p, {&d, 1}, options, stream_);
    }
    void combine(const plan& p) const {
        const combine_args c = r_.combine();
        r_.ex.combine(p, {&c, 1}, {}, stream_);
    }

   private:
    rank_of_three& r_;
    stream_t stream_;
};

/// The flag of each launch of rank 0, in order.
template <class Args>
std::vector<int> flags_of(const seen_launches& seen, const char* kernel) {
    std::vector<int> found;
    for (const Args& a : seen.of_rank_0<Args>(kernel)) {
        found.push_back(a.follows);
    }
    return found;
}

std::vector<int> flags_of_dispatches(const std::function<void(rank_of_three&)>& calls,
                                     std::int32_t staged = max_tokens) {
    const seen_launches seen;
    std::vector<int> found;
    with_ranks(
        calls, [&] { found = flags_of<kernels::dispatch_args<8>>(seen, "dispatch_kernel"); }, nullptr,
        rank_of_three::config_of(staged));
    return found;
}

TEST(following_dispatches, follow_the_making_of_their_plan_and_nothing_else) {
    EXPECT_THAT(flags_of_dispatches([](rank_of_three& r) {
                    const caller c(r);
                    const plan p = c.make_plan();
                    c.dispatch(p, promised);  // follows
                    c.dispatch(p, promised);  // another dispatch came between
                    c.combine(p);
                    c.dispatch(p, promised);  // a combine
                    const plan other = c.make_plan();
                    c.dispatch(p, promised);      // another plan
                    c.dispatch(other, promised);  // and by now a dispatch
                }),
                ElementsAre(1, 0, 0, 0, 0));
}

TEST(following_dispatches, need_the_promise) {
    EXPECT_THAT(flags_of_dispatches([](rank_of_three& r) {
                    const caller c(r);
                    c.dispatch(c.make_plan(), {});
                }),
                ElementsAre(0));
}

TEST(following_dispatches, are_those_of_the_first_window_of_tokens) {
    EXPECT_THAT(flags_of_dispatches(
                    [](rank_of_three& r) {
                        const caller c(r);
                        c.dispatch(c.make_plan(), promised);
                    },
                    4),
                ElementsAre(1, 0, 0));
}

TEST(following_dispatches, are_in_the_graph_of_their_plan) {
    static std::mutex turn;  // the fake captures one stream at a time
    EXPECT_THAT(flags_of_dispatches([](rank_of_three& r) {
                    const std::lock_guard lock(turn);
                    const host::shared_context context = r.ex.state().comm->context;
                    const host::gpu_stream stream(context);
                    const caller c(r, plan_source::automatic, 0, stream.get());
                    plan p = c.make_plan();
                    const auto replayed = [&](const std::function<void()>& calls) {
                        host::stream_capture capture(context, stream.get());
                        calls();
                        const host::gpu_graph graph = capture.end();
                        graph.launch(stream.get());
                        host::synchronize(context, stream.get());
                    };
                    replayed([&] { c.dispatch(p, promised); });  // of a plan that is not replayed
                    replayed([&] {
                        p = c.make_plan(std::move(p));
                        c.dispatch(p, promised);  // follows
                    });
                    replayed([&] { p = c.make_plan(std::move(p)); });
                    replayed([&] { c.dispatch(p, promised); });  // of a plan in another graph
                }),
                ElementsAre(0, 1, 0));
}

TEST(following_dispatches, of_many_tokens_wait_for_a_plan_that_tells_no_positions) {
    EXPECT_THAT(flags_of_dispatches([](rank_of_three& r) {
                    const caller c(r, plan_source::gathered);
                    c.dispatch(c.make_plan(), promised);
                }),
                ElementsAre(0));
}

TEST(following_dispatches, of_few_tokens_follow_either_kind_of_plan) {
    const seen_launches seen;
    with_ranks(
        [](rank_of_three& r) {
            for (const plan_source source : {plan_source::gathered, plan_source::counts}) {
                const caller c(r, source, 4);
                const plan p = c.make_plan();
                c.dispatch(p, promised);
                c.dispatch(p, promised);
            }
        },
        [&] {
            EXPECT_THAT(flags_of<kernels::ll_dispatch_args>(seen, "ll_dispatch_kernel"), ElementsAre(1, 0, 0, 0))
                << "a plan of counts tells no places";
            std::vector<bool> told;
            for (const auto& a : seen.of_rank_0<kernels::ll_dispatch_args>("ll_dispatch_kernel")) {
                told.push_back(a.early.tokens != 0);
            }
            EXPECT_THAT(told, ElementsAre(true, true, false, false));
            for (const auto& a : seen.of<kernels::gathered_plan_args>("gathered_plan_kernel")) {
                EXPECT_GE(a.early.tokens, a.bound);
            }
        },
        nullptr, rank_of_three::config_of_few());
}

TEST(following_dispatches, do_as_the_knob_says) {
    for (const int knob : {1, 2}) {
        const profile_file profile(
            fmt::format(R"({{"epjit_profile": 1, "entries": [{{"knobs": {{"dispatch_follows": {}}}}}]}})", knob));
        const seen_launches seen;
        with_ranks(
            [](rank_of_three& r) {
                const caller c(r);
                c.dispatch(c.make_plan(), promised);
            },
            [&] { EXPECT_THAT(flags_of<kernels::dispatch_args<8>>(seen, "dispatch_kernel"), ElementsAre(knob - 1)); },
            profile.path(), rank_of_three::config_of(max_tokens));
    }
}

}  // namespace
}  // namespace epjit
