// SPDX-License-Identifier: Apache-2.0
// Lookup in memory: right under growth and concurrent inserts, and without an allocation.
#include "cache/memory_map.hpp"
#include "tests/cache/counted_new.hpp"
#include "tests/cache/support.hpp"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

namespace epjit::cache::test {
namespace {

detail::memory_map::value value_of(int n, const jit::compiler_identity& compiler) {
    return std::make_shared<const jit::artifact>(make_artifact(job(n), compiler, 8));
}

TEST(cache_memory, a_lookup_allocates_nothing_and_tells_builds_apart) {
    detail::memory_map map;
    const auto a = map.insert(value_of(0, compiler_a()));
    const auto b = map.insert(value_of(0, compiler_b()));
    EXPECT_EQ(map.insert(value_of(0, compiler_a())), a) << "what is there stays";
    const jit::digest key = job(0).key, other = job(1).key, id_a = compiler_a().id, id_b = compiler_b().id;
    const std::uint64_t before = allocations();
    const auto* found_a = map.find(key, &id_a);
    const auto* found_b = map.find(key, &id_b);
    const auto* any = map.find(key, nullptr);
    const auto* none = map.find(other, nullptr);
    const std::uint64_t after = allocations();
    EXPECT_EQ(after, before);
    EXPECT_EQ(*found_a, a);
    EXPECT_EQ(*found_b, b);
    EXPECT_NE(any, nullptr);
    EXPECT_EQ(none, nullptr);
    EXPECT_GT(before, 0U) << "the counter works";
}

TEST(cache_memory, readers_see_every_earlier_value_while_writers_grow_the_table) {
    detail::memory_map map;
    constexpr int count = 300;
    std::atomic<int> inserted{0};
    std::atomic<int> wrong{0};
    const auto all = jobs(count);
    const jit::digest compiler = compiler_a().id;
    std::vector<std::thread> readers;
    for (int t = 0; t < 2; ++t) {
        readers.emplace_back([&] {
            while (inserted < count) {
                const int upto = inserted;
                for (int n = 0; n < upto; ++n) {
                    const auto* found = map.find(all[static_cast<std::size_t>(n)].key, &compiler);
                    wrong += found == nullptr || (*found)->key != all[static_cast<std::size_t>(n)].key ? 1 : 0;
                }
            }
        });
    }
    for (int n = 0; n < count; ++n) {
        map.insert(value_of(n, compiler_a()));
        ++inserted;
    }
    for (auto& reader : readers) {
        reader.join();
    }
    EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace epjit::cache::test
