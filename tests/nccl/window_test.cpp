// SPDX-License-Identifier: Apache-2.0
// Symmetric windows: who reaches whom, how that is proved, and that nobody waits for a rank that gave up.
#include "host/nccl/communicator.hpp"
#include "tests/nccl/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace epjit {
namespace {

using namespace tests;
using host::symmetric_window;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

void make(communicator& comm, std::size_t bytes) {
    const symmetric_window window(comm.state().nccl, bytes);
}

TEST(symmetric_window, every_rank_reaches_every_other) {
    // 2.28 by the window's prefix, later by NCCL's getters.
    for (const char* version : {"2.28.3", "2.29.2", "2.30.7"}) {
        const outcomes errors = run_ranks(version, 4, [](int rank, communicator& comm, runtime&) {
            const symmetric_window window(comm.state().nccl, 10'000);
            EXPECT_EQ(window.bytes(), 10'000U);
            EXPECT_THAT(window.reachable(), ElementsAre(0, 1, 2, 3));
            EXPECT_EQ(window.peer(rank), window.local());
            EXPECT_EQ(window.peer(4), nullptr);
            const auto* local = static_cast<const char*>(window.local());
            EXPECT_TRUE(std::all_of(local, local + 10'000, [](char c) { return c == 0; })) << "cleared after the proof";
            nccl_of(comm).barrier_host();
            for (int r = 0; r < 4; ++r) {
                static_cast<char*>(window.peer(r))[9'000 + rank] = static_cast<char>('a' + rank);
            }
            nccl_of(comm).barrier_host();
            EXPECT_EQ(std::string(local + 9'000, 4), "abcd");
            nccl_of(comm).barrier_host();
        });
        EXPECT_THAT(errors, Each("")) << version;
        EXPECT_EQ(stub_get(version, "live_windows"), 0) << version;
        EXPECT_EQ(stub_get(version, "live_memory"), 0) << version;
    }
}

TEST(symmetric_window, ranks_of_another_team_are_not_reached) {
    for (const char* version : {"2.28.3", "2.30.7"}) {
        const stub_switch teams(version, "team_size", 2);
        const outcomes errors = run_ranks(version, 4, [](int rank, communicator& comm, runtime&) {
            const symmetric_window window(comm.state().nccl, 64);
            if (rank < 2) {
                EXPECT_THAT(window.reachable(), ElementsAre(0, 1));
            } else {
                EXPECT_THAT(window.reachable(), ElementsAre(2, 3));
            }
            EXPECT_EQ(window.peer((rank + 2) % 4), nullptr);
        });
        EXPECT_THAT(errors, Each("")) << version;
    }
}

TEST(symmetric_window, several_are_kept_and_moved) {
    const outcomes errors = run_ranks("2.28.3", 2, [](int rank, communicator& comm, runtime&) {
        symmetric_window first(comm.state().nccl, 1), second(comm.state().nccl, 1 << 20);
        EXPECT_NE(first.local(), second.local());
        symmetric_window third = std::move(first);
        EXPECT_EQ(first.local(), nullptr);
        EXPECT_EQ(first.peer(rank), nullptr);
        EXPECT_TRUE(first.reachable().empty());
        EXPECT_EQ(third.bytes(), 1U);
        nccl_of(comm).barrier_host();
    });
    EXPECT_THAT(errors, Each(""));
    EXPECT_EQ(stub_get("2.28.3", "live_memory"), 0);
}

TEST(symmetric_window, a_null_window_means_no_symmetric_memory_on_every_rank) {
    const stub_switch none("2.28.3", "null_window", 1);
    const outcomes errors = run_ranks("2.28.3", 3, [](int, communicator& comm, runtime&) { make(comm, 4096); });
    EXPECT_THAT(errors, Each(AllOf(HasSubstr("unsupported: symmetric windows cannot be used: rank 0 of 3: "
                                             "ncclCommWindowRegister succeeded without a window"),
                                   HasSubstr("use the sendrecv or dense exchange"))));
    EXPECT_EQ(stub_get("2.28.3", "live_memory"), 0);
}

TEST(symmetric_window, versions_without_windows_say_so_on_every_rank) {
    EXPECT_THAT(run_ranks("2.18.5", 2, [](int, communicator& comm, runtime&) { make(comm, 4096); }),
                Each(HasSubstr("NCCL 2.18.5 has no symmetric windows")));
    EXPECT_THAT(run_ranks("2.27.3", 2, [](int, communicator& comm, runtime&) { make(comm, 4096); }),
                Each(HasSubstr("NCCL 2.27.3 has windows, but peer pointers")));
}

TEST(symmetric_window, a_peer_pointer_that_leads_elsewhere_is_found_out) {
    for (const char* version : {"2.28.3", "2.29.2"}) {
        const stub_switch swapped(version, "swap_peers", 1);
        const outcomes errors = run_ranks(version, 3, [](int, communicator& comm, runtime&) { make(comm, 4096); });
        EXPECT_THAT(errors,
                    Each(HasSubstr("unsupported: symmetric windows cannot be used: rank 1 of 3: a word that rank "
                                   "0 wrote through its peer pointer did not arrive")))
            << version;
        EXPECT_EQ(stub_get(version, "live_windows"), 0) << version;
    }
}

TEST(symmetric_window, one_rank_without_memory_stops_all) {
    const stub_switch full("2.30.7", "fail_allocate", 1);
    EXPECT_THAT(run_ranks("2.30.7", 2, [](int, communicator& comm, runtime&) { make(comm, 4096); }),
                Each(HasSubstr("rank 0 of 2: ncclMemAlloc of 4096 bytes gave ncclUnhandledCudaError (1)")));
}

TEST(symmetric_window, sizes_that_differ_are_an_error_on_every_rank) {
    EXPECT_THAT(run_ranks("2.30.7", 2, [](int rank, communicator& comm, runtime&) { make(comm, 4096 + rank); }),
                Each(HasSubstr("a window of 4096 bytes on rank 0 and 4097 on rank 1")));
}

TEST(symmetric_window, a_rank_that_never_comes_ends_in_an_error) {
    const outcomes errors = run_ranks(
        "2.30.7", 2,
        [](int rank, communicator& comm, runtime&) {
            if (rank == 0) {
                make(comm, 4096);
            }
        },
        200);
    EXPECT_THAT(errors[0], HasSubstr("timeout: rank 0 of 2"));
    EXPECT_EQ(errors[1], "");
}

}  // namespace
}  // namespace epjit
