// SPDX-License-Identifier: Apache-2.0
// Behaviour of the host exchange that is worth a case of its own, with results worked out by hand.
#include "epjit/epjit.hpp"
#include "tools/reference/check.hpp"
#include "tools/reference/expert.hpp"
#include "tools/run/layer.hpp"
#include "tools/run/memory.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

namespace epjit {
namespace {

namespace ref = tools::reference;
using testing::ElementsAre;
using testing::HasSubstr;

/// Two ranks, four experts, K = 2, H = 4, f32 throughout, i32 ids.
ref::problem small_problem(const std::vector<std::vector<std::int32_t>>& ids) {
    ref::problem p;
    p.ranks = 2;
    p.experts = 4;
    p.topk = 2;
    p.hidden = 4;
    p.input = p.dispatch = p.combine = dtype::f32;
    p.ids = id_type::i32;
    p.input_stride = p.dispatch_stride = p.combine_stride = 4;
    place_by_default(p);
    p.rank_hosts = {0, 0};
    p.inputs.resize(2);
    for (std::size_t rank = 0; rank < 2; ++rank) {
        ref::rank_input& in = p.inputs[rank];
        in.tokens = static_cast<std::int32_t>(ids[rank].size() / 2);
        in.capacity = 16;
        in.routing.resize(ids[rank].size() * 4);
        std::memcpy(in.routing.data(), ids[rank].data(), in.routing.size());
        in.weights.assign(ids[rank].size(), 1.0f);
        std::vector<float> x(static_cast<std::size_t>(in.tokens) * 4);
        for (std::size_t i = 0; i < x.size(); ++i) {
            x[i] = static_cast<float>(100 * rank + i);
        }
        in.input.resize(x.size() * 4);
        std::memcpy(in.input.data(), x.data(), in.input.size());
    }
    p.expert_scale.assign(4, 1.0f);
    p.expert_bias.assign(16, 0.0f);
    return p;
}

class host_exchange : public testing::Test {
   protected:
    static runtime make_runtime() {
        runtime_options options;
        options.cache_path = "";
        return runtime(options);
    }
    ref::observation run(const ref::problem& p, const tools::layer_options& options = {}) {
        communicator comm = communicator::host(rt, p.ranks);
        exchange ex(comm, tools::config_of(p, exchange_kind::host));
        const auto memory = tools::make_memory_space(comm);
        return tools::run_problem(ex, *memory, p, options);
    }
    runtime rt = make_runtime();
};

TEST_F(host_exchange, rows_lie_by_slot_then_source_rank_then_token) {
    const ref::problem p = small_problem({{0, 1, 1, 3}, {1, 0, 2, 1}});
    const ref::observation seen = run(p);
    EXPECT_THAT(seen.ranks[0].counts, ElementsAre(2, 4));
    EXPECT_THAT(seen.ranks[0].offsets, ElementsAre(0, 2, 6));
    EXPECT_THAT(seen.ranks[0].row_source, ElementsAre(0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 1));
    EXPECT_THAT(seen.ranks[1].counts, ElementsAre(1, 1));
    EXPECT_THAT(seen.ranks[1].row_source, ElementsAre(1, 1, 0, 1));
}

TEST_F(host_exchange, segments_are_padded_to_the_alignment_with_zeros) {
    ref::problem p = small_problem({{0, 1, 1, 3}, {1, 0, 2, 1}});
    p.alignment = 4;
    const ref::observation seen = run(p);
    EXPECT_THAT(seen.ranks[0].offsets, ElementsAre(0, 4, 8));
    EXPECT_EQ(seen.ranks[0].num_rows, 8);
    EXPECT_TRUE(ref::check_all(ref::oracle(p), seen).ok());
    EXPECT_EQ(seen.ranks[0].row_source[4], -1);
}

TEST_F(host_exchange, bad_and_duplicate_ids_are_dropped_and_counted) {
    const ref::problem p = small_problem({{0, 0, 7, 3}, {-1, -1, -5, 1}});
    const ref::observation seen = run(p);
    EXPECT_EQ(seen.bad_ids, 2u);
    EXPECT_EQ(seen.duplicate_ids, 1u);
    EXPECT_THAT(seen.ranks[0].counts, ElementsAre(1, 1));
    EXPECT_THAT(seen.ranks[1].counts, ElementsAre(0, 1));
    // Token 0 of rank 1 has no expert: zeros.
    std::vector<float> out(8);
    std::memcpy(out.data(), seen.ranks[1].result.data(), 32);
    EXPECT_THAT(out, ElementsAre(0, 0, 0, 0, 104, 105, 106, 107));
}

TEST_F(host_exchange, over_capacity_drops_the_tail_in_slot_source_token_order) {
    ref::problem p = small_problem({{0, 1, 1, 3}, {1, 0, 2, 1}});
    p.mode = mode::fixed;
    p.overflow = overflow::drop;
    p.inputs[0].capacity = 4;
    p.zero_tail = true;
    const ref::observation seen = run(p);
    EXPECT_THAT(seen.ranks[0].counts, ElementsAre(2, 2));
    EXPECT_THAT(seen.ranks[0].offsets, ElementsAre(0, 2, 4));
    EXPECT_THAT(seen.ranks[0].row_source, ElementsAre(0, 0, 1, 0, 0, 0, 0, 1));
    EXPECT_EQ(seen.dropped_rows, 2u);
    EXPECT_TRUE(ref::check_all(ref::oracle(p), seen).ok());
}

TEST_F(host_exchange, over_capacity_is_an_error_when_asked_for) {
    for (const mode m : {mode::fixed, mode::exact}) {
        ref::problem p = small_problem({{0, 1, 1, 3}, {1, 0, 2, 1}});
        p.mode = m;
        p.layout = m == mode::exact ? layout::masked : layout::expert_major;
        p.inputs[0].capacity = 2;
        try {
            run(p);
            FAIL() << name(m);
        } catch (const capacity_error& e) {
            EXPECT_THAT(e.what(), HasSubstr("over the capacity"));
            EXPECT_THAT(e.remedy(), HasSubstr("worst_case_rows"));
        }
    }
}

TEST_F(host_exchange, replicas_are_taken_by_source_rank_plus_token) {
    ref::problem p = small_problem({{0, -1, 0, -1, 0, -1}, {0, -1, 0, -1}});
    p.default_placement = false;
    p.slot_expert = {0, 1, 2, 3, 0};  // expert 0 also on rank 1
    p.rank_slots = {2, 3};
    const ref::observation seen = run(p);
    EXPECT_THAT(seen.ranks[0].row_source, ElementsAre(0, 0, 0, 2, 1, 1));
    EXPECT_THAT(seen.ranks[1].row_source, ElementsAre(0, 1, 1, 0));
    EXPECT_TRUE(ref::check_all(ref::oracle(p), seen).ok());
}

TEST_F(host_exchange, flat_gives_one_row_a_token_and_rank_with_local_ids) {
    ref::problem p = small_problem({{1, 0, 3, 0}, {2, 3}});
    p.layout = layout::flat;
    const ref::observation seen = run(p);
    EXPECT_EQ(seen.ranks[0].num_rows, 2);
    EXPECT_THAT(seen.ranks[0].local_ids, ElementsAre(0, 1, 0, -1));
    EXPECT_THAT(seen.ranks[0].counts, ElementsAre(2, 1));
    EXPECT_THAT(seen.ranks[0].offsets, ElementsAre(0, 0, 2));
    EXPECT_EQ(seen.ranks[1].num_rows, 2);
    EXPECT_TRUE(ref::check_all(ref::oracle(p), seen).ok());
}

/// Four ranks on two hosts hold one expert each of the same bf16 token: the declared orders can differ.
TEST_F(host_exchange, reductions_sum_in_their_declared_order) {
    ref::problem p;
    p.ranks = 4;
    p.experts = 4;
    p.topk = 4;
    p.hidden = 1;
    p.input_stride = p.dispatch_stride = p.combine_stride = 1;
    place_by_default(p);
    p.rank_hosts = {0, 1, 1, 1};
    p.inputs.resize(4);
    p.inputs[0].tokens = 1;
    const std::int64_t ids[] = {0, 1, 2, 3};
    p.inputs[0].routing.resize(sizeof(ids));
    std::memcpy(p.inputs[0].routing.data(), ids, sizeof(ids));
    p.inputs[0].weights.assign(4, 1.0f);
    p.inputs[0].input = {std::byte{0x80}, std::byte{0x3f}};  // 1.0
    p.expert_scale = {1.0f, 0x1p-8f, 0x1p-8f, 0x1p-9f};
    p.expert_bias.assign(4, 0.0f);
    const auto combined = [&](reduction r) {
        p.reduction = r;
        const ref::observation seen = run(p);
        EXPECT_TRUE(ref::check_all(ref::oracle(p), seen).ok());
        return std::to_integer<int>(seen.ranks[0].result[0]) | std::to_integer<int>(seen.ranks[0].result[1]) << 8;
    };
    // fp32 sums of 1 + 2.5 * 2^-8, rounded once to steps of 2^-7.
    EXPECT_EQ(combined(reduction::per_row), 0x3f81);
    EXPECT_EQ(combined(reduction::per_rank), 0x3f81);
    EXPECT_EQ(combined(reduction::per_host), 0x3f81);
    // Host 1's partial 2^-8 + 2^-17 loses its tail on the wire, so that the last sum ties to even.
    p.expert_scale = {1.0f, 0x1p-8f, 0x1p-17f, 0x1p-30f};
    EXPECT_EQ(combined(reduction::per_row), 0x3f81);
    EXPECT_EQ(combined(reduction::per_rank), 0x3f81);
    EXPECT_EQ(combined(reduction::per_host), 0x3f80);
}

void* counting_allocate(void* user, std::size_t bytes) {
    ++*static_cast<int*>(user);
    return std::aligned_alloc(256, (bytes + 255) / 256 * 256);
}
void counting_release(void* user, void* pointer) {
    --*static_cast<int*>(user);
    std::free(pointer);
}

TEST_F(host_exchange, memory_comes_from_the_callers_hooks_and_goes_back) {
    int live = 0;
    {
        const ref::problem p = small_problem({{0, 1}, {2, 3}});
        communicator comm = communicator::host(rt, 2);
        exchange_config config = tools::config_of(p, exchange_kind::host);
        config.memory = {counting_allocate, counting_release, &live};
        exchange ex(comm, config);
        EXPECT_EQ(live, 1);
        EXPECT_GT(ex.workspace_bytes(), 0u);
        const std::vector<plan_args> args{{p.inputs[0].routing.data(), 1, 0}, {p.inputs[1].routing.data(), 1, 0}};
        plan made = ex.make_plan(args, tools::plan_options_of(p), nullptr);
        EXPECT_EQ(live, 2);
        made = ex.make_plan(args, tools::plan_options_of(p), nullptr, std::move(made));
        EXPECT_EQ(live, 2);  // the plan's memory was taken over
    }
    EXPECT_EQ(live, 0);
}

TEST_F(host_exchange, a_hook_without_memory_is_an_error_that_names_the_size) {
    const ref::problem p = small_problem({{0, 1}, {2, 3}});
    communicator comm = communicator::host(rt, 2);
    exchange_config config = tools::config_of(p, exchange_kind::host);
    config.memory = {[](void*, std::size_t) -> void* { return nullptr; }, [](void*, void*) {}, nullptr};
    try {
        exchange ex(comm, config);
        FAIL();
    } catch (const error& e) {
        EXPECT_THAT(e.what(), HasSubstr("bytes of host memory"));
        EXPECT_THAT(e.what(), HasSubstr("hook"));
    }
}

}  // namespace
}  // namespace epjit
