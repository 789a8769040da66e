// SPDX-License-Identifier: Apache-2.0
// Every system call fails once, in every way that disks and networks have: the kernel is served, one warning is given,
// nothing partial can be seen. Each case proves that its injection took place.
#include "tests/cache/support.hpp"

#include <gmock/gmock.h>

#include <filesystem>
#include <thread>

namespace epjit::cache::test {
namespace {

namespace fs = std::filesystem;
using testing::AnyOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

/// What must hold after any failure while two variants were compiled and stored.
void expect_sound(const std::string& what, const temp_dir& dir, const store& cache, const std::vector<served>& got,
                  const log_lines& log) {
    for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_NE(got[i].value, nullptr) << what;
        EXPECT_EQ(*got[i].value, make_artifact(job(static_cast<int>(i)), compiler_a())) << what;
    }
    EXPECT_LE(log.warnings().size(), 1U) << what;
    EXPECT_THAT(files_below(dir.path, ".tmp-"), IsEmpty()) << what;
    const store after(options_for(dir / "cache"));
    EXPECT_EQ(after.verify().bad, 0U) << what;
    if (cache.counters().write_failures > 0) {
        EXPECT_THAT(log.warnings(), testing::ElementsAre(HasSubstr("remedy"))) << what;
    }
    store next(options_for(dir / "cache"));
    fake_compiler compiler;
    for (const auto& each : next.get(jobs(2), &compiler, 1)) {
        EXPECT_TRUE(each.stored) << what << ": the next process stores what this one could not";
    }
}

TEST(cache_fault, every_call_failing_in_every_way_costs_at_most_the_storing) {
    const std::vector<int> disk = {ENOSPC, EDQUOT, EIO, ESTALE}, names = {ENOSPC, EACCES, EROFS, ESTALE, EBUSY},
                           other = {EIO, ESTALE};
    const std::vector<std::pair<std::string, std::vector<int>>> calls = {
        {"write", disk},   {"fsync", disk},  {"close", disk},    {"mkdirat", names}, {"renameat", names},
        {"openat", names}, {"fstat", other}, {"fstatat", other}, {"fchmod", other},  {"lock", other}};
    int injected = 0;
    for (const auto& [call, codes] : calls) {
        for (const int code : codes) {
            // On until the sequence of calls is through and nothing was hit.
            for (int nth = 1;; ++nth) {
                const temp_dir dir;
                log_lines log;
                failing_ops ops;
                const auto store_it = [&, &failing = call] {
                    store cache(options_for(dir / "cache", &log), ops);
                    ops.call = failing;  // construction has cases of its own
                    ops.nth = nth;
                    ops.code = code;
                    fake_compiler compiler;
                    const auto got = cache.get(jobs(2), &compiler, 1);
                    ops.call.clear();
                    if (ops.hits > 0) {
                        expect_sound(failing + " " + detail::errno_text(code) + " #" + std::to_string(nth), dir, cache,
                                     got, log);
                    }
                };
                store_it();
                if (ops.hits == 0 || testing::Test::HasFailure()) {
                    break;
                }
                ++injected;
            }
        }
    }
    EXPECT_GT(injected, 150) << "injections that took place";
}

TEST(cache_fault, a_short_write_is_completed_or_discarded_never_published) {
    for (const int code : {0, ENOSPC}) {
        const temp_dir dir;
        log_lines log;
        failing_ops ops;
        store cache(options_for(dir / "cache", &log), ops);
        ops.call = "write";
        ops.nth = 2;  // the first is the directory's tag
        ops.short_write = true;
        ops.code = code;
        fake_compiler compiler;
        const auto got = cache.get(jobs(2), &compiler, 1);
        EXPECT_EQ(ops.hits, 1);
        EXPECT_EQ(got[0].stored, code == 0);
        EXPECT_TRUE(got[1].stored);
        EXPECT_THAT(log.warnings(), SizeIs(code == 0 ? 0 : 1));
        expect_sound("short write", dir, cache, got, log);
    }
}

TEST(cache_fault, a_disk_that_stays_full_gives_one_warning_with_the_remedy_for_many_variants) {
    const temp_dir dir;
    log_lines log;
    failing_ops ops;
    store cache(options_for(dir / "cache", &log), ops);
    ops.call = "write";
    ops.nth = 0;
    ops.code = ENOSPC;
    fake_compiler compiler;
    const auto got = cache.get(jobs(20), &compiler, 2);
    EXPECT_GE(ops.hits, 20);
    for (const auto& each : got) {
        EXPECT_NE(each.value, nullptr);
        EXPECT_FALSE(each.stored);
    }
    EXPECT_EQ(cache.counters().write_failures, 20U);
    EXPECT_THAT(log.warnings(), testing::ElementsAre(testing::AllOf(HasSubstr("ENOSPC"), HasSubstr("free space"))));
    EXPECT_THAT(files_below(dir.path, ".epjit"), IsEmpty());
    EXPECT_THAT(files_below(dir.path, ".tmp-"), IsEmpty());
}

TEST(cache_fault, a_stale_or_busy_file_is_tried_again_and_a_broken_read_is_a_miss) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "cache")).get(jobs(2), &compiler, 1);
    for (const int code : {ESTALE, EBUSY, EIO, EACCES}) {
        for (const std::string call : {"openat", "read", "fstat"}) {
            log_lines log;
            failing_ops ops;
            store cache(options_for(dir / "cache", &log), ops);
            ops.call = call;
            const bool passes = code == ESTALE || code == EBUSY;
            ops.nth = passes || call != "read" ? 1 : 0;
            ops.code = code;
            const auto got = cache.get(jobs(2), &compiler, 1);
            EXPECT_GE(ops.hits, 1) << call;
            EXPECT_NE(got[0].value, nullptr);
            EXPECT_EQ(*got[1].value, make_artifact(job(1), compiler_a()));
            if (call == "read") {
                EXPECT_EQ(got[0].from, passes ? origin::disk : origin::compiled) << detail::errno_text(code);
            }
            EXPECT_EQ(cache.counters().corrupt, 0U) << "a failed read is no proof of damage";
            EXPECT_LE(log.warnings().size(), 1U);
        }
    }
    EXPECT_THAT(files_below(dir / "cache", ".epjit"), SizeIs(2));
}

TEST(cache_fault, a_file_system_without_locks_still_compiles_once_on_a_node) {
    for (const int code : {ENOLCK, ENOSYS, EINVAL}) {
        const temp_dir dir;
        log_lines log;
        failing_ops ops;
        ops.call = "lock";
        ops.nth = 0;
        ops.code = code;
        fake_compiler compiler;
        compiler.delay = std::chrono::milliseconds(5);
        store one(options_for(dir / "cache", &log), ops), two(options_for(dir / "cache", &log), ops);
        std::thread other([&] { two.get(jobs(8), &compiler, 1); });
        const auto got = one.get(jobs(8), &compiler, 1);
        other.join();
        EXPECT_GT(ops.hits, 0);
        EXPECT_EQ(compiler.compiles, 8) << detail::errno_text(code);
        EXPECT_TRUE(got[7].stored);
        EXPECT_THAT(log.warnings(), IsEmpty());
    }
}

/// Shows nothing of what others published until a deadline, as a network file system's negative lookup cache does.
class late_ops : public failing_ops {
   public:
    std::atomic<bool> late{true};
    std::atomic<int> hidden{0};
    int openat(int dir, const char* name, int flags, mode_t mode) noexcept override {
        if (late && detail::parse_entry_name(name)) {
            ++hidden;
            errno = ENOENT;
            return -1;
        }
        return failing_ops::openat(dir, name, flags, mode);
    }
};

TEST(cache_fault, late_visibility_costs_a_compile_and_nothing_else) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "cache")).get(jobs(3), &compiler, 1);
    log_lines log;
    late_ops ops;
    store cache(options_for(dir / "cache", &log), ops);
    for (const auto& each : cache.get(jobs(3), &compiler, 1)) {
        EXPECT_EQ(each.from, origin::compiled);
        EXPECT_TRUE(each.stored);
    }
    EXPECT_GE(ops.hidden, 3);
    EXPECT_THAT(log.warnings(), IsEmpty());
    ops.late = false;
    EXPECT_EQ(store(options_for(dir / "cache"), ops).get(jobs(3), &compiler, 1)[2].from, origin::disk);
    EXPECT_EQ(store(options_for(dir / "cache")).verify().bad, 0U);
}

TEST(cache_fault, a_directory_removed_under_a_living_process_is_made_again) {
    const temp_dir dir;
    log_lines log;
    fake_compiler compiler;
    store cache(options_for(dir / "cache", &log));
    cache.get(jobs(2), &compiler, 1);
    fs::remove_all(dir / "cache");
    const auto got = cache.get(jobs(4), &compiler, 1);
    EXPECT_EQ(got[0].from, origin::memory);
    EXPECT_TRUE(got[2].stored);
    EXPECT_TRUE(got[3].stored);
    EXPECT_THAT(files_below(dir / "cache", ".epjit"), SizeIs(2));
    EXPECT_THAT(log.warnings(), IsEmpty());
}

}  // namespace
}  // namespace epjit::cache::test
