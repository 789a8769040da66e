// SPDX-License-Identifier: Apache-2.0
// Ranks that contradict each other, and calls in unusual but legal orders.
#include "tests/multi_gpu/faults.hpp"

#include <algorithm>
#include <array>

namespace epjit::tests {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

using faults_calls = faults;

constexpr std::int64_t patience_ms = first_fault_limit_ms + 2 * fault_grace_ms;

TEST_P(faults_calls, different_calls_are_an_error_on_both_ranks) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    for (const char* command : {"plan 0", "dispatch 0", "sync 0", "experts 0"}) {
        ranks.all(command);
    }
    // Rank 0 goes on to combine, rank 1 dispatches again.
    ranks.tell(0, "combine 0");
    ranks.tell(1, "dispatch 0");
    std::array<answer, 2> answers;
    for (int rank = 0; rank < 2; ++rank) {
        answer& a = answers[static_cast<std::size_t>(rank)];
        a = ranks.hear(rank, patience_ms);
    }
    for (int rank = 0; rank < 2; ++rank) {
        answer& a = answers[static_cast<std::size_t>(rank)];
        a = ranks.failure_after(a, rank, {"sync 0", "plan 0", "sync 0", "plan 0"}, patience_ms);
        EXPECT_FALSE(a.ok) << "rank " << rank << " noticed nothing";
        EXPECT_THAT(a.kind, AnyOf("config", "timeout", "nccl")) << a.text;
    }
    if (stores()) {
        EXPECT_THAT(answers[0].text + answers[1].text, AllOf(HasSubstr("combine"), HasSubstr("dispatch")));
    }
    expect_usable(ranks, 0);
    expect_usable(ranks, 1);
}

TEST_P(faults_calls, different_configs_are_named_on_both_ranks) {
    scripted_ranks ranks = two_ranks();
    ranks.all("connect", 120'000);
    const std::pair<const char*, const char*> differences[] = {
        {"hidden", "hidden"}, {"max_tokens", "max_tokens_per_rank"}, {"lanes", "lanes"}, {"experts", "num_experts"}};
    for (const auto& [option, field] : differences) {
        ranks.tell(0, exchange_line("0", fmt::format("{}={}", option, std::string_view(option) == "lanes" ? 1 : 128)));
        ranks.tell(1, exchange_line("0", fmt::format("{}={}", option, std::string_view(option) == "lanes" ? 2 : 64)));
        for (int rank = 0; rank < 2; ++rank) {
            const answer a = ranks.hear(rank, 120'000);
            EXPECT_EQ(a.kind, "config") << "rank " << rank << ", " << option << ": " << a.text;
            EXPECT_THAT(a.text, HasSubstr(field)) << "rank " << rank;
        }
    }
    ranks.all(exchange_line("0"), 120'000);  // and nothing is left of it
    ranks.all("layer 0");
    ranks.all("whole 0");
    ranks.all("check 0");
}

TEST_P(faults_calls, different_token_bounds_are_an_error_on_both_ranks) {
    scripted_ranks ranks = two_ranks();
    begin(ranks, "max_tokens=64", "tokens=16");
    ranks.tell(0, "layer 1 tokens=16 seed=3 token_bound=16");
    ranks.tell(1, "layer 1 tokens=16 seed=3 token_bound=64");
    EXPECT_TRUE(ranks.hear(0, 60'000).ok);
    EXPECT_TRUE(ranks.hear(1, 60'000).ok);
    ranks.tell(0, "whole 1");
    ranks.tell(1, "whole 1");
    std::array<answer, 2> answers{ranks.hear(0, patience_ms), ranks.hear(1, patience_ms)};
    for (int rank = 0; rank < 2; ++rank) {
        answer& a = answers[static_cast<std::size_t>(rank)];
        a = ranks.failure_after(a, rank, {"sync 1", "plan 1", "sync 1", "plan 1"}, patience_ms);
        EXPECT_FALSE(a.ok) << "rank " << rank << " noticed nothing";
        EXPECT_THAT(a.kind, AnyOf("config", "timeout", "nccl")) << a.text;
    }
    expect_usable(ranks, 0);
}

TEST_P(faults_calls, more_tokens_than_allowed_on_one_rank_are_an_error_on_every_rank) {
    for (const char* mode : {"exact", "static"}) {
        scripted_ranks ranks = two_ranks();
        begin(ranks);
        ranks.all(fmt::format("layer 1 mode={} more_tokens_on_rank=1 more=100", mode));
        std::vector<answer> answers = ranks.ask_all("plan 1", patience_ms);
        for (int rank = 0; rank < 2; ++rank) {
            answer& a = answers[static_cast<std::size_t>(rank)];
            a = ranks.failure_after(a, rank, {"sync 1", "plan 1", "sync 1", "plan 1"}, patience_ms);
            EXPECT_EQ(a.kind, "config") << mode << ", rank " << rank << ": " << a.text;
            EXPECT_THAT(a.text, AllOf(HasSubstr("163 tokens"), HasSubstr("64"))) << "rank " << rank;
        }
        expect_usable(ranks, 0);
    }
}

TEST_P(faults_calls, bad_ids_of_one_rank_are_counted_on_every_rank_and_harm_nothing) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    for (const char* mode : {"exact", "static"}) {
        ranks.all(fmt::format("layer 1 mode={} seed=5 bad_ids_of_rank=1", mode));
        ranks.all("whole 1");
        for (const answer& a : ranks.ask_all("check 1")) {
            EXPECT_TRUE(a.ok) << a.text;
            EXPECT_EQ(a.text, "bad_ids=1");
        }
    }
}

TEST_P(faults_calls, two_lanes_interleave_in_every_order) {
    scripted_ranks ranks = two_ranks();
    begin(ranks, "lanes=2");
    ranks.all("layer a lane=0 seed=11");
    ranks.all("layer b lane=1 seed=12");
    // Send halves before their receives; all six orders.
    std::array<int, 4> order{0, 0, 1, 1};
    do {
        for (const char* operation : {"dispatch", "combine"}) {
            if (std::string_view(operation) == "dispatch") {
                ranks.all("plan a");
                ranks.all("plan b");
            }
            std::array<bool, 2> sent{};
            for (const int which : order) {
                bool& done = sent[static_cast<std::size_t>(which)];
                ranks.all(fmt::format("{}_{} {}", operation, done ? "receive" : "send", which == 0 ? "a" : "b"));
                done = true;
            }
            if (std::string_view(operation) == "dispatch") {
                ranks.all("experts a");
                ranks.all("experts b");
            }
        }
        ranks.all("check a");
        ranks.all("check b");
    } while (std::next_permutation(order.begin(), order.end()));
}

TEST_P(faults_calls, two_exchanges_on_one_communicator_work_in_one_order_and_not_in_two) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    ranks.all(exchange_line("1"), 120'000);
    ranks.all("layer 1 on=1 seed=4");
    for (int i = 0; i < 3; ++i) {
        for (const char* command : {"plan 0", "plan 1", "dispatch 1", "dispatch 0", "experts 0", "experts 1",
                                    "combine 0", "combine 1", "check 0", "check 1"}) {
            ranks.all(command);
        }
    }
    ranks.all("sync 0");
    ranks.all("sync 1");
    // Exact plans wait on the host: 0 before 1 here, 1 before 0 there.
    ranks.all("layer 2 on=0 mode=exact seed=5");
    ranks.all("layer 3 on=1 mode=exact seed=6");
    ranks.tell(0, "plan 2");
    ranks.tell(1, "plan 3");
    std::array<answer, 2> answers{ranks.hear(0, patience_ms), ranks.hear(1, patience_ms)};
    EXPECT_FALSE(answers[0].ok && answers[1].ok) << "plans of two exchanges met";
    for (const answer& a : answers) {
        EXPECT_THAT(a.kind, AnyOf("config", "timeout", "nccl")) << a.text;
    }
    expect_usable(ranks, 0);
    expect_usable(ranks, 1);
}

TEST_P(faults_calls, a_lent_view_that_is_used_late_is_an_error_on_each_rank) {
    scripted_ranks ranks = two_ranks();
    begin(ranks, "lanes=2");
    ranks.all("layer 1 lane=1 seed=3");
    for (const char* command : {"plan 0", "dispatch 0", "lend 0 view", "use_lent view"}) {
        ranks.all(command);
    }
    // The other lane's memory is its own.
    ranks.all("whole 1");
    ranks.all("use_lent view");
    ranks.all("experts 0");
    ranks.all("combine 0");
    for (const answer& a : ranks.ask_all("use_lent view")) {
        EXPECT_EQ(a.kind, "config");
        EXPECT_THAT(a.text, AllOf(HasSubstr("the lent view 'rows of rank "), HasSubstr("a later exchange has taken")));
    }
    for (const answer& a : ranks.ask_all("lend 0 late")) {
        EXPECT_EQ(a.kind, "config");
        EXPECT_THAT(a.text, HasSubstr("without a dispatch of this plan as its last call"));
    }
    ranks.all("check 0");
    for (const char* command : {"plan 0", "dispatch 0", "lend 0 view", "drop_exchange 0"}) {
        ranks.all(command);
    }
    for (const answer& a : ranks.ask_all("use_lent view")) {
        EXPECT_EQ(a.kind, "config");
        EXPECT_THAT(a.text, HasSubstr("after its owner was destroyed"));
    }
}

TEST_P(faults_calls, eight_free_sms_are_enough) {
    scripted_ranks ranks = two_ranks();
    begin(ranks, "max_tokens=256 hidden=2048", "tokens=256 hidden=2048");
    ranks.all("occupy free_sms=8 ms=1500", 120'000);
    for (int i = 0; i < 3; ++i) {
        ranks.all("whole 0");
        ranks.all("check 0", 60'000);
    }
    ranks.all("occupied");
}

INSTANTIATE_TEST_SUITE_P(each, faults_calls,
                         ::testing::Values(exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense),
                         label_of);

}  // namespace
}  // namespace epjit::tests
