// SPDX-License-Identifier: Apache-2.0
// Peers that leave, stop, or never come.
#include "tests/multi_gpu/faults.hpp"

#include <csignal>

namespace epjit::tests {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

using faults_peers = faults;

TEST_P(faults_peers, one_that_exits_before_dispatch_is_waited_for_no_longer_than_the_limit) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    ranks.all("plan 0");
    ranks.all("sync 0");
    ranks.tell(1, "exit");
    ranks.child(1).wait(in_ms(10'000));
    const answer a = ranks.first_failure(0, {"dispatch 0", "experts 0", "sync 0", "combine 0", "sync 0", "plan 0"},
                                         first_fault_limit_ms + fault_grace_ms);
    expect_timed_out(a, 0, 1, "dispatch");
    expect_usable(ranks, 0);
}

TEST_P(faults_peers, one_that_exits_after_dispatch_is_missed_in_combine) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    for (const char* command : {"plan 0", "dispatch 0", "sync 0", "experts 0"}) {
        ranks.all(command);
    }
    ranks.tell(1, "exit");
    ranks.child(1).wait(in_ms(10'000));
    const answer a = ranks.first_failure(0, {"combine 0", "sync 0", "plan 0", "sync 0", "dispatch 0"},
                                         first_fault_limit_ms + fault_grace_ms);
    expect_timed_out(a, 0, 1, "combine");
    expect_usable(ranks, 0);
}

TEST_P(faults_peers, one_that_is_stopped_too_long_gets_its_own_error_and_writes_nothing_late) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    ranks.all("plan 0");
    ranks.all("sync 0");
    ranks.child(1).signal(SIGSTOP);
    ranks.tell(1, "dispatch 0");  // it reads that when it wakes
    const answer a = ranks.first_failure(0, {"dispatch 0", "experts 0", "sync 0", "combine 0", "sync 0", "plan 0"},
                                         first_fault_limit_ms + fault_grace_ms);
    expect_timed_out(a, 0, 1, "dispatch");
    const answer late = expect_nothing_late(ranks, first_fault_limit_ms + fault_grace_ms);
    EXPECT_THAT(late.kind, AnyOf("timeout", "nccl")) << late.text;
    expect_usable(ranks, 0);
    expect_usable(ranks, 1);
}

TEST_P(faults_peers, one_that_never_comes_ends_the_creation_in_time) {
    scripted_ranks ranks = two_ranks();
    ranks.child(1).signal(SIGSTOP);
    const answer a = ranks.ask(0, "connect", first_fault_limit_ms + 4 * fault_grace_ms);
    EXPECT_FALSE(a.ok);
    EXPECT_THAT(a.kind, AnyOf("timeout", "nccl")) << a.text;
    EXPECT_THAT(a.text, HasSubstr("rank 0"));
    EXPECT_LT(a.ms, first_fault_limit_ms + fault_grace_ms);
    expect_usable(ranks, 0);
}

TEST_P(faults_peers, one_that_makes_no_exchange_ends_the_others_creation_in_time) {
    scripted_ranks ranks = two_ranks();
    ranks.all("connect", 120'000);
    const answer a = ranks.ask(0, exchange_line("0"), first_fault_limit_ms + 4 * fault_grace_ms);
    EXPECT_FALSE(a.ok);
    EXPECT_THAT(a.kind, AnyOf("timeout", "nccl")) << a.text;
    expect_usable(ranks, 0);
}

TEST_P(faults_peers, one_that_destroys_its_exchange_during_work_leaves_no_one_hanging) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    // Both at once, with work on its way: nothing is wrong with that.
    for (const char* command : {"plan 0", "dispatch 0"}) {
        ranks.all(command);
    }
    ranks.all("drop_exchange 0", first_fault_limit_ms + 2 * fault_grace_ms);
    ranks.all(exchange_line("1"), 120'000);
    ranks.all(layer_line("1", "on=1 seed=2"));
    ranks.all("whole 1");
    ranks.all("check 1");
    // One alone: the other, which goes on, is told.
    ranks.all("plan 1");
    ranks.tell(1, "drop_exchange 1");
    const answer a = ranks.first_failure(0, {"dispatch 1", "experts 1", "sync 1", "combine 1", "sync 1", "plan 1"},
                                         first_fault_limit_ms + fault_grace_ms);
    EXPECT_FALSE(a.ok);
    EXPECT_THAT(a.kind, AnyOf("timeout", "nccl")) << a.text;
    const answer dropped = ranks.hear(1, first_fault_limit_ms + 2 * fault_grace_ms);
    EXPECT_TRUE(dropped.ok) << dropped.text;
    expect_usable(ranks, 0);
    expect_usable(ranks, 1);
}

TEST_P(faults_peers, a_graph_of_61_layers_drains_within_one_limit) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    ranks.all("record 0 layers=61");
    for (int i = 0; i < 3; ++i) {
        ranks.all("replay 0");
    }
    ranks.all("sync 0");
    ranks.all("check 0");
    ranks.child(1).signal(SIGSTOP);
    const answer replay = ranks.ask(0, "replay 0");
    const answer drained = ranks.ask(0, "sync 0", first_fault_limit_ms + 4 * fault_grace_ms);
    // Whoever replays calls nothing that would say so, but may ask.
    const answer seen = ranks.ask(0, "look 0");
    EXPECT_THAT(seen.kind, AnyOf("timeout", "nccl")) << seen.text;
    const answer told =
        ranks.first_failure(0, {"plan 0", "sync 0", "dispatch 0"}, first_fault_limit_ms + fault_grace_ms);
    EXPECT_FALSE(told.ok) << "nothing was reported";
    EXPECT_THAT(told.kind, AnyOf("timeout", "nccl")) << told.text;
    if (stores()) {
        // One limit plus 100 ms, and what it takes to be told over a pipe.
        EXPECT_LT(replay.ms + drained.ms, fault_limit_ms + 100 + 50);
    } else {
        EXPECT_LT(replay.ms + drained.ms, first_fault_limit_ms + fault_grace_ms);
    }
    ranks.child(1).signal(SIGCONT);
    expect_usable(ranks, 0);
}

TEST_P(faults_peers, an_exchange_is_rebuilt_after_a_failure) {
    scripted_ranks ranks = two_ranks();
    begin(ranks);
    ranks.all("plan 0");
    const answer a = ranks.first_failure(0, {"dispatch 0", "experts 0", "sync 0", "combine 0", "sync 0", "plan 0"},
                                         first_fault_limit_ms + fault_grace_ms);
    expect_timed_out(a, 0, 1, "dispatch");
    const answer refused = ranks.ask(0, "plan 0");
    EXPECT_THAT(refused.kind, AnyOf("timeout", "nccl")) << "the exchange refuses work until it is rebuilt";
    ranks.first_failure(1, {"dispatch 0", "sync 0", "plan 0", "sync 0", "plan 0"},
                        first_fault_limit_ms + fault_grace_ms);
    ranks.all("drop_exchange 0", first_fault_limit_ms + 2 * fault_grace_ms);
    if (!stores()) {
        ranks.all("connect", 120'000);  // the communicator was aborted with the exchange
    }
    ranks.all(exchange_line("1"), 120'000);
    ranks.all(layer_line("1", "on=1 seed=7"));
    ranks.all("whole 1");
    ranks.all("check 1");
}

INSTANTIATE_TEST_SUITE_P(each, faults_peers,
                         ::testing::Values(fault_case(exchange_kind::lsa),
                                           fault_case(exchange_kind::lsa, "lsa_low_latency",
                                                      "ll_max_tokens_per_rank=64", "layout=masked"),
                                           fault_case(exchange_kind::lsa, "lsa_windows", window_exchange, window_layer),
                                           fault_case(exchange_kind::sendrecv), fault_case(exchange_kind::dense)),
                         label_of);

}  // namespace
}  // namespace epjit::tests
