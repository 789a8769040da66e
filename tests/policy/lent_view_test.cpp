// SPDX-License-Identifier: Apache-2.0
// Lent scratch: what a holder notices, and when.
#include "epjit/lent_view.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

namespace epjit {
namespace {

using testing::AllOf;
using testing::HasSubstr;

tensor_view view_of(std::vector<float>& memory, std::int64_t rows, std::int64_t columns, std::int64_t stride = 0) {
    tensor_view v;
    v.data = memory.data();
    v.type = dtype::f32;
    v.rows = rows;
    v.columns = columns;
    v.row_stride = stride;
    return v;
}

static_assert(!std::is_copy_constructible_v<lent_view> && !std::is_copy_assignable_v<lent_view>);
static_assert(std::is_nothrow_move_constructible_v<lent_view>);

TEST(lent_view, is_good_until_the_owner_uses_the_memory_again) {
    std::vector<float> memory(12);
    lease_counter owner;
    const lent_view view = owner.lend("partials", view_of(memory, 3, 4));
    EXPECT_TRUE(view.valid());
    EXPECT_EQ(view.get().data, memory.data());
    EXPECT_EQ(view.get().rows, 3);
    owner.advance();
    EXPECT_FALSE(view.valid());
    try {
        static_cast<void>(view.get());
        FAIL();
    } catch (const stale_view_error& e) {
        EXPECT_EQ(e.lent(), 1U);
        EXPECT_EQ(e.current(), 2U);
        EXPECT_EQ(e.kind(), error_kind::config);
        EXPECT_THAT(e.what(),
                    AllOf(HasSubstr("'partials'"), HasSubstr("generation 1"), HasSubstr("at 2"), HasSubstr("anew")));
    }
    EXPECT_THROW(static_cast<void>(view.row(0)), stale_view_error);
    EXPECT_TRUE(owner.lend("partials", view_of(memory, 3, 4)).valid());
}

TEST(lent_view, notices_the_end_of_its_owner) {
    std::vector<float> memory(4);
    std::optional<lease_counter> owner(std::in_place);
    const lent_view view = owner->lend("rows", view_of(memory, 1, 4));
    owner.reset();
    EXPECT_FALSE(view.valid());
    try {
        static_cast<void>(view.get());
        FAIL();
    } catch (const stale_view_error& e) {
        EXPECT_EQ(e.current(), 0U);
        EXPECT_THAT(e.what(), HasSubstr("owner was destroyed"));
    }
}

TEST(lent_view, a_row_outside_is_an_error_with_the_values) {
    std::vector<float> memory(12);
    lease_counter owner;
    const lent_view view = owner.lend("rows", view_of(memory, 3, 3, 4));
    EXPECT_EQ(view.row(2).data, memory.data() + 8);
    EXPECT_EQ(view.row(2).rows, 1);
    for (const std::int64_t index : {std::int64_t{-1}, std::int64_t{3}, INT64_MAX}) {
        try {
            static_cast<void>(view.row(index));
            FAIL() << index;
        } catch (const config_error& e) {
            EXPECT_THAT(e.what(), AllOf(HasSubstr(std::to_string(index)), HasSubstr("which has 3")));
        }
    }
}

TEST(lent_view, scales_travel_with_a_row) {
    std::vector<unsigned char> rows(2 * 300), scales(2 * 3);
    tensor_view v;
    v.data = rows.data();
    v.type = dtype::fp8_e4m3;
    v.rows = 2;
    v.columns = 300;
    v.scales = scales.data();
    v.scale = scale_type::ue8m0;
    const lease_counter owner;
    const tensor_view second = owner.lend("fp8", v).row(1);
    EXPECT_EQ(second.data, rows.data() + 300);
    EXPECT_EQ(second.scales, scales.data() + 3);
}

TEST(lent_view, moving_leaves_nothing_behind) {
    std::vector<float> memory(4);
    lease_counter owner;
    lent_view first = owner.lend("rows", view_of(memory, 1, 4));
    const lent_view second(std::move(first));
    EXPECT_TRUE(second.valid());
    EXPECT_FALSE(first.valid());  // NOLINT: what is left is looked at
    EXPECT_EQ(first.generation(), 0U);
    EXPECT_THROW(static_cast<void>(first.get()), config_error);
    EXPECT_THROW(static_cast<void>(lent_view().get()), config_error);
    // The owner may move too: its views stay with it.
    lease_counter moved(std::move(owner));
    EXPECT_TRUE(second.valid());
    moved.advance();
    EXPECT_FALSE(second.valid());
}

TEST(lent_view, assigning_a_counter_ends_what_it_lent) {
    std::vector<float> memory(4);
    lease_counter owner;
    const lent_view view = owner.lend("rows", view_of(memory, 1, 4));
    owner = lease_counter();
    EXPECT_FALSE(view.valid());
}

}  // namespace
}  // namespace epjit
