// SPDX-License-Identifier: Apache-2.0
// How many blocks a whole call of lsa may have, and how many of them send.
#include "tests/nccl/lsa_ranks.hpp"

namespace epjit {
namespace {

using namespace tests;

/// Blocks of a launch, and those of them that send.
struct shares {
    unsigned blocks;
    int sending;
};

template <class Args>
std::vector<shares> shares_of(const seen_launches& seen, const char* kernel) {
    std::vector<shares> all;
    const std::vector<unsigned> blocks = seen.blocks_of(kernel);
    const auto args = seen.of<Args>(kernel);
    for (std::size_t i = 0; i < args.size(); ++i) {
        int sending = args[i].senders;
        if constexpr (requires { args[i].weight_blocks; }) {
            sending += args[i].weight_blocks;
        }
        all.push_back({blocks.at(i), sending});
    }
    return all;
}

/// A dispatch and a combine of every rank under the budget.
void expect_shares(std::int32_t num_sms, std::int32_t expansion_sms, unsigned most_blocks, int most_sending) {
    exchange_config config = rank_of_three::config_of(max_tokens);
    config.num_sms = num_sms;
    config.expansion_sms = expansion_sms;
    const seen_launches seen;
    with_ranks([](rank_of_three& r) { r.dispatch_and_combine(r.p); },
               [&] {
                   for (const auto& all : {shares_of<kernels::dispatch_args<8>>(seen, "dispatch_kernel"),
                                           shares_of<kernels::combine_args<8>>(seen, "combine_kernel")}) {
                       ASSERT_EQ(all.size(), static_cast<std::size_t>(num_ranks));
                       for (const shares& s : all) {
                           EXPECT_LE(s.blocks, most_blocks);
                           EXPECT_LE(s.sending, most_sending);
                           EXPECT_GE(s.sending, 1);
                           EXPECT_GT(static_cast<int>(s.blocks), s.sending) << "somebody works on what arrives";
                       }
                   }
               },
               nullptr, config);
}

TEST(sm_budget, bounds_all_blocks_of_a_call) {
    expect_shares(3, 0, 3, 2);
}

TEST(sm_budget, of_expansion_leaves_num_sms_to_those_that_send) {
    expect_shares(2, 4, 4, 2);
}

TEST(sm_budget, two_lanes_leave_room_for_each_other) {
    exchange_config config = rank_of_three::config_of_few();
    for (const int lanes : {1, 2}) {
        config.lanes = lanes;
        const seen_launches seen;
        with_ranks(
            [](rank_of_three& r) {
                r.dispatch_and_combine(r.p);
                r.bring_at_most(4);
                const plan small = r.ex.make_plan({&r.args, 1}, r.options, nullptr);
                r.dispatch_and_combine(small);
            },
            [&] {
                // The fake GPU has four SMs of two blocks each.
                for (const char* kernel : {"dispatch_kernel", "combine_kernel"}) {
                    for (const unsigned mode : seen.modes_of(kernel)) {
                        EXPECT_EQ(mode, lanes == 1 ? 2U : 0U) << kernel << ", " << lanes;
                    }
                    for (const unsigned blocks : seen.blocks_of(kernel)) {
                        EXPECT_LE(blocks, lanes == 1 ? 8U + 16U : 6U) << kernel << ", " << lanes;
                    }
                }
                for (const char* kernel : {"ll_dispatch_kernel", "ll_combine_kernel"}) {
                    EXPECT_FALSE(seen.blocks_of(kernel).empty());
                    for (const unsigned blocks : seen.blocks_of(kernel)) {
                        EXPECT_LE(blocks, lanes == 1 ? 32U : 4U) << kernel << ", " << lanes;
                    }
                }
            },
            nullptr, config);
    }
}

TEST(sm_budget, few_blocks_send_what_waits_for_nothing) {
    exchange_config config = rank_of_three::config_of_few();
    config.ll_max_tokens_per_rank = max_tokens;
    const seen_launches seen;
    with_ranks(
        [](rank_of_three& r) {
            const dispatch_args d = r.dispatch();
            for (const bool follows : {false, true}) {
                dispatch_options options;
                options.follows_plan = follows;
                r.p = r.ex.make_plan({&r.args, 1}, r.options, nullptr);
                r.ex.dispatch(r.p, {&d, 1}, options, nullptr);
            }
            const combine_args c = r.combine();
            r.ex.combine(r.p, {&c, 1}, {}, nullptr);
        },
        [&] {
            // Rank 0 has ten tokens, a part each, and up to twenty lines. The fake GPU has four SMs.
            const auto senders = [](const auto& calls) {
                std::vector<int> all;
                for (const auto& a : calls) {
                    all.push_back(a.senders);
                }
                return all;
            };
            EXPECT_THAT(senders(seen.of_rank_0<kernels::ll_dispatch_args>("ll_dispatch_kernel")),
                        testing::ElementsAre(4, 10))
                << "one an SM, or beside its plan one a part";
            EXPECT_THAT(senders(seen.of_rank_0<kernels::ll_combine_args>("ll_combine_kernel")), testing::ElementsAre(6))
                << "three to two SMs";
        },
        nullptr, config);
}

TEST(sm_budget, of_expansion_without_one_of_sending_is_refused) {
    const variable compiler("EPJIT_NVRTC_LIBRARY", EPJIT_FAKE_NVRTC_A);
    const outcomes errors = run_ranks("2.30.7", num_ranks, [&](int, communicator& comm, runtime&) {
        exchange_config config = rank_of_three::config_of(max_tokens);
        config.expansion_sms = 4;
        exchange ex(comm, config);
    });
    EXPECT_THAT(errors, Each(testing::HasSubstr("expansion_sms is 4, num_sms 0")));
}

}  // namespace
}  // namespace epjit
