// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"
#include "epjit/jit/hash.hpp"
#include "epjit/types.hpp"

#include <gtest/gtest.h>

#include <string>

namespace epjit {
namespace {

TEST(types, names_parse_back_with_hyphen_or_underscore) {
    EXPECT_EQ(parse<layout>("expert-major"), layout::expert_major);
    EXPECT_EQ(parse<layout>("expert_major"), layout::expert_major);
    EXPECT_EQ(parse<exchange_kind>("auto"), exchange_kind::automatic);
    EXPECT_EQ(parse<mode>("static"), mode::fixed);
    EXPECT_EQ(parse<dtype>("bf17"), std::nullopt);
    EXPECT_EQ(name(*parse<reduction>("per_host")), "per_host");
}

TEST(hash, is_xxh3_128_in_canonical_order_and_hex_round_trips) {
    // Known answer of XXH3-128 for the empty input, seed 0.
    EXPECT_EQ(jit::hash_text("").hex(), "99aa06d3014798d86001c324468d497f");
    const auto d = jit::hash_text("epjit");
    EXPECT_EQ(jit::digest::from_hex(d.hex()), d);
    EXPECT_EQ(jit::digest::from_hex(d.hex().substr(1)), std::nullopt);
    EXPECT_EQ(jit::digest::from_hex(std::string(32, 'g')), std::nullopt);
}

TEST(hash, fields_do_not_collide_by_concatenation) {
    const auto a = jit::field_hasher().add("ab").add("c").finish();
    const auto b = jit::field_hasher().add("a").add("bc").finish();
    EXPECT_NE(a, b);
}

TEST(error, what_holds_message_and_remedy) {
    const config_error e("hidden is 0", "pass a positive hidden size");
    EXPECT_STREQ(e.what(), "hidden is 0; pass a positive hidden size");
    EXPECT_EQ(e.message(), "hidden is 0");
    EXPECT_EQ(e.kind(), error_kind::config);
}

}  // namespace
}  // namespace epjit
