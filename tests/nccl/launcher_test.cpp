// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/launcher.hpp"

#include "epjit/error.hpp"
#include "tests/nccl/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace epjit::host {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using values = std::map<std::string, std::string>;

launcher_place read(const values& set) {
    return read_launcher([&](const char* name) -> const char* {
        const auto found = set.find(name);
        return found != set.end() ? found->second.c_str() : nullptr;
    });
}

std::string refusal(const values& set) {
    try {
        read(set);
    } catch (const config_error& e) {
        return e.what();
    }
    return "no error";
}

const values torchrun{{"RANK", "3"},
                      {"WORLD_SIZE", "8"},
                      {"LOCAL_RANK", "1"},
                      {"LOCAL_WORLD_SIZE", "2"},
                      {"MASTER_ADDR", "node7"},
                      {"MASTER_PORT", "29500"}};

values with(values base, const values& more) {
    for (const auto& [name, value] : more) {
        base[name] = value;
    }
    return base;
}

TEST(launcher, torchrun) {
    const launcher_place p = read(torchrun);
    EXPECT_EQ(p.launcher, "torchrun");
    EXPECT_EQ(p.rank, 3);
    EXPECT_EQ(p.size, 8);
    EXPECT_EQ(p.local_rank, 1);
    EXPECT_EQ(p.address, "node7");
    EXPECT_EQ(p.port, 29500 + 1017) << "MASTER_PORT itself is the launcher's own";
}

TEST(launcher, open_mpi_on_one_host_needs_no_address) {
    const values set{{"OMPI_COMM_WORLD_RANK", "1"},
                     {"OMPI_COMM_WORLD_SIZE", "2"},
                     {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                     {"PMIX_NAMESPACE", "job-1"}};
    const launcher_place p = read(set);
    EXPECT_EQ(p.launcher, "Open MPI");
    EXPECT_EQ(p.rank, 1);
    EXPECT_EQ(p.local_rank, 1);
    EXPECT_EQ(p.address, "127.0.0.1");
    EXPECT_NE(p.port, read(with(set, {{"PMIX_NAMESPACE", "job-2"}})).port) << "jobs on one host keep apart";
    EXPECT_EQ(p.port, read(with(set, {{"OMPI_COMM_WORLD_RANK", "0"}})).port) << "ranks of a job agree";
}

TEST(launcher, slurm) {
    const values set{{"SLURM_PROCID", "5"},
                     {"SLURM_NTASKS", "16"},
                     {"SLURM_LOCALID", "5"},
                     {"SLURM_NNODES", "2"},
                     {"SLURM_JOB_ID", "77"}};
    EXPECT_THAT(refusal(set),
                AllOf(HasSubstr("Slurm started 16 ranks on several hosts"), HasSubstr("set MASTER_ADDR")));
    const launcher_place p = read(with(set, {{"MASTER_ADDR", "192.0.2.1"}, {"MASTER_PORT", "6000"}}));
    EXPECT_EQ(p.launcher, "Slurm");
    EXPECT_EQ(p.address, "192.0.2.1");
    EXPECT_EQ(p.port, 7017);
    EXPECT_EQ(read(with(set, {{"SLURM_NNODES", "1"}})).address, "127.0.0.1");
}

TEST(launcher, torchrun_inside_another_launcher_wins) {
    const launcher_place p = read(with(torchrun, {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}}));
    EXPECT_EQ(p.launcher, "torchrun");
    EXPECT_EQ(p.rank, 3);
}

TEST(launcher, the_port_can_be_chosen_and_stays_a_port) {
    EXPECT_EQ(read(with(torchrun, {{"EPJIT_BOOTSTRAP_PORT", "4242"}})).port, 4242);
    EXPECT_EQ(read(with(torchrun, {{"MASTER_PORT", "65000"}})).port, 65000 - 1017);
    EXPECT_THAT(refusal(with(torchrun, {{"EPJIT_BOOTSTRAP_PORT", "70000"}})),
                HasSubstr("EPJIT_BOOTSTRAP_PORT=70000: not a number from 1 to 65535"));
}

TEST(launcher, localhost_is_the_address_that_rank_0_listens_on) {
    EXPECT_EQ(read(with(torchrun, {{"MASTER_ADDR", "localhost"}})).address, "127.0.0.1");
}

TEST(launcher, what_is_wrong_is_named) {
    EXPECT_THAT(refusal({}), HasSubstr("no launcher's variables are set"));
    EXPECT_THAT(refusal({{"RANK", "0"}}), HasSubstr("RANK is set and WORLD_SIZE is not"));
    EXPECT_THAT(refusal({{"OMPI_COMM_WORLD_SIZE", "2"}}),
                HasSubstr("OMPI_COMM_WORLD_SIZE is set and OMPI_COMM_WORLD_RANK is not"));
    EXPECT_THAT(refusal(with(torchrun, {{"RANK", "8"}})), HasSubstr("RANK=8 with WORLD_SIZE=8"));
    EXPECT_THAT(refusal(with(torchrun, {{"RANK", "-1"}})), HasSubstr("RANK=-1: not a number"));
    EXPECT_THAT(refusal(with(torchrun, {{"WORLD_SIZE", "8x"}})), HasSubstr("WORLD_SIZE=8x: not a number"));
    EXPECT_THAT(refusal(with(torchrun, {{"MASTER_PORT", "0"}})), HasSubstr("MASTER_PORT=0: not a number"));
}

TEST(launcher, one_rank_alone_needs_no_address) {
    const launcher_place p = read({{"RANK", "0"}, {"WORLD_SIZE", "1"}});
    EXPECT_EQ(p.address, "127.0.0.1");
    EXPECT_EQ(p.local_rank, 0);
}

TEST(launcher, an_empty_variable_counts_as_not_set) {
    EXPECT_THAT(refusal({{"RANK", ""}, {"WORLD_SIZE", ""}}), HasSubstr("no launcher's variables are set"));
}

TEST(launcher, the_bootstrap_variable_is_set_for_the_call_only) {
    const tests::variable none("NCCL_COMM_ID", nullptr);
    const auto api = open_nccl(tests::stub("2.28.3"));
    launcher_place p;
    p.address = "192.0.2.7";
    p.port = 4000;
    nccl_unique_id first, second;
    with_bootstrap_id(*api, p, [&](const nccl_unique_id& id) { first = id; });
    with_bootstrap_id(*api, p, [&](const nccl_unique_id& id) { second = id; });
    EXPECT_STREQ(first.internal, "at 192.0.2.7:4000");
    EXPECT_EQ(std::memcmp(&first, &second, sizeof first), 0) << "every rank makes the same bytes";
    EXPECT_EQ(std::getenv("NCCL_COMM_ID"), nullptr);
    p.address = "fe80::1";
    with_bootstrap_id(*api, p, [&](const nccl_unique_id& id) { EXPECT_STREQ(id.internal, "at [fe80::1]:4000"); });
    EXPECT_THROW(with_bootstrap_id(*api, p, [](const nccl_unique_id&) { throw config_error("stop"); }), config_error);
    EXPECT_EQ(std::getenv("NCCL_COMM_ID"), nullptr) << "also after a failure";
}

TEST(launcher, a_bootstrap_address_of_the_user_is_kept) {
    const tests::variable given("NCCL_COMM_ID", "1.2.3.4:5");
    const auto api = open_nccl(tests::stub("2.28.3"));
    launcher_place p;
    p.address = "192.0.2.7";
    p.port = 4000;
    with_bootstrap_id(*api, p, [&](const nccl_unique_id& id) { EXPECT_STREQ(id.internal, "at 1.2.3.4:5"); });
    EXPECT_STREQ(std::getenv("NCCL_COMM_ID"), "1.2.3.4:5");
}

}  // namespace
}  // namespace epjit::host
