// SPDX-License-Identifier: Apache-2.0
#include "epjit/parallel.hpp"

#include "epjit/error.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <vector>

namespace epjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string refusal(const parallel_config& c, std::int32_t rank = 0) {
    try {
        derive_parallel(c, rank);
    } catch (const config_error& e) {
        return e.what();
    }
    return "no error";
}

std::vector<int> ranks_of(const rank_group& group) {
    std::vector<int> ranks(static_cast<std::size_t>(group.size));
    list_ranks(group, ranks);
    return ranks;
}

TEST(parallel, experts_are_spread_over_all_ranks_when_nothing_else_is_said) {
    parallel_config c;
    c.nodes = 2;
    c.devices_per_node = 4;
    const parallel_place p = derive_parallel(c, 6);
    EXPECT_EQ(p.world_size, 8);
    EXPECT_EQ(p.tensor, 1);
    EXPECT_EQ(p.data, 8);
    EXPECT_EQ(p.expert, 8);
    EXPECT_EQ(p.expert_data, 1);
    EXPECT_EQ(p.node, 1);
    EXPECT_EQ(p.device, 2);
    EXPECT_TRUE(p.expert_group_spans_nodes);
    EXPECT_EQ(p.expert_group.index, 6);
}

TEST(parallel, data_parallel_groups_over_several_nodes_stay_at_least_one) {
    // Expert parallelism of all ranks, with every rank an attention group of its own on two nodes of one device.
    parallel_config c;
    c.world_size = 2;
    c.nodes = 2;
    c.expert = 2;
    c.data = 2;
    const parallel_place p = derive_parallel(c, 1);
    EXPECT_EQ(p.data, 2);
    EXPECT_EQ(p.tensor, 1);
    EXPECT_EQ(p.devices_per_node, 1);
}

TEST(parallel, groups_of_a_mixed_division) {
    parallel_config c;
    c.world_size = 16;
    c.tensor = 2;
    c.expert = 4;
    c.expert_tensor = 2;
    c.devices_per_node = 8;
    const parallel_place p = derive_parallel(c, 11);
    EXPECT_EQ(p.data, 8);
    EXPECT_EQ(p.expert_data, 2);
    EXPECT_EQ(p.nodes, 2);
    EXPECT_THAT(ranks_of(p.tensor_group), ElementsAre(10, 11));
    EXPECT_THAT(ranks_of(p.data_group), ElementsAre(1, 3, 5, 7, 9, 11, 13, 15));
    EXPECT_THAT(ranks_of(p.expert_tensor_group), ElementsAre(10, 11));
    EXPECT_THAT(ranks_of(p.expert_group), ElementsAre(9, 11, 13, 15));
    EXPECT_THAT(ranks_of(p.expert_data_group), ElementsAre(3, 11));
    EXPECT_EQ(p.expert_group.index, 1);
    EXPECT_FALSE(p.expert_group_spans_nodes);
}

TEST(parallel, errors_show_the_arithmetic) {
    parallel_config c;
    EXPECT_THAT(refusal(c), HasSubstr("world_size is not given"));
    c.world_size = 8;
    c.tensor = 3;
    EXPECT_THAT(refusal(c), HasSubstr("world_size 8 is not a multiple of tensor 3, so there is no data"));
    c.tensor = 2;
    c.data = 2;
    EXPECT_THAT(refusal(c), HasSubstr("data 2 x tensor 2 = 4, but world_size is 8"));
    c.data = 4;
    c.expert = 3;
    EXPECT_THAT(refusal(c), HasSubstr("world_size 8 is not a multiple of expert 3 x expert_tensor 1 = 3"));
    c.expert = 4;
    c.expert_data = 4;
    EXPECT_THAT(refusal(c), HasSubstr("expert_data 4 x expert 4 x expert_tensor 1 = 16, but world_size is 8"));
    c.expert_data = 0;
    c.nodes = 3;
    EXPECT_THAT(refusal(c), HasSubstr("world_size 8 is not a multiple of nodes 3"));
    c.nodes = 2;
    c.devices_per_node = 8;
    EXPECT_THAT(refusal(c), HasSubstr("nodes 2 x devices_per_node 8 = 16, but world_size is 8"));
    c.devices_per_node = 0;
    EXPECT_THAT(refusal(c, 8), HasSubstr("rank 8 of a world of 8"));
    EXPECT_THAT(refusal(c, -1), HasSubstr("rank -1 of a world of 8"));
    c.expert = -2;
    EXPECT_THAT(refusal(c), HasSubstr("expert is -2"));
    c.expert = 4;
    c.version = 7;
    EXPECT_THAT(refusal(c), HasSubstr("version is 7"));
}

TEST(parallel, every_group_covers_the_world_once) {
    std::mt19937 random(std::random_device{}());
    const auto draw = [&](int most) { return static_cast<std::int32_t>(random() % most) + 1; };
    for (int i = 0; i < 200; ++i) {
        parallel_config c;
        c.tensor = draw(4);
        c.data = draw(6);
        c.world_size = c.tensor * c.data;
        c.expert_tensor = c.world_size % 2 == 0 ? draw(2) : 1;
        c.expert = c.world_size / c.expert_tensor;
        if (c.expert % 2 == 0 && draw(2) == 1) {
            c.expert /= 2;
        }
        std::multiset<int> expert, data;
        std::set<std::vector<int>> groups;
        for (std::int32_t r = 0; r < c.world_size; ++r) {
            const parallel_place p = derive_parallel(c, r);
            const std::vector<int> members = ranks_of(p.expert_group);
            EXPECT_EQ(members[p.expert_group.index], r);
            EXPECT_EQ(ranks_of(p.data_group)[p.data_group.index], r);
            EXPECT_EQ(ranks_of(p.tensor_group)[p.tensor_group.index], r);
            EXPECT_EQ(ranks_of(p.expert_data_group)[p.expert_data_group.index], r);
            if (groups.insert(members).second) {
                expert.insert(members.begin(), members.end());
            }
            EXPECT_EQ(p.data * p.tensor, c.world_size);
            EXPECT_EQ(p.expert * p.expert_tensor * p.expert_data, c.world_size);
        }
        EXPECT_EQ(expert.size(), static_cast<std::size_t>(c.world_size));
        EXPECT_EQ(std::set<int>(expert.begin(), expert.end()).size(), expert.size());
    }
}

TEST(parallel, a_list_has_room_for_its_group) {
    int few[1];
    EXPECT_THROW(list_ranks({0, 1, 2, 0}, few), config_error);
}

}  // namespace
}  // namespace epjit
