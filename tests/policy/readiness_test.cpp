// SPDX-License-Identifier: Apache-2.0
// Readiness fails closed: what is reported when a stage fails, or was never tried.
#include "host/report/readiness.hpp"

#include "epjit/epjit.hpp"
#include "host/report/report.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace epjit::host {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Fails at one stage.
class failing_probe : public readiness_probe {
   public:
    explicit failing_probe(readiness_stage at) : at_(at) {}
    void prepare() override { pass(readiness_stage::prepare); }
    void capture() override { pass(readiness_stage::capture); }
    void instantiate() override { pass(readiness_stage::instantiate); }
    void replay() override { pass(readiness_stage::replay); }
    std::string verify() override { return at_ == readiness_stage::verify ? "row 3 differs" : ""; }
    std::vector<readiness_stage> tried;

   private:
    void pass(readiness_stage stage) {
        tried.push_back(stage);
        if (stage == at_) {
            throw std::runtime_error("cuStreamEndCapture: 901");
        }
    }
    readiness_stage at_;
};

std::vector<std::string> ids_of(const std::vector<blocker>& blockers) {
    std::vector<std::string> ids;
    for (const blocker& b : blockers) {
        EXPECT_FALSE(b.where.empty()) << b.id;
        EXPECT_FALSE(b.why.empty()) << b.id;
        ids.push_back(b.id);
    }
    return ids;
}

constexpr readiness all_seen{true, true, true, true, readiness_stage::none};

TEST(readiness, is_given_only_when_every_stage_was_seen) {
    failing_probe probe(readiness_stage::none);
    const readiness_record record = run_probe("loopback", probe);
    EXPECT_TRUE(record.seen.ready());
    EXPECT_THAT(blockers_of(record), IsEmpty());
    EXPECT_EQ(probe.tried.size(), 4U);
}

TEST(readiness, the_first_failure_ends_it_and_names_what_is_missing) {
    struct row {
        readiness_stage at;
        std::vector<std::string> missing;
    };
    const row table[] = {
        {readiness_stage::prepare,
         {"capture_not_seen", "instantiation_not_seen", "replay_not_seen", "result_not_verified"}},
        {readiness_stage::capture,
         {"capture_not_seen", "instantiation_not_seen", "replay_not_seen", "result_not_verified"}},
        {readiness_stage::instantiate, {"instantiation_not_seen", "replay_not_seen", "result_not_verified"}},
        {readiness_stage::replay, {"replay_not_seen", "result_not_verified"}},
        {readiness_stage::verify, {"result_not_verified"}},
    };
    for (const row& r : table) {
        SCOPED_TRACE(std::string(name(r.at)));
        failing_probe probe(r.at);
        const readiness_record record = run_probe("lsa", probe);
        EXPECT_FALSE(record.seen.ready());
        EXPECT_EQ(record.seen.failed_at, r.at);
        const std::vector<blocker> blockers = blockers_of(record);
        EXPECT_EQ(ids_of(blockers), r.missing);
        EXPECT_EQ(blockers[0].where, "lsa");
        EXPECT_THAT(blockers[0].why, HasSubstr(r.at == readiness_stage::verify ? "row 3 differs" : "901"));
        EXPECT_THAT(blockers[0].why, HasSubstr(std::string(name(r.at)) + " failed"));
        for (std::size_t i = 1; i < blockers.size(); ++i) {
            EXPECT_EQ(blockers[i].why, "not reached: " + std::string(name(r.at)) + " failed");
        }
    }
}

TEST(readiness, nothing_tried_is_not_ready) {
    const readiness_record record{"sendrecv", {}, {}};
    EXPECT_FALSE(record.seen.ready());
    EXPECT_THAT(ids_of(blockers_of(record)),
                ElementsAre("capture_not_seen", "instantiation_not_seen", "replay_not_seen", "result_not_verified"));
    EXPECT_THAT(blockers_of(record)[0].why, HasSubstr("never tried on this machine"));
    // A record that contradicts itself is not believed.
    readiness_record odd{"sendrecv", all_seen, "stopped"};
    odd.seen.failed_at = readiness_stage::replay;
    EXPECT_THAT(ids_of(blockers_of(odd)), ElementsAre("failure_recorded"));
}

machine_report whole_machine(std::size_t gpus) {
    machine_report m;
    m.driver.found = m.nvrtc.found = m.nccl.found = true;
    m.driver.gpus.resize(gpus);
    return m;
}

TEST(readiness, a_machine_is_ready_when_every_exchange_it_could_use_was_seen) {
    machine_report one = whole_machine(1);
    EXPECT_FALSE(assess_readiness(one).ready);
    one.exchanges.push_back({"loopback", all_seen, {}});
    EXPECT_TRUE(assess_readiness(one).ready);
    EXPECT_THAT(assess_readiness(one).blockers, IsEmpty());

    machine_report two = whole_machine(2);
    two.exchanges = one.exchanges;
    EXPECT_THAT(ids_of(assess_readiness(two).blockers),
                ElementsAre("capture_not_seen", "instantiation_not_seen", "replay_not_seen", "result_not_verified"));
    EXPECT_EQ(assess_readiness(two).blockers[0].where, "real ranks");
    two.exchanges.push_back({"lsa", all_seen, {}});
    EXPECT_TRUE(assess_readiness(two).ready);
    two.nccl.found = false;
    two.exchanges[1].seen.verified = false;
    two.exchanges[1].seen.failed_at = readiness_stage::verify;
    EXPECT_FALSE(assess_readiness(two).ready);
    EXPECT_THAT(ids_of(assess_readiness(two).blockers), ElementsAre("no_nccl", "result_not_verified"));
}

TEST(readiness, the_host_exchange_has_no_graphs_and_says_so) {
    runtime_options options;
    options.cache_path = "";
    runtime rt(options);
    communicator comm = communicator::host(rt, 2);
    exchange_config config;
    config.hidden = 64;
    config.num_experts = 4;
    config.topk = 2;
    config.max_tokens_per_rank = 8;
    exchange ex(comm, config);
    std::vector<std::string> seen;
    const readiness result = prove_readiness(
        ex,
        [](void* user, std::string_view id, std::string_view where, std::string_view why) {
            static_cast<std::vector<std::string>*>(user)->push_back(std::string(id) + " " + std::string(where) + " " +
                                                                    std::string(why));
        },
        &seen);
    EXPECT_FALSE(result.ready());
    EXPECT_EQ(result.failed_at, readiness_stage::prepare);
    ASSERT_EQ(seen.size(), 4U);
    EXPECT_THAT(seen[0], HasSubstr("capture_not_seen host prepare failed: the host exchange has no streams"));
}

}  // namespace
}  // namespace epjit::host
