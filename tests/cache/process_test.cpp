// SPDX-License-Identifier: Apache-2.0
// Many processes on one directory: one compile a key, crashes, stopped holders, bounds under load, fork.
#include "tests/cache/support.hpp"

#include <gmock/gmock.h>

#include <filesystem>
#include <random>
#include <spawn.h>
#include <sstream>
#include <sys/wait.h>
#include <thread>

namespace epjit::cache::test {
namespace {

namespace fs = std::filesystem;
using testing::IsEmpty;
using testing::SizeIs;
using namespace std::chrono_literals;

class process {
   public:
    explicit process(std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), EPJIT_CACHE_DRIVER);
        std::vector<char*> pointers;
        for (auto& each : arguments) {
            pointers.push_back(each.data());
        }
        pointers.push_back(nullptr);
        if (::posix_spawn(&pid_, EPJIT_CACHE_DRIVER, nullptr, nullptr, pointers.data(), environ) != 0) {
            throw std::runtime_error("the driver cannot be started");
        }
    }
    process(process&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}
    process& operator=(process&&) = delete;
    ~process() {
        if (pid_ > 0) {
            ::kill(pid_, SIGKILL);
            wait();
        }
    }
    /// Exit status, or 128 + the signal.
    int wait() {
        int status = 0;
        ::waitpid(std::exchange(pid_, 0), &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    void signal(int number) const { ::kill(pid_, number); }

   private:
    pid_t pid_ = 0;
};

std::vector<std::string> lines_of(const std::string& path) {
    std::istringstream text(read_file(path));
    std::vector<std::string> lines;
    for (std::string line; std::getline(text, line);) {
        lines.push_back(line);
    }
    return lines;
}

/// Waits until `path` has `count` lines; false after 20 s.
bool wait_for_lines(const std::string& path, std::size_t count) {
    for (int n = 0; n < 20'000; ++n) {
        if (lines_of(path).size() >= count) {
            return true;
        }
        std::this_thread::sleep_for(1ms);
    }
    return false;
}

TEST(cache_processes, sixteen_that_want_the_same_twenty_keys_compile_exactly_twenty) {
    for (const char* delay : {"0", "5"}) {
        const temp_dir dir;
        std::vector<process> all;
        for (int n = 0; n < 16; ++n) {
            all.emplace_back(std::vector<std::string>{"get", dir / "cache", dir / "count", "20", delay, "60000"});
        }
        for (auto& each : all) {
            EXPECT_EQ(each.wait(), 0);
        }
        auto compiled = lines_of(dir / "count");
        EXPECT_THAT(compiled, SizeIs(20));
        std::sort(compiled.begin(), compiled.end());
        EXPECT_EQ(std::unique(compiled.begin(), compiled.end()), compiled.end());
        EXPECT_THAT(files_below(dir / "cache", ".epjit"), SizeIs(20));
        EXPECT_THAT(files_below(dir / "cache", ".tmp-"), IsEmpty());
    }
}

TEST(cache_processes, a_writer_killed_200_times_leaves_nothing_bad_and_its_leftovers_are_swept) {
    const temp_dir dir;
    std::mt19937 random(static_cast<unsigned>(testing::UnitTest::GetInstance()->random_seed()));
    std::size_t leftovers = 0;
    for (int n = 0; n < 200; ++n) {
        process writer({"churn", dir / "cache", "4"});
        // Let it come to writing, then strike at any moment.
        for (int tries = 0; n == 0 && tries < 5000 && files_below(dir / "cache", ".epjit").empty(); ++tries) {
            std::this_thread::sleep_for(1ms);
        }
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
        writer.signal(SIGKILL);
        EXPECT_EQ(writer.wait(), 128 + SIGKILL);
        if (n % 10 == 9) {
            const auto seen = store(options_for(dir / "cache")).verify();
            EXPECT_EQ(seen.bad, 0U) << n;
        }
    }
    leftovers = files_below(dir / "cache", ".tmp-").size();
    EXPECT_GT(leftovers, 0U) << "no kill came between the temp file and its rename: this proved nothing";
    store cache(options_for(dir / "cache"));
    fake_compiler compiler;
    compiler.cubin_bytes = 30'000;
    for (const auto& each : cache.get(jobs(6), &compiler, 1)) {
        ASSERT_NE(each.value, nullptr);
        EXPECT_TRUE(each.stored);
    }
    EXPECT_EQ(*cache.find(job(1).key, nullptr)->value, make_artifact(job(1), compiler_a(), 30'000));
    for (const auto& temp : files_below(dir / "cache", ".tmp-")) {
        set_mtime(temp, 4000);
    }
    store(options_for(dir / "cache")).publish(make_artifact(job(9), compiler_a()));
    EXPECT_THAT(files_below(dir / "cache", ".tmp-"), IsEmpty());
}

TEST(cache_processes, a_killed_lock_holder_frees_its_keys_at_once) {
    const temp_dir dir;
    process holder({"get", dir / "cache", dir / "count", "1", "60000", "60000"});
    ASSERT_TRUE(wait_for_lines(dir / "count", 1));
    log_lines log;
    fake_compiler compiler;
    store cache(options_for(dir / "cache", &log));
    std::thread killer([&] {
        std::this_thread::sleep_for(50ms);
        holder.signal(SIGKILL);
    });
    const auto got = cache.get(jobs(1), &compiler, 1);
    killer.join();
    EXPECT_EQ(got[0].from, origin::compiled);
    EXPECT_EQ(cache.counters().lock_waits, 1U);
    EXPECT_EQ(cache.counters().lock_timeouts, 0U);
    EXPECT_THAT(log.warnings(), IsEmpty());
}

TEST(cache_processes, free_keys_come_first_and_a_stopped_holder_costs_the_time_limit_once) {
    const temp_dir dir;
    // Holds the locks of jobs 0 and 1 (two at a time) and is stopped.
    process holder({"get", dir / "cache", dir / "count", "2", "60000", "60000"});
    ASSERT_TRUE(wait_for_lines(dir / "count", 2));
    holder.signal(SIGSTOP);
    log_lines log;
    auto options = options_for(dir / "cache", &log);
    options.lock_timeout = 200ms;
    fake_compiler compiler;
    store cache(options);
    std::vector<std::size_t> order;
    const auto got =
        cache.get(jobs(5), &compiler, 1, [&](std::size_t index, const served&) { order.push_back(index); });
    for (const auto& each : got) {
        EXPECT_NE(each.value, nullptr);
        EXPECT_TRUE(each.stored);
    }
    EXPECT_THAT(order, testing::ElementsAre(2, 3, 4, 0, 1));
    EXPECT_EQ(cache.counters().lock_timeouts, 2U);
    EXPECT_THAT(log.warnings(), testing::ElementsAre(testing::HasSubstr("stopped or hung process")));
    holder.signal(SIGCONT);
}

TEST(cache_processes, the_bound_holds_under_sixteen_writers) {
    const temp_dir dir;
    constexpr std::uint64_t bound = 200'000, one = 11'000, writers = 16;
    std::vector<process> all;
    for (std::uint64_t n = 0; n < writers; ++n) {
        all.emplace_back(std::vector<std::string>{"fill", dir / "cache", std::to_string(20 * n), "20",
                                                  std::to_string(bound), "10000"});
    }
    std::atomic<bool> done{false};
    std::uint64_t most = 0;
    std::thread watcher([&] {
        while (!done) {
            std::uint64_t total = 0;
            for (const auto& file : files_below(dir / "cache")) {
                std::error_code gone;
                const auto bytes = fs::file_size(file, gone);
                total += gone ? 0 : bytes;
            }
            most = std::max(most, total);
        }
    });
    for (auto& each : all) {
        EXPECT_EQ(each.wait(), 0);
    }
    done = true;
    watcher.join();
    EXPECT_LE(most, bound + writers * one);
    EXPECT_GT(most, bound / 2);
    auto options = options_for(dir / "cache");
    options.max_bytes = bound;
    store cache(options);
    EXPECT_EQ(cache.verify().bad, 0U);
    cache.prune(std::nullopt);
    std::uint64_t total = 0;
    for (const auto& file : files_below(dir / "cache", ".epjit")) {
        total += fs::file_size(file);
    }
    EXPECT_LE(total, bound);
}

TEST(cache_processes, a_forked_child_neither_deadlocks_nor_shares_its_parents_lock) {
    const temp_dir dir;
    fake_compiler compiler(compiler_a(), dir / "count");
    store cache(options_for(dir / "cache"));
    cache.get(jobs(1), &compiler, 1);
    compiler.delay = 300ms;
    std::thread parent([&] { cache.get(jobs(2), &compiler, 1); });
    ASSERT_TRUE(wait_for_lines(dir / "count", 2));
    const pid_t child = ::fork();
    if (child == 0) {
        ::alarm(20);
        const auto got = cache.get(jobs(3), &compiler, 1);
        const bool good = got[0].from == origin::memory && got[1].from == origin::disk && got[2].stored;
        ::_exit(good ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    parent.join();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_THAT(lines_of(dir / "count"), SizeIs(3)) << "the child waited for its parent's compile";
}

/// `processes` drivers at once on `dir` through that libnvrtc.
void run_nvrtc(const temp_dir& dir, const std::string& library, int processes, int keys) {
    std::vector<process> all;
    for (int n = 0; n < processes; ++n) {
        all.emplace_back(std::vector<std::string>{"nvrtc", dir / "cache", library, std::to_string(keys)});
    }
    for (auto& each : all) {
        EXPECT_EQ(each.wait(), 0);
    }
}

TEST(cache_processes, two_builds_of_one_nvrtc_version_share_a_directory_and_never_meet) {
    const temp_dir dir;
    ::setenv("EPJIT_FAKE_NVRTC_COUNT", (dir / "count").c_str(), 1);
    run_nvrtc(dir, EPJIT_FAKE_NVRTC_A, 4, 6);
    EXPECT_THAT(lines_of(dir / "count"), SizeIs(6));
    run_nvrtc(dir, EPJIT_FAKE_NVRTC_B, 4, 6);
    EXPECT_THAT(lines_of(dir / "count"), SizeIs(12));
    run_nvrtc(dir, EPJIT_FAKE_NVRTC_A, 2, 6);
    EXPECT_THAT(lines_of(dir / "count"), SizeIs(12));
    ::unsetenv("EPJIT_FAKE_NVRTC_COUNT");
    const auto listed = store(options_for(dir / "cache")).list();
    ASSERT_THAT(listed, SizeIs(12));
    std::set<jit::digest> builds, keys;
    for (const auto& each : listed) {
        builds.insert(each.compiler);
        keys.insert(each.key);
    }
    EXPECT_THAT(builds, SizeIs(2));
    EXPECT_THAT(keys, SizeIs(6));
}

TEST(cache_processes, the_real_nvrtc_is_served_across_processes) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "libnvrtc is not built with the thread sanitizer, which then takes its locks for races";
#endif
    const temp_dir dir;
    try {
        jit::open_nvrtc({}, jit::template_set::embedded());
    } catch (const library_error& e) {
        GTEST_SKIP() << "no NVRTC on this machine";
    }
    run_nvrtc(dir, "", 3, 2);
    EXPECT_THAT(store(options_for(dir / "cache")).list(), SizeIs(2));
    EXPECT_EQ(store(options_for(dir / "cache")).verify().bad, 0U);
}

}  // namespace
}  // namespace epjit::cache::test
