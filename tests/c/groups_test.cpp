// SPDX-License-Identifier: Apache-2.0
// Collectives, parallel groups, resident tensors and readiness through the C interface.
#include "epjit/epjit.h"
#include "tests/c/support.hpp"

#include <numeric>
#include <string>
#include <vector>

namespace epjit::tests {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(c_host, collectives_with_a_count_for_each_rank) {
    const std::int64_t counts[] = {1, 3};
    std::vector<float> send[2] = {{1, 2, 3, 4}, {10, 20, 30, 40}},
                       receive[2] = {std::vector<float>(4), std::vector<float>(4)};
    epjit_collective_args args[2] = {sized<epjit_collective_args>(), sized<epjit_collective_args>()};
    for (int r = 0; r < 2; ++r) {
        args[r].send = send[r].data();
        args[r].receive = receive[r].data();
    }
    ASSERT_OK(epjit_all_gather_v(communicator.get(), args, 2, counts, 2, EPJIT_DTYPE_F32, nullptr));
    for (const auto& seen : receive) {
        EXPECT_THAT(seen, ElementsAre(1, 10, 20, 30));
    }
    ASSERT_OK(epjit_reduce_scatter_v(communicator.get(), args, 2, counts, 2, EPJIT_DTYPE_F32, nullptr));
    EXPECT_EQ(receive[0][0], 11);
    EXPECT_EQ(receive[1][0], 22);
    EXPECT_EQ(receive[1][2], 44);
    ASSERT_OK(epjit_broadcast(communicator.get(), args, 2, 4, 1, EPJIT_DTYPE_F32, nullptr));
    EXPECT_THAT(receive[0], ElementsAre(10, 20, 30, 40));

    EXPECT_ERROR(epjit_all_gather_v(nullptr, args, 2, counts, 2, EPJIT_DTYPE_F32, nullptr), EPJIT_ERROR_CONFIG,
                 "communicator is null");
    EXPECT_ERROR(epjit_all_gather_v(communicator.get(), nullptr, 2, counts, 2, EPJIT_DTYPE_F32, nullptr),
                 EPJIT_ERROR_CONFIG, "epjit_collective_args is null");
    EXPECT_ERROR(epjit_reduce_scatter_v(communicator.get(), args, 2, nullptr, 2, EPJIT_DTYPE_F32, nullptr),
                 EPJIT_ERROR_CONFIG, "counts is null");
    EXPECT_ERROR(epjit_reduce_scatter_v(communicator.get(), args, 2, counts, 2, EPJIT_DTYPE_FP8_E4M3, nullptr),
                 EPJIT_ERROR_UNSUPPORTED, "fp8");
    EXPECT_ERROR(epjit_broadcast(communicator.get(), args, 2, 4, 2, EPJIT_DTYPE_F32, nullptr), EPJIT_ERROR_CONFIG,
                 "rank 2 of 2");
    EXPECT_ERROR(epjit_broadcast(communicator.get(), args, 2, 4, 0, 9, nullptr), EPJIT_ERROR_CONFIG, "type is 9");
}

TEST(c_groups, parallel_groups_are_derived) {
    epjit_parallel_config config = sized<epjit_parallel_config>();
    config.world_size = 16;
    config.tensor = 2;
    config.expert = 8;
    config.devices_per_node = 8;
    epjit_parallel_place place = sized<epjit_parallel_place>();
    ASSERT_OK(epjit_derive_parallel(&config, 9, &place));
    EXPECT_EQ(place.data, 8);
    EXPECT_EQ(place.expert_data, 2);
    EXPECT_EQ(place.nodes, 2);
    EXPECT_EQ(place.node, 1);
    EXPECT_EQ(place.device, 1);
    EXPECT_EQ(place.expert_group_spans_nodes, 0);
    std::vector<std::int32_t> ranks(static_cast<std::size_t>(place.expert_group.size));
    ASSERT_OK(epjit_list_ranks(&place.expert_group, ranks.data(), 8));
    EXPECT_THAT(ranks, ElementsAre(8, 9, 10, 11, 12, 13, 14, 15));
    EXPECT_EQ(place.expert_group.index, 1);
    EXPECT_EQ(place.tensor_group.first, 8);

    EXPECT_ERROR(epjit_list_ranks(&place.expert_group, ranks.data(), 7), EPJIT_ERROR_CONFIG, "7");
    EXPECT_ERROR(epjit_list_ranks(nullptr, ranks.data(), 8), EPJIT_ERROR_CONFIG, "group is null");
    EXPECT_ERROR(epjit_list_ranks(&place.expert_group, nullptr, 8), EPJIT_ERROR_CONFIG, "ranks is null");
    config.tensor = 3;
    EXPECT_ERROR(epjit_derive_parallel(&config, 0, &place), EPJIT_ERROR_CONFIG, "3");
    EXPECT_ERROR(epjit_derive_parallel(nullptr, 0, &place), EPJIT_ERROR_CONFIG, "epjit_parallel_config is null");
    config.tensor = 2;
    EXPECT_ERROR(epjit_derive_parallel(&config, 16, &place), EPJIT_ERROR_CONFIG, "16");
    EXPECT_ERROR(epjit_derive_parallel(&config, 0, nullptr), EPJIT_ERROR_CONFIG, "epjit_parallel_place is null");
}

/// One rank of the fake GPU, whose memory is the host's.
class c_resident : public ::testing::Test {
   protected:
    c_resident() {
        epjit_runtime_options options = quiet_options();
        options.cuda_library = EPJIT_FAKE_CUDA;
        runtime = make_runtime(options);
        epjit_communicator* comm = nullptr;
        EXPECT_OK(epjit_communicator_loopback(runtime.get(), 2, 0, &comm));
        communicator.reset(comm);
        EXPECT_OK(epjit_resident_registry_create(comm, nullptr, &registry));
        spec = sized<epjit_tensor_spec>();
        spec.name = "experts";
        spec.residence = EPJIT_RESIDENCE_STACKED;
        std::iota(data.begin(), data.end(), 0);
    }
    ~c_resident() override { epjit_resident_registry_destroy(registry); }
    handle<epjit_runtime> runtime;
    handle<epjit_communicator> communicator;
    epjit_resident_registry* registry = nullptr;
    epjit_tensor_spec spec;
    std::vector<unsigned char> data = std::vector<unsigned char>(48);
    std::int32_t number = -1;
};

TEST_F(c_resident, shards_are_uploaded_once_and_found_again) {
    const std::size_t shards[] = {16, 32};
    ASSERT_OK(epjit_resident_registry_add(registry, &spec, data.data(), shards, 2, &number));
    const void* there = nullptr;
    std::size_t bytes = 0;
    ASSERT_OK(epjit_resident_registry_get(registry, number, 1, &there, &bytes));
    EXPECT_EQ(bytes, 32u);
    EXPECT_EQ(static_cast<const unsigned char*>(there)[0], 16);
    std::uint64_t uploads = 0, again = 0;
    ASSERT_OK(epjit_resident_registry_uploads(registry, &uploads));
    EXPECT_GT(uploads, 0u);
    std::int32_t second = -1, found = -1, none = 0;
    ASSERT_OK(epjit_resident_registry_add(registry, &spec, data.data(), shards, 2, &second));
    ASSERT_OK(epjit_resident_registry_uploads(registry, &again));
    EXPECT_EQ(second, number);
    EXPECT_EQ(again, uploads);
    ASSERT_OK(epjit_resident_registry_find(registry, "experts", &found));
    EXPECT_EQ(found, number);
    ASSERT_OK(epjit_resident_registry_find(registry, "others", &none));
    EXPECT_EQ(none, -1);
    void* writable = nullptr;
    EXPECT_ERROR(epjit_resident_registry_get_inout(registry, number, 0, &writable, &bytes), EPJIT_ERROR_CONFIG,
                 "experts");
    spec.name = "cache";
    spec.use = EPJIT_USE_STATE;
    spec.inout = 1;
    ASSERT_OK(epjit_resident_registry_add(registry, &spec, data.data(), shards, 2, &number));
    ASSERT_OK(epjit_resident_registry_get_inout(registry, number, 0, &writable, &bytes));
    EXPECT_NE(writable, nullptr);
    EXPECT_EQ(bytes, 16u);
}

TEST_F(c_resident, what_cannot_be_resident_is_refused) {
    const std::size_t shards[] = {16, 32};
    spec.use = EPJIT_USE_OUTPUT;
    EXPECT_ERROR(epjit_resident_registry_add(registry, &spec, data.data(), shards, 2, &number), EPJIT_ERROR_CONFIG,
                 "cannot be resident");
    spec.use = 4;
    EXPECT_ERROR(epjit_resident_registry_add(registry, &spec, data.data(), shards, 2, &number), EPJIT_ERROR_CONFIG,
                 "use is 4");
    spec.use = EPJIT_USE_CONSTANT;
    spec.name = nullptr;
    EXPECT_ERROR(epjit_resident_registry_add(registry, &spec, data.data(), shards, 2, &number), EPJIT_ERROR_CONFIG,
                 "epjit_tensor_spec::name is null");
    spec.name = "experts";
    EXPECT_ERROR(epjit_resident_registry_add(registry, &spec, data.data(), shards, 1, &number), EPJIT_ERROR_CONFIG,
                 "1");
    EXPECT_ERROR(epjit_resident_registry_add(registry, &spec, data.data(), nullptr, 2, &number), EPJIT_ERROR_CONFIG,
                 "shard_bytes is null");
    EXPECT_ERROR(epjit_resident_registry_add(registry, &spec, data.data(), shards, 2, nullptr), EPJIT_ERROR_CONFIG,
                 "number is null");
    EXPECT_ERROR(epjit_resident_registry_add(registry, nullptr, data.data(), shards, 2, &number), EPJIT_ERROR_CONFIG,
                 "epjit_tensor_spec is null");
    std::size_t bytes = 0;
    const void* there = nullptr;
    EXPECT_ERROR(epjit_resident_registry_get(registry, 7, 0, &there, &bytes), EPJIT_ERROR_CONFIG, "7");
    EXPECT_ERROR(epjit_resident_registry_get(nullptr, 0, 0, &there, &bytes), EPJIT_ERROR_CONFIG, "registry is null");
    EXPECT_ERROR(epjit_resident_registry_find(registry, nullptr, &number), EPJIT_ERROR_CONFIG, "name is null");
    EXPECT_ERROR(epjit_resident_registry_uploads(nullptr, nullptr), EPJIT_ERROR_CONFIG, "registry is null");
    epjit_resident_registry* none = nullptr;
    EXPECT_ERROR(epjit_resident_registry_create(nullptr, nullptr, &none), EPJIT_ERROR_CONFIG, "communicator is null");
    epjit_resident_registry_destroy(nullptr);
}

TEST_F(c_host, readiness_says_what_stands_in_the_way) {
    const handle<epjit_exchange> ex = make_exchange();
    std::vector<std::string> seen;
    epjit_readiness r = sized<epjit_readiness>();
    ASSERT_OK(epjit_prove_readiness(
        ex.get(),
        [](void* user, const char* id, const char* where, const char* why) {
            static_cast<std::vector<std::string>*>(user)->push_back(std::string(id) + " " + where + " " + why);
        },
        &seen, &r));
    EXPECT_EQ(r.ready, 0);
    EXPECT_EQ(r.captured, 0);
    EXPECT_EQ(r.failed_at, EPJIT_READINESS_PREPARE);
    ASSERT_FALSE(seen.empty());
    EXPECT_THAT(seen[0], HasSubstr("capture_not_seen host "));
    EXPECT_OK(epjit_prove_readiness(ex.get(), nullptr, nullptr, &r));
    EXPECT_ERROR(epjit_prove_readiness(nullptr, nullptr, nullptr, &r), EPJIT_ERROR_CONFIG, "exchange is null");
    EXPECT_ERROR(epjit_prove_readiness(ex.get(), nullptr, nullptr, nullptr), EPJIT_ERROR_CONFIG,
                 "epjit_readiness is null");
}

}  // namespace
}  // namespace epjit::tests
