// SPDX-License-Identifier: Apache-2.0
// Resident tensors: who may be one, and that each shard is uploaded once.
#include "epjit/residency.hpp"

#include "epjit/error.hpp"
#include "epjit/runtime.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

namespace epjit {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string refused(const std::function<void()>& call) {
    try {
        call();
    } catch (const config_error& e) {
        return e.what();
    }
    return "not refused";
}

constexpr residence resident[] = {residence::replicated, residence::stacked};

TEST(residency, an_output_or_a_per_step_tensor_is_refused_whichever_way_the_flag_is_set) {
    for (const tensor_use use : {tensor_use::output, tensor_use::per_step}) {
        for (const residence where : resident) {
            SCOPED_TRACE(std::string(name(use)) + " " + std::string(name(where)));
            const auto expected =
                AllOf(HasSubstr("'x_next'"), HasSubstr(std::string(name(use))), HasSubstr("cannot be resident"));
            EXPECT_THAT(refused([&] { tensor_spec("x_next", use, where); }), expected);
            // After construction, by value and by text.
            tensor_spec spec("x_next", use);
            EXPECT_THAT(refused([&] { spec.set_residence(where); }), expected);
            EXPECT_THAT(refused([&] { spec.set_residence(name(where)); }), expected);
            EXPECT_EQ(spec.where(), residence::none);
            // The other way round: what is resident becomes an output.
            tensor_spec weights("x_next", tensor_use::constant, where);
            EXPECT_THAT(refused([&] { weights.set_use(use); }), expected);
            EXPECT_EQ(weights.use(), tensor_use::constant);
            EXPECT_EQ(weights.where(), where);
        }
    }
}

TEST(residency, state_is_resident_only_when_it_says_inout) {
    for (const residence where : resident) {
        EXPECT_THAT(refused([&] { tensor_spec("kv", tensor_use::state, where); }), HasSubstr("needs inout"));
        tensor_spec spec("kv", tensor_use::state);
        EXPECT_THAT(refused([&] { spec.set_residence(where); }), HasSubstr("needs inout"));
        spec.set_residence(where, true);
        EXPECT_TRUE(spec.inout());
        EXPECT_THAT(refused([&] { spec.set_use(tensor_use::constant); }), HasSubstr("inout"));
        EXPECT_THAT(refused([&] { spec.set_use(tensor_use::output); }), HasSubstr("'kv'"));
        EXPECT_EQ(spec.use(), tensor_use::state);
    }
    for (const tensor_use use : {tensor_use::constant, tensor_use::per_step, tensor_use::output}) {
        EXPECT_THAT(refused([&] { tensor_spec("w", use, residence::none, true); }), HasSubstr("inout"));
    }
}

TEST(residency, a_marking_that_does_not_say_where_is_refused) {
    tensor_spec spec("w", tensor_use::constant);
    for (const char* text : {"true", "True", "1", "yes", "resident", "", "Stacked", "stacked "}) {
        EXPECT_THAT(refused([&] { spec.set_residence(std::string_view(text)); }),
                    AllOf(HasSubstr("does not say where"), HasSubstr("stacked (shard i on card i)")))
            << text;
        EXPECT_EQ(spec.where(), residence::none);
    }
    spec.set_residence("stacked");
    EXPECT_EQ(spec.where(), residence::stacked);
    EXPECT_THAT(refused([] { tensor_spec("", tensor_use::constant); }), HasSubstr("1 to 63"));
    EXPECT_THAT(refused([] { tensor_spec(std::string(64, 'x'), tensor_use::constant); }), HasSubstr("64 characters"));
}

class registry : public testing::Test {
   protected:
    static runtime make_runtime() {
        runtime_options options;
        options.cache_path = "";
        return runtime(options);
    }
    runtime rt = make_runtime();
    communicator comm = communicator::host(rt, 3);
};

TEST_F(registry, shard_i_lies_with_rank_i_and_is_uploaded_once) {
    resident_registry tensors(comm);
    const std::vector<float> weights = {1, 2, 3, 4, 5, 6};
    const std::size_t shards[] = {12, 0, 12};  // a rank may hold no expert
    const tensor_spec spec("expert_weights", tensor_use::constant, residence::stacked);
    const int number = tensors.add(spec, weights.data(), shards);
    EXPECT_EQ(std::memcmp(tensors.get(number, 0), weights.data(), 12), 0);
    EXPECT_EQ(tensors.get(number, 1), nullptr);
    EXPECT_EQ(std::memcmp(tensors.get(number, 2), weights.data() + 3, 12), 0);
    EXPECT_EQ(tensors.bytes(number, 2), 12U);
    EXPECT_EQ(rt.counters().uploads, 2U);
    // Every later step finds it there.
    const void* const where = tensors.get(number, 0);
    for (int step = 0; step < 100; ++step) {
        EXPECT_EQ(tensors.add(spec, weights.data(), shards), number);
        EXPECT_EQ(tensors.get(tensors.find("expert_weights"), 0), where);
    }
    EXPECT_EQ(tensors.uploads(), 2U);
    EXPECT_EQ(rt.counters().uploads, 2U);
}

TEST_F(registry, ranks_of_one_device_share_a_replicated_constant_but_not_state) {
    resident_registry tensors(comm);
    std::vector<std::int32_t> table(5);
    std::iota(table.begin(), table.end(), 7);
    const std::size_t bytes[] = {table.size() * 4};
    const int shared = tensors.add({"tid2eid", tensor_use::constant, residence::replicated}, table.data(), bytes);
    EXPECT_EQ(tensors.get(shared, 0), tensors.get(shared, 2));
    EXPECT_EQ(tensors.uploads(), 1U);
    const int own = tensors.add({"counts", tensor_use::state, residence::replicated, true}, table.data(), bytes);
    EXPECT_NE(tensors.get(own, 0), tensors.get(own, 2));
    EXPECT_EQ(tensors.uploads(), 4U);
    static_cast<std::int32_t*>(tensors.get_inout(own, 1))[0] = 100;
    EXPECT_EQ(static_cast<const std::int32_t*>(tensors.get(own, 1))[0], 100);
    EXPECT_EQ(static_cast<const std::int32_t*>(tensors.get(own, 0))[0], 7);
    EXPECT_THAT(refused([&] { static_cast<void>(tensors.get_inout(shared, 0)); }),
                AllOf(HasSubstr("'tid2eid'"), HasSubstr("inout")));
}

TEST_F(registry, refuses_what_it_cannot_place) {
    resident_registry tensors(comm);
    const std::vector<float> data(6);
    const std::size_t one[] = {24}, three[] = {8, 8, 8};
    EXPECT_THAT(refused([&] {
                    tensors.add({"x", tensor_use::constant}, data.data(), one);
                }),
                HasSubstr("not resident"));
    EXPECT_THAT(refused([&] {
                    tensors.add({"x", tensor_use::constant, residence::stacked}, data.data(), one);
                }),
                HasSubstr("1 shards, expected 3"));
    EXPECT_THAT(refused([&] {
                    tensors.add({"x", tensor_use::constant, residence::replicated}, data.data(), three);
                }),
                HasSubstr("3 shards, expected 1"));
    EXPECT_THAT(refused([&] {
                    tensors.add({"x", tensor_use::constant, residence::stacked}, nullptr, three);
                }),
                HasSubstr("null"));
    EXPECT_EQ(tensors.find("x"), -1);
    EXPECT_EQ(tensors.uploads(), 0U);
    const int number = tensors.add({"x", tensor_use::constant, residence::stacked}, data.data(), three);
    const std::vector<float> other(6, 1.0F);
    EXPECT_THAT(refused([&] {
                    tensors.add({"x", tensor_use::constant, residence::stacked}, other.data(), three);
                }),
                HasSubstr("another content"));
    EXPECT_THAT(refused([&] { static_cast<void>(tensors.get(number, 3)); }), HasSubstr("driven rank 3, there are 3"));
    EXPECT_THAT(refused([&] { static_cast<void>(tensors.get(7, 0)); }), HasSubstr("number 7"));
    resident_registry taken(std::move(tensors));
    EXPECT_THAT(refused([&] { static_cast<void>(tensors.get(0, 0)); }), HasSubstr("moved from"));  // NOLINT
    EXPECT_NE(taken.get(number, 0), nullptr);
}

TEST_F(registry, memory_comes_from_the_hooks) {
    struct counted {
        int taken = 0, given = 0;
    } counts;
    memory_hooks hooks;
    hooks.user = &counts;
    hooks.allocate = [](void* user, std::size_t bytes) -> void* {
        ++static_cast<counted*>(user)->taken;
        return std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    };
    hooks.release = [](void* user, void* pointer) {
        ++static_cast<counted*>(user)->given;
        std::free(pointer);
    };
    {
        resident_registry tensors(comm, hooks);
        const std::vector<float> data(6);
        const std::size_t three[] = {8, 8, 8};
        tensors.add({"x", tensor_use::constant, residence::stacked}, data.data(), three);
    }
    EXPECT_EQ(counts.taken, 3);
    EXPECT_EQ(counts.given, 3);
}

}  // namespace
}  // namespace epjit
