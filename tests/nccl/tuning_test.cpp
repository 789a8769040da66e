// SPDX-License-Identifier: Apache-2.0
// Ranks take rank 0's tuning profile, whatever their own says.
#include "host/dispatcher/tuning.hpp"

#include "tests/nccl/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epjit::tests {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

exchange_config small_layer() {
    exchange_config c;
    c.hidden = 64;
    c.num_experts = 8;
    c.topk = 2;
    c.max_tokens_per_rank = 16;
    return c;
}

/// Every rank in a runtime of its own, rank r with `profiles[r]`; the senders that each settled on.
outcomes settle(const std::vector<const char*>& profiles, std::vector<std::int32_t>& senders) {
    const int ranks = static_cast<int>(profiles.size());
    senders.assign(profiles.size(), -1);
    std::vector<runtime> runtimes;
    for (const char* profile : profiles) {
        const variable set("EPJIT_PROFILE", profile);
        runtimes.push_back(stub_runtime("2.30.7"));
    }
    return run_ranks("2.30.7", ranks, [&](int rank, communicator& comm, runtime&) {
        // The shared runtime's place is taken by the rank's own, as in a process of its own.
        comm.state().runtime = std::shared_ptr<host::runtime_state>(&runtimes[static_cast<std::size_t>(rank)].state(),
                                                                    [](host::runtime_state*) {});
        const jit::tuned_knobs knobs = host::settle_knobs(comm.state(), small_layer());
        senders[static_cast<std::size_t>(rank)] = knobs.launches(layout::flat, 16).dispatch_senders;
    });
}

constexpr const char* nine =
    R"({"epjit_profile": 1, "entries": [{"gpu": "Fake GPU", "knobs": {"dispatch_senders": 9}}]})";
constexpr const char* four = R"({"epjit_profile": 1, "entries": [{"knobs": {"dispatch_senders": 4}}]})";

TEST(tuning, every_rank_takes_what_rank_0_chose) {
    const profile_file first(nine, "first.json"), second(four, "second.json");
    std::vector<std::int32_t> senders;
    EXPECT_THAT(settle({first.path(), second.path(), nullptr}, senders), Each(""));
    EXPECT_THAT(senders, Each(9));
    EXPECT_THAT(settle({nullptr, first.path(), second.path()}, senders), Each(""));
    EXPECT_THAT(senders, Each(0)) << "the cost model leaves them to the length of rows";
}

TEST(tuning, a_profile_of_rank_0_that_cannot_be_used_is_the_same_error_on_every_rank) {
    const profile_file bad(R"({"epjit_profile": 1, "entries": [{"knobs": {"sender": 1}}]})");
    const profile_file newer(R"({"epjit_profile": 9})", "newer.json");
    std::vector<std::int32_t> senders;
    outcomes errors = settle({bad.path(), nullptr, nullptr}, senders);
    EXPECT_THAT(errors, Each(AllOf(HasSubstr("config: rank 0: profile "), HasSubstr("entries[0].knobs.sender"))));
    EXPECT_EQ(errors[0], errors[2]);
    errors = settle({newer.path(), nullptr}, senders);
    EXPECT_THAT(errors, Each(AllOf(HasSubstr("unsupported: rank 0: "), HasSubstr("epjit_profile is 9"))));
    errors = settle({nullptr, bad.path()}, senders);
    EXPECT_THAT(errors, Each("")) << "the others' profiles are not read";
}

TEST(tuning, the_link_is_what_the_driver_says_of_a_pair) {
    runtime rt = stub_runtime("2.30.7");
    const variable devices("FAKE_CUDA_DEVICES", "2");
    const auto driver = rt.state().driver();
    EXPECT_EQ(host::link_of(*driver, 0), jit::link_kind::nvlink);
    {
        const variable without("FAKE_CUDA_NO_PEERS", "1");
        EXPECT_EQ(host::link_of(*driver, 0), jit::link_kind::none);
    }
    const variable pcie("FAKE_CUDA_NO_PEER_ATOMICS", "1");
    EXPECT_EQ(host::link_of(*driver, 1), jit::link_kind::pcie);
}

TEST(tuning, virtual_ranks_and_the_cpu_settle_by_themselves) {
    const profile_file own(four);
    const variable set("EPJIT_PROFILE", own.path());
    runtime rt = stub_runtime("2.30.7");
    communicator loopback = communicator::loopback(rt, 3);
    EXPECT_EQ(host::settle_knobs(loopback.state(), small_layer()).launches(layout::flat, 1).dispatch_senders, 4);
    const jit::tuning_key key = host::key_of(loopback.state(), small_layer());
    EXPECT_EQ(key.gpu, "Fake GPU");
    EXPECT_EQ(key.ranks, 3);
    EXPECT_EQ(key.link, jit::link_kind::none);
    communicator cpu = communicator::host(rt, 3);
    EXPECT_FALSE(host::settle_knobs(cpu.state(), small_layer()).tuned());
}

}  // namespace
}  // namespace epjit::tests
