// SPDX-License-Identifier: Apache-2.0
// A captured layer, replayed with new data, gives what the host exchange gives: the proof behind `epjit doctor`.
#include "epjit/epjit.hpp"
#include "host/report/report.hpp"
#include "tests/gpu/environment.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace epjit::tests {
namespace {

TEST(readiness, is_proven_on_loopback_for_every_form_of_a_layer) {
    EPJIT_NEEDS_GPU();
    exchange_config base;
    base.hidden = 384;
    base.num_experts = 10;
    base.topk = 3;
    base.max_tokens_per_rank = 64;
    std::vector<exchange_config> configs(6, base);
    configs[1].input_type = configs[1].dispatch_type = configs[1].combine_type = dtype::f32;
    configs[2].dispatch_type = dtype::fp8_e4m3;
    configs[2].scales = scale_type::f32;
    configs[3].input_type = configs[3].dispatch_type = dtype::fp8_e4m3;
    configs[3].scales = scale_type::ue8m0;
    configs[4].routing = routing_form::sparse;
    configs[5].routing = routing_form::slots;
    configs[5].max_tokens_per_rank = 1;
    for (const exchange_config& config : configs) {
        for (const int ranks : {1, 4, 7}) {
            communicator comm = communicator::loopback(gpu_runtime(), ranks);
            exchange ex(comm, config);
            std::string blockers;
            const readiness seen = prove_readiness(
                ex,
                [](void* user, std::string_view id, std::string_view, std::string_view why) {
                    static_cast<std::string*>(user)->append(id).append(": ").append(why).append("\n");
                },
                &blockers);
            EXPECT_TRUE(seen.ready()) << ranks << " ranks, case " << &config - configs.data() << "\n" << blockers;
        }
    }
}

TEST(readiness, doctor_sees_a_replayed_layer_on_this_machine) {
    EPJIT_NEEDS_GPU();
    runtime& rt = gpu_runtime();
    const auto records = host::probe_exchanges(rt, host::probe_machine(rt.state()));
    ASSERT_FALSE(records.empty());
    EXPECT_EQ(records[0].where, "loopback");
    for (const host::readiness_record& r : records) {
        EXPECT_TRUE(r.seen.ready()) << r.where << ": " << name(r.seen.failed_at) << " failed: " << r.failure;
    }
}

}  // namespace
}  // namespace epjit::tests
