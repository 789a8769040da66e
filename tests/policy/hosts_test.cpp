// SPDX-License-Identifier: Apache-2.0
#include "host/hybrid/hosts.hpp"

#include "epjit/error.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace epjit::host {
namespace {

TEST(hosts, a_rank_knows_its_host_and_its_rail) {
    const std::vector<std::int32_t> hosts{0, 0, 0, 1, 1, 1};
    const host_layout l = lay_out_hosts(hosts, 4);
    EXPECT_EQ(l.num_hosts, 2);
    EXPECT_EQ(l.width, 3);
    EXPECT_EQ(l.host, 1);
    EXPECT_EQ(l.local, 1);
    EXPECT_EQ(l.first(), 3);
    EXPECT_EQ(l.rail(0), 1);
    EXPECT_EQ(l.rail(1), 4);
}

TEST(hosts, one_host_and_hosts_of_one_rank_are_layouts_too) {
    EXPECT_EQ(lay_out_hosts(std::vector<std::int32_t>{0, 0, 0}, 2).width, 3);
    EXPECT_EQ(lay_out_hosts(std::vector<std::int32_t>{0, 1, 2}, 2).num_hosts, 3);
}

TEST(hosts, uneven_or_mixed_hosts_are_refused_by_name) {
    const std::vector<std::vector<std::int32_t>> refused{{0, 0, 1}, {0, 1, 0, 1}, {0, 1, 1}, {0, 0, 1, 1, 1, 2}};
    for (const std::vector<std::int32_t>& hosts : refused) {
        try {
            lay_out_hosts(hosts, 0);
            FAIL() << "not refused";
        } catch (const unsupported_error& e) {
            EXPECT_THAT(e.message(), testing::HasSubstr("'hybrid' needs hosts of equally many ranks"));
        }
    }
}

}  // namespace
}  // namespace epjit::host
