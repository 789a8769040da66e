// SPDX-License-Identifier: Apache-2.0
// Four ranks on two hosts, one of which leaves, stops or contradicts the others: every rank that is left is told, also
// those that do not wait for it themselves.
#include "tests/multi_gpu/faults.hpp"

#include <csignal>
#include <vector>

namespace epjit::tests {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

class faults_hosts : public faults {
   protected:
    static constexpr int leaver = 3;

    [[nodiscard]] static scripted_ranks four_ranks() {
        return {rank_setup{4, true, true, 0},
                {{"EPJIT_WAIT_TIMEOUT_MS", std::to_string(fault_limit_ms)},
                 {"EPJIT_FIRST_WAIT_TIMEOUT_MS", std::to_string(2 * first_fault_limit_ms)}}};
    }
    /// The first failure of each rank but the leaver, all of them going on together.
    static void expect_all_told(scripted_ranks& ranks) {
        std::vector<answer> failures(leaver);
        for (const char* command : {"dispatch 0", "experts 0", "sync 0", "combine 0", "sync 0", "plan 0", "sync 0"}) {
            for (int rank = 0; rank < leaver; ++rank) {
                if (failures[static_cast<std::size_t>(rank)].kind.empty()) {
                    ranks.tell(rank, command);
                }
            }
            for (int rank = 0; rank < leaver; ++rank) {
                answer& a = failures[static_cast<std::size_t>(rank)];
                if (a.kind.empty()) {
                    a = ranks.hear(rank, 2 * first_fault_limit_ms + fault_grace_ms);
                }
            }
        }
        for (int rank = 0; rank < leaver; ++rank) {
            const answer& a = failures[static_cast<std::size_t>(rank)];
            EXPECT_FALSE(a.ok) << "rank " << rank << " noticed nothing";
            EXPECT_THAT(a.kind, AnyOf("timeout", "nccl")) << "rank " << rank << ": " << a.text;
            EXPECT_LT(a.ms, 2 * first_fault_limit_ms + fault_grace_ms) << a.text;
            expect_usable(ranks, rank);
        }
    }
};

TEST_P(faults_hosts, one_that_exits_is_missed_by_all_ranks_of_both_hosts) {
    scripted_ranks ranks = four_ranks();
    begin(ranks);
    ranks.all("plan 0");
    ranks.all("sync 0");
    ranks.tell(leaver, "exit");
    ranks.child(leaver).wait(in_ms(10'000));
    expect_all_told(ranks);
}

TEST_P(faults_hosts, one_that_is_stopped_too_long_gets_its_own_error) {
    scripted_ranks ranks = four_ranks();
    begin(ranks);
    ranks.all("plan 0");
    ranks.all("sync 0");
    ranks.child(leaver).signal(SIGSTOP);
    ranks.tell(leaver, "dispatch 0");  // it reads that when it wakes
    expect_all_told(ranks);
    const answer late = wake_late(ranks, leaver, 2 * first_fault_limit_ms + fault_grace_ms);
    EXPECT_THAT(late.kind, AnyOf("timeout", "nccl")) << late.text;
    expect_usable(ranks, leaver);
}

TEST_P(faults_hosts, a_config_that_differs_on_one_rank_is_named_on_all) {
    scripted_ranks ranks = four_ranks();
    ranks.all("connect", 120'000);
    for (int rank = 0; rank < ranks.size(); ++rank) {
        ranks.tell(rank, exchange_line("0", rank == leaver ? "max_tokens=128" : "max_tokens=64"));
    }
    for (int rank = 0; rank < ranks.size(); ++rank) {
        const answer a = ranks.hear(rank, 120'000);
        EXPECT_EQ(a.kind, "config") << "rank " << rank << ": " << a.text;
        EXPECT_THAT(a.text, HasSubstr("max_tokens_per_rank is 64 on rank 0 and 128 on rank 3"));
    }
    ranks.all(exchange_line("0"), 120'000);
    ranks.all("layer 0");
    ranks.all("whole 0");
    ranks.all("check 0");
}

INSTANTIATE_TEST_SUITE_P(each, faults_hosts, ::testing::Values(exchange_kind::hybrid, exchange_kind::sendrecv),
                         label_of);

}  // namespace
}  // namespace epjit::tests
