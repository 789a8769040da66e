// SPDX-License-Identifier: Apache-2.0
// Which weights of few tokens travel twice over lsa, against a stub NCCL and a fake driver.
#include "tests/nccl/lsa_ranks.hpp"

#include <vector>

namespace epjit {
namespace {

using namespace tests;
using testing::ElementsAre;

TEST(weights_of_few_tokens, travel_with_the_rows_and_again_only_where_nothing_is_promised) {
    const seen_launches seen;
    with_ranks(
        [](rank_of_three& r) {
            const std::vector<float> weights(max_tokens * topk, 1.0F);
            r.bring_at_most(4);
            const plan p = r.ex.make_plan({&r.args, 1}, r.options, nullptr);
            dispatch_args d = r.dispatch();
            combine_args sum = r.combine();
            sum.weights = weights.data();
            const auto combine = [&](bool same) {
                combine_options o;
                o.weights_dispatched = same;
                r.ex.combine(p, {&sum, 1}, o, nullptr);
            };
            r.ex.dispatch(p, {&d, 1}, {}, nullptr);
            combine(false);
            d.weights = weights.data();
            r.ex.dispatch(p, {&d, 1}, {}, nullptr);
            combine(false);
            combine(true);
            r.ex.dispatch_send(p, {&d, 1}, {}, nullptr);  // by steps: rows are no packets
            r.ex.dispatch_receive(p, {&d, 1}, {}, nullptr);
            combine(true);
        },
        [&] {
            std::vector<bool> kept;
            std::vector<bool> blocks;
            for (const auto& a : seen.of_rank_0<kernels::ll_combine_args>("ll_combine_kernel")) {
                kept.push_back(a.kept.weights != nullptr);
                blocks.push_back(a.weight_blocks != 0);
            }
            EXPECT_THAT(kept, ElementsAre(false, false, true, false));
            EXPECT_THAT(blocks, ElementsAre(true, true, false, true));
            std::vector<bool> keeps;
            for (const auto& a : seen.of_rank_0<kernels::ll_dispatch_args>("ll_dispatch_kernel")) {
                keeps.push_back(a.kept.weights != nullptr);
            }
            EXPECT_THAT(keeps, ElementsAre(false, true));
        },
        nullptr, rank_of_three::config_of_few());
}

}  // namespace
}  // namespace epjit
