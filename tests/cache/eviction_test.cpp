// SPDX-License-Identifier: Apache-2.0
// The bounds hold, the least recently used goes, nothing in use goes, leftovers are swept.
#include "tests/cache/support.hpp"

#include <gmock/gmock.h>

#include <filesystem>

namespace epjit::cache::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr std::size_t cubin_bytes = 10'000;

std::uint64_t bytes_of_one() {
    return detail::encode_entry(make_artifact(job(0), compiler_a(), cubin_bytes), 0).size() +
           16;  // numbers in specs vary
}

std::string path_of(const temp_dir& dir, int n) {
    const auto found = files_below(dir / "cache", detail::entry_name(job(n).key, compiler_a().id));
    return found.empty() ? "" : found[0];
}

std::uint64_t total_bytes(const std::string& path) {
    std::uint64_t total = 0;
    for (const auto& file : files_below(path, ".epjit")) {
        total += fs::file_size(file);
    }
    return total;
}

void publish(store& cache, int n) {
    EXPECT_TRUE(cache.publish(make_artifact(job(n), compiler_a(), cubin_bytes))) << n;
}

TEST(cache_eviction, the_least_recently_used_goes_and_a_use_counts) {
    const temp_dir dir;
    auto options = options_for(dir / "cache");
    options.max_bytes = 4 * bytes_of_one();
    {
        store cache(options);
        for (int n = 0; n < 4; ++n) {
            publish(cache, n);
            set_mtime(path_of(dir, n), 20'000 - 1000 * n);
        }
        EXPECT_EQ(cache.counters().evicted, 0U);
    }
    // The oldest is used by a process that ends: its mark of use is renewed, atime plays no part.
    ASSERT_TRUE(store(options).find(job(0).key, nullptr));
    store cache(options);
    publish(cache, 4);
    EXPECT_EQ(cache.counters().evicted, 1U);
    EXPECT_EQ(path_of(dir, 1), "");
    publish(cache, 5);
    EXPECT_EQ(path_of(dir, 2), "");
    for (const int n : {0, 3, 4, 5}) {
        EXPECT_NE(path_of(dir, n), "") << n;
    }
}

TEST(cache_eviction, a_use_is_marked_at_most_once_an_hour) {
    const temp_dir dir;
    store(options_for(dir / "cache")).publish(make_artifact(job(0), compiler_a()));
    for (const auto& [age, touched] : {std::pair(1000, false), std::pair(4000, true)}) {
        set_mtime(path_of(dir, 0), age);
        const auto before = fs::last_write_time(path_of(dir, 0));
        ASSERT_TRUE(store(options_for(dir / "cache")).find(job(0).key, nullptr));
        EXPECT_EQ(fs::last_write_time(path_of(dir, 0)) != before, touched) << age;
    }
}

TEST(cache_eviction, the_file_count_is_bounded_too) {
    const temp_dir dir;
    auto options = options_for(dir / "cache");
    options.max_files = 5;
    store cache(options);
    for (int n = 0; n < 12; ++n) {
        publish(cache, n);
    }
    EXPECT_THAT(files_below(dir / "cache", ".epjit"), SizeIs(5));
    EXPECT_EQ(cache.counters().evicted, 7U);
}

TEST(cache_eviction, nothing_in_use_goes_and_what_does_not_fit_is_not_stored) {
    const temp_dir dir;
    auto options = options_for(dir / "cache");
    options.max_bytes = 3 * bytes_of_one();
    fake_compiler compiler;
    compiler.cubin_bytes = cubin_bytes;
    auto user = std::make_unique<store>(options);  // as another process: descriptions of its own
    for (const auto& each : user->get(jobs(3), &compiler, 1)) {
        EXPECT_TRUE(each.stored);
    }
    for (int n = 0; n < 3; ++n) {
        set_mtime(path_of(dir, n), 100'000);
    }
    log_lines log;
    options.log = log.get();
    store cache(options);
    EXPECT_EQ(cache.prune(0), 0U);
    const auto got = cache.get(std::vector{job(3)}, &compiler, 1);
    EXPECT_NE(got[0].value, nullptr);
    EXPECT_FALSE(got[0].stored);
    EXPECT_THAT(log.warnings(),
                testing::ElementsAre(testing::AllOf(HasSubstr("in use"), HasSubstr("EPJIT_CACHE_MAX_BYTES"))));
    EXPECT_LE(total_bytes(dir / "cache"), options.max_bytes);
    for (int n = 0; n < 3; ++n) {
        EXPECT_NE(path_of(dir, n), "");
    }
    user.reset();  // the user ends
    EXPECT_EQ(cache.prune(std::nullopt), 0U);
    publish(cache, 4);
    EXPECT_THAT(files_below(dir / "cache", ".epjit"), SizeIs(3));
    EXPECT_EQ(cache.prune(0), 3U);
    EXPECT_THAT(files_below(dir / "cache", ".epjit"), IsEmpty());
}

TEST(cache_eviction, bad_files_count_and_go_first) {
    const temp_dir dir;
    auto options = options_for(dir / "cache");
    options.max_bytes = 4 * bytes_of_one();
    {
        store cache(options);
        for (int n = 0; n < 4; ++n) {
            publish(cache, n);
        }
        fs::create_directory(dir / "cache/bad");
        ::chmod((dir / "cache/bad").c_str(), 0700);
        fs::rename(path_of(dir, 3), dir / "cache/bad/one");
    }
    store cache(options);
    publish(cache, 4);
    EXPECT_FALSE(fs::exists(dir / "cache/bad/one"));
    EXPECT_EQ(cache.counters().evicted, 0U);
    EXPECT_THAT(files_below(dir / "cache", ".epjit"), SizeIs(4));
}

TEST(cache_eviction, an_entry_larger_than_the_bound_is_served_and_not_stored) {
    const temp_dir dir;
    log_lines log;
    auto options = options_for(dir / "cache", &log);
    options.max_bytes = 5000;
    fake_compiler compiler;
    compiler.cubin_bytes = cubin_bytes;
    store cache(options);
    const auto got = cache.get(jobs(2), &compiler, 1);
    EXPECT_NE(got[1].value, nullptr);
    EXPECT_FALSE(got[1].stored);
    EXPECT_THAT(log.warnings(), SizeIs(1));
    EXPECT_THAT(files_below(dir / "cache", ".epjit"), IsEmpty());
}

TEST(cache_eviction, leftovers_older_than_an_hour_are_swept_and_younger_ones_never) {
    const temp_dir dir;
    store(options_for(dir / "cache")).publish(make_artifact(job(0), compiler_a()));
    const std::string sub = fs::path(path_of(dir, 0)).parent_path().string();
    write_file(sub + "/.tmp-1-00", "old");
    write_file(sub + "/.tmp-2-00", "young");
    set_mtime(sub + "/.tmp-1-00", 3700);
    set_mtime(sub + "/.tmp-2-00", 3500);
    store cache(options_for(dir / "cache"));
    EXPECT_THAT(cache.list(), SizeIs(1));
    EXPECT_EQ(cache.verify().entries, 1U);
    publish(cache, 1);
    EXPECT_FALSE(fs::exists(sub + "/.tmp-1-00"));
    EXPECT_TRUE(fs::exists(sub + "/.tmp-2-00"));
}

TEST(cache_eviction, a_file_that_vanishes_while_it_is_evicted_or_read_is_no_failure) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "cache")).get(jobs(3), &compiler, 1);
    /// Removes the entry after it was opened, before it is read.
    class unlinking : public failing_ops {
       public:
        std::string path;
        int removed = 0;
        ssize_t read(int fd, void* to, std::size_t bytes) noexcept override {
            removed += ::unlink(path.c_str()) == 0 ? 1 : 0;
            return failing_ops::read(fd, to, bytes);
        }
    } ops;
    ops.path = path_of(dir, 1);
    store cache(options_for(dir / "cache"), ops);
    EXPECT_EQ(cache.get(std::vector{job(1)}, &compiler, 1)[0].from, origin::disk);
    EXPECT_EQ(ops.removed, 1);
}

}  // namespace
}  // namespace epjit::cache::test
