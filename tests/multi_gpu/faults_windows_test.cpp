// SPDX-License-Identifier: Apache-2.0
// Dispatches straight into the peers' windows that contradict each other, or have little room.
#include "tests/multi_gpu/faults.hpp"

namespace epjit::tests {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr std::int64_t patience_ms = first_fault_limit_ms + fault_grace_ms;

using faults_windows = faults;

TEST_P(faults_windows, one_rank_that_dispatches_into_other_memory_is_a_named_error) {
    scripted_ranks ranks = two_ranks();
    begin(ranks, window_exchange, window_layer);
    ranks.tell(0, "layer 1 seed=3 window=1");
    ranks.tell(1, "layer 1 seed=3");
    EXPECT_TRUE(ranks.hear(0, 60'000).ok);
    EXPECT_TRUE(ranks.hear(1, 60'000).ok);
    ranks.all("plan 1");
    ranks.tell(0, "dispatch 1");
    ranks.tell(1, "dispatch 1");
    std::string told;
    for (int rank = 0; rank < 2; ++rank) {
        const answer a = ranks.failure_after(ranks.hear(rank, patience_ms), rank,
                                             {"sync 1", "plan 1", "sync 1", "plan 1"}, patience_ms);
        EXPECT_FALSE(a.ok) << "rank " << rank << " noticed nothing";
        EXPECT_THAT(a.kind, AnyOf("config", "timeout")) << a.text;
        told += a.text;
    }
    EXPECT_THAT(told, AllOf(HasSubstr("dispatch (into windows)"), HasSubstr("called")));
    expect_usable(ranks, 0);
    expect_usable(ranks, 1);
}

TEST_P(faults_windows, two_lanes_come_in_another_order_on_each_rank) {
    scripted_ranks ranks = two_ranks();
    begin(ranks, fmt::format("{} lanes=2", window_exchange), window_layer);
    ranks.all("layer a lane=0 seed=11 window=1");
    ranks.all("layer b lane=1 seed=12 window=1");
    for (int i = 0; i < 20; ++i) {
        ranks.all("plan a");
        ranks.all("plan b");
        for (const char* operation : {"dispatch", "combine"}) {
            for (const bool second : {false, true}) {
                for (int rank = 0; rank < 2; ++rank) {
                    ranks.tell(rank, std::string(operation) + ((rank == 0) != second ? " a" : " b"));
                }
                for (int rank = 0; rank < 2; ++rank) {
                    const answer a = ranks.hear(rank, patience_ms);
                    EXPECT_TRUE(a.ok) << a.text;
                }
            }
            if (std::string_view(operation) == "dispatch") {
                ranks.all("experts a");
                ranks.all("experts b");
            }
        }
        ranks.all("check a");
        ranks.all("check b");
    }
}

TEST_P(faults_windows, eight_free_sms_are_enough) {
    scripted_ranks ranks = two_ranks();
    begin(ranks, "max_tokens=256 window_rows=4096", "tokens=256 window=1");
    ranks.all("occupy free_sms=8 ms=1500", 120'000);
    for (int i = 0; i < 3; ++i) {
        ranks.all("whole 0");
        ranks.all("check 0", 60'000);
    }
    ranks.all("occupied");
}

INSTANTIATE_TEST_SUITE_P(each, faults_windows, ::testing::Values(exchange_kind::lsa), label_of);

}  // namespace
}  // namespace epjit::tests
