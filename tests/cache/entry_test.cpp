// SPDX-License-Identifier: Apache-2.0
// The entry format: every damage is seen, whatever the bytes; a change of format demands a version bump.
#include "tests/cache/support.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

namespace epjit::cache::test {
namespace {

using detail::decode_entry;
using detail::decode_head;
using detail::encode_entry;
using detail::entry_header;
using testing::HasSubstr;

constexpr std::int64_t created = 1'700'000'000'123'456'789;

std::vector<std::byte> small_entry() {
    return encode_entry(make_artifact(job(0), compiler_a(), 64), created);
}

TEST(cache_entry, decodes_to_the_artifact_that_was_encoded) {
    for (const std::size_t bytes : {std::size_t{1}, std::size_t{5000}, std::size_t{3} << 20}) {
        const auto value = make_artifact(job(1), compiler_b(), bytes);
        std::string why;
        const auto entry = decode_entry(encode_entry(value, created), why);
        ASSERT_TRUE(entry) << why;
        EXPECT_EQ(entry->value, value);
        EXPECT_EQ(entry->created_ns, created);
    }
}

TEST(cache_entry, refuses_to_encode_an_empty_cubin) {
    EXPECT_THROW(encode_entry(make_artifact(job(0), compiler_a(), 0), created), cache_error);
}

TEST(cache_entry, every_flipped_bit_of_a_small_entry_is_detected) {
    auto bytes = small_entry();
    std::string why;
    for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
        bytes[bit / 8] ^= std::byte{1} << (bit % 8);
        EXPECT_FALSE(decode_entry(bytes, why)) << "bit " << bit;
        bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    }
    EXPECT_TRUE(decode_entry(bytes, why));
}

TEST(cache_entry, sampled_flips_of_a_large_entry_are_detected) {
    auto bytes = encode_entry(make_artifact(job(0), compiler_a(), 200'000), created);
    std::mt19937_64 random(testing::UnitTest::GetInstance()->random_seed());
    std::string why;
    for (int n = 0; n < 2000; ++n) {
        const std::size_t bit = random() % (8 * bytes.size());
        bytes[bit / 8] ^= std::byte{1} << (bit % 8);
        EXPECT_FALSE(decode_entry(bytes, why)) << "bit " << bit;
        bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    }
}

TEST(cache_entry, a_cut_at_every_length_and_any_growth_is_detected) {
    const auto bytes = small_entry();
    std::string why;
    for (std::size_t length = 0; length < bytes.size(); ++length) {
        EXPECT_FALSE(decode_entry(std::span(bytes).first(length), why)) << length;
    }
    auto longer = bytes;
    longer.push_back(std::byte{0});
    EXPECT_FALSE(decode_entry(longer, why));
}

/// Makes both checksums right again, so that a mutation reaches the parser behind them.
void repair_checksums(std::vector<std::byte>& bytes) {
    entry_header header;
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.head_bytes <= bytes.size() - 32) {
        const auto head = jit::hash_bytes(std::span(bytes).first(static_cast<std::size_t>(header.head_bytes)));
        std::memcpy(bytes.data() + header.head_bytes, head.bytes.data(), 16);
    }
    const auto all = jit::hash_bytes(std::span(bytes).first(bytes.size() - 16));
    std::memcpy(bytes.data() + bytes.size() - 16, all.bytes.data(), 16);
}

TEST(cache_entry, the_parser_survives_random_mutations_behind_right_checksums) {
    const auto original = small_entry();
    std::mt19937_64 random(testing::UnitTest::GetInstance()->random_seed());
    int accepted = 0;
    for (int n = 0; n < 20'000; ++n) {
        auto bytes = original;
        for (std::size_t flips = 1 + random() % 8; flips > 0; --flips) {
            const std::size_t at = random() % bytes.size();
            // Lengths and counts near their limits find more than noise does.
            const std::uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff, static_cast<std::uint8_t>(random())};
            bytes[at] = std::byte{values[random() % std::size(values)]};
        }
        entry_header header;
        std::memcpy(&header, bytes.data(), sizeof header);
        if (random() % 4 == 0) {
            bytes.resize(64 + random() % bytes.size());
            std::memcpy(&header, bytes.data(), std::min(sizeof header, bytes.size()));
        }
        if (bytes.size() >= sizeof header + 32) {
            header.total_bytes = bytes.size();
            std::memcpy(header.magic, detail::entry_magic, sizeof header.magic);
            header.version = detail::entry_version;
            header.header_bytes = sizeof header;
            header.reserved = 0;
            std::memcpy(bytes.data(), &header, sizeof header);
            repair_checksums(bytes);
        }
        std::string why;
        const auto entry = decode_entry(bytes, why);
        accepted += entry ? 1 : 0;
        EXPECT_TRUE(entry || !why.empty());
        decode_head(std::span(bytes).first(bytes.size() / 2), bytes.size(), why);
    }
    EXPECT_GT(accepted, 100) << "mutations must get past the checksums, or this proves nothing";
}

TEST(cache_entry, another_version_is_refused_and_both_versions_are_named) {
    auto bytes = small_entry();
    const std::uint32_t next = detail::entry_version + 1;
    std::memcpy(bytes.data() + offsetof(entry_header, version), &next, sizeof next);
    repair_checksums(bytes);
    std::string why;
    EXPECT_FALSE(decode_entry(bytes, why));
    EXPECT_THAT(why, HasSubstr(fmt::format("version {}", next)));
    EXPECT_THAT(why, HasSubstr(fmt::format("reads version {}", detail::entry_version)));
}

TEST(cache_entry, the_head_alone_gives_a_listing_and_says_how_much_it_needs) {
    const auto value = make_artifact(job(0), compiler_a(), 100'000);
    const auto bytes = encode_entry(value, created);
    std::string why;
    std::uint64_t need = 0;
    EXPECT_FALSE(decode_head(std::span(bytes).first(120), bytes.size(), why, &need));
    ASSERT_GT(need, 120U);
    const auto head = decode_head(std::span(bytes).first(need), bytes.size(), why);
    ASSERT_TRUE(head) << why;
    EXPECT_EQ(head->value.kernels, value.kernels);
    EXPECT_EQ(head->value.arch, value.arch);
    EXPECT_TRUE(head->value.cubin.empty());
}

TEST(cache_entry, names_carry_key_and_compiler_and_nothing_else_parses) {
    const auto name = detail::entry_name(job(0).key, compiler_a().id);
    const auto parsed = detail::parse_entry_name(name);
    ASSERT_TRUE(parsed);
    EXPECT_EQ(parsed->key, job(0).key);
    EXPECT_EQ(parsed->compiler, compiler_a().id);
    for (const std::string& other : {name + "x", name.substr(1), "X" + name.substr(1), std::string("CACHEDIR.TAG"),
                                     std::string(), detail::make_temp_name(), name + ".tmp-1"}) {
        EXPECT_FALSE(detail::parse_entry_name(other)) << other;
    }
}

/// The artifact of the golden file: every field set, by hand.
jit::artifact golden_artifact() {
    jit::artifact value;
    for (std::size_t i = 0; i < 16; ++i) {
        value.key.bytes[i] = static_cast<std::uint8_t>(i);
        value.compiler.id.bytes[i] = static_cast<std::uint8_t>(0xf0 + i);
    }
    value.compiler.description = "NVRTC 13.0.88";
    value.spec = "plan sm_90a E=256 S=256 R=8 K=8 dense threads=512";
    value.arch = "sm_90a";
    value.kernels = {{"plan_kernel", "_Z11plan_kernelv", 40, 1024, 0}, {"scan_kernel", "_Z11scan_kernelv", 32, 0, 8}};
    for (int i = 0; i < 256; ++i) {
        value.cubin.push_back(static_cast<std::byte>(i));
    }
    value.source = "#include \"plan/plan.cuh\"\n";
    value.options = "--gpu-architecture=sm_90a --std=c++20";
    value.log = "ptxas info    : Used 40 registers\n";
    value.library_version = "0.1.0";
    value.template_digest = "00112233445566778899aabbccddeeff";
    value.compile_ms = 21.5;
    value.spill_exception = "a row stays in registers";
    return value;
}

TEST(cache_entry, a_format_change_demands_a_version_bump) {
    const std::string path = fmt::format("{}/entry_v{}.epjit", EPJIT_CACHE_GOLDEN_DIR, detail::entry_version);
    const auto bytes = encode_entry(golden_artifact(), created);
    const std::string now(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (std::getenv("EPJIT_WRITE_GOLDEN") != nullptr && !std::ifstream(path)) {
        write_file(path, now);  // never over an old one
    }
    const std::string golden = read_file(path);
    ASSERT_FALSE(golden.empty()) << path
                                 << " is missing: a new entry_version needs a new golden file (EPJIT_WRITE_GOLDEN=1 "
                                    "writes it) and a new extension in entry_name()";
    EXPECT_EQ(now, golden) << "the bytes of version " << detail::entry_version
                           << " have changed: raise entry_version in cache/entry.hpp and keep the old golden file";
    std::string why;
    const auto entry = decode_entry(std::as_bytes(std::span(golden.data(), golden.size())), why);
    ASSERT_TRUE(entry) << why;
    EXPECT_EQ(entry->value, golden_artifact());
}

}  // namespace
}  // namespace epjit::cache::test
