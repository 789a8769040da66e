// SPDX-License-Identifier: Apache-2.0
// What a store serves: hits, misses, compilers, layers, offline, listing, packs.
#include "tests/cache/support.hpp"

#include <gmock/gmock.h>

#include <filesystem>
#include <thread>

namespace epjit::cache::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::string text_of(const std::exception_ptr& failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const std::exception& e) {
        return e.what();
    }
}

template <class Error>
bool is_a(const std::exception_ptr& failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const Error&) {
        return true;
    } catch (...) {
        return false;
    }
}

store_options memory_only() {
    auto options = options_for(std::vector<std::string>{});
    options.memory_only = true;
    return options;
}

TEST(cache_store, serves_what_it_compiled_from_memory_and_a_later_process_from_disk) {
    const temp_dir dir;
    fake_compiler compiler;
    const auto wanted = jobs(3);
    {
        store cache(options_for(dir / "cache"));
        EXPECT_EQ(cache.written_layer(), dir / "cache");
        const auto first = cache.get(wanted, &compiler, 2);
        ASSERT_THAT(first, SizeIs(3));
        for (const auto& each : first) {
            EXPECT_EQ(each.from, origin::compiled);
            EXPECT_TRUE(each.stored);
        }
        const auto second = cache.get(wanted, &compiler, 2);
        EXPECT_EQ(second[1].from, origin::memory);
        EXPECT_EQ(second[1].value, first[1].value);
        EXPECT_EQ(cache.peek(wanted[0].key, &compiler.identity().id), first[0].value.get());
        EXPECT_EQ(cache.peek(wanted[0].key, nullptr), first[0].value.get());
        EXPECT_EQ(cache.peek(job(7).key, nullptr), nullptr);
    }
    store later(options_for(dir / "cache"));
    const auto hit = later.find(wanted[2].key, &compiler.identity().id);
    ASSERT_TRUE(hit);
    EXPECT_EQ(hit->from, origin::disk);
    EXPECT_EQ(*hit->value, make_artifact(wanted[2], compiler.identity()));
    EXPECT_EQ(later.counters().disk_hits, 1U);
    EXPECT_EQ(compiler.compiles, 3);
}

TEST(cache_store, never_stores_or_remembers_a_failed_compile) {
    const temp_dir dir;
    fake_compiler compiler;
    const auto wanted = jobs(3);
    compiler.failing.insert(wanted[0].key);
    compiler.empty.insert(wanted[1].key);
    store cache(options_for(dir / "cache"));
    const auto got = cache.get(wanted, &compiler, 1);
    EXPECT_TRUE(is_a<compile_error>(got[0].failure));
    EXPECT_TRUE(is_a<compile_error>(got[1].failure));
    EXPECT_THAT(text_of(got[1].failure), HasSubstr("empty cubin"));
    EXPECT_EQ(got[2].failure, nullptr);
    EXPECT_THAT(files_below(dir.path, ".epjit"), SizeIs(1));
    EXPECT_EQ(cache.counters().compile_failures, 2U);
    EXPECT_FALSE(cache.publish([&] {
        auto value = make_artifact(wanted[1], compiler.identity());
        value.cubin.clear();
        return value;
    }()));

    compiler.failing.clear();
    compiler.empty.clear();
    const auto again = cache.get(wanted, &compiler, 1);
    EXPECT_EQ(again[0].from, origin::compiled);
    EXPECT_EQ(again[1].from, origin::compiled);
    EXPECT_EQ(again[2].from, origin::memory);
}

TEST(cache_store, keeps_compilers_archs_and_template_digests_apart_in_one_directory) {
    const temp_dir dir;
    fake_compiler a(compiler_a()), b(compiler_b());
    const std::vector<jit::compile_job> wanted = {job(0, "sm_90"), job(0, "sm_90a"), job(0, "sm_100a"),
                                                  job(0, "sm_100f"), job(0, "sm_90a", "templates 2")};
    store cache(options_for(dir / "cache"));
    const auto from_a = cache.get(wanted, &a, 1);
    const auto from_b = cache.get(wanted, &b, 1);
    EXPECT_EQ(a.compiles, 5);
    EXPECT_EQ(b.compiles, 5);
    EXPECT_EQ(cache.counters().misses_other_compiler, 5U);
    EXPECT_THAT(cache.list(), SizeIs(10));
    store later(options_for(dir / "cache"));
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        EXPECT_EQ(*later.find(wanted[i].key, &a.identity().id)->value, *from_a[i].value);
        EXPECT_EQ(*later.find(wanted[i].key, &b.identity().id)->value, *from_b[i].value);
        EXPECT_NE(from_a[i].value->cubin, from_b[i].value->cubin);
        EXPECT_EQ(later.find(wanted[i].key, &a.identity().id)->value->arch, wanted[i].spec.arch.text());
    }
}

TEST(cache_store, without_a_compiler_the_newest_intact_build_is_used_and_the_log_says_which) {
    const temp_dir dir;
    fake_compiler a(compiler_a()), b(compiler_b());
    const auto wanted = jobs(1);
    {
        store cache(options_for(dir / "cache"));
        cache.get(wanted, &b, 1);
        cache.get(wanted, &a, 1);  // newer
    }
    // A use of the older build must not make it the newest.
    const auto older = detail::entry_name(wanted[0].key, b.identity().id);
    for (const auto& file : files_below(dir.path, ".epjit")) {
        set_mtime(file, file.ends_with(older) ? 0 : 5000);
    }
    {
        log_lines log;
        store cache(options_for(dir / "cache", &log));
        EXPECT_EQ(cache.find(wanted[0].key, nullptr)->value->compiler, a.identity());
        EXPECT_THAT(log.at(log_level::info),
                    ElementsAre(AllOf(HasSubstr("NVRTC 13.0.88"), HasSubstr(wanted[0].key.hex()))));
    }
    {
        auto options = options_for(dir / "cache");
        options.offline = true;  // with NVRTC loaded, still the newest
        store cache(options);
        EXPECT_EQ(cache.get(wanted, &b, 1)[0].value->compiler, a.identity());
    }
    const auto newer = files_below(dir.path, detail::entry_name(wanted[0].key, a.identity().id));
    write_file(newer.at(0), "damaged");
    store cache(options_for(dir / "cache"));
    EXPECT_EQ(cache.find(wanted[0].key, nullptr)->value->compiler, b.identity());
}

TEST(cache_store, warmed_by_one_compiler_serves_none_and_recompiles_for_another) {
    const temp_dir dir;
    fake_compiler a(compiler_a()), b(compiler_b());
    const auto wanted = jobs(4);
    store(options_for(dir / "cache")).get(wanted, &a, 2);
    store none(options_for(dir / "cache"));
    for (const auto& each : none.get(wanted, nullptr, 2)) {
        EXPECT_EQ(each.from, origin::disk);
    }
    store other(options_for(dir / "cache"));
    for (const auto& each : other.get(wanted, &b, 2)) {
        EXPECT_EQ(each.from, origin::compiled);
    }
    EXPECT_EQ(b.compiles, 4);
}

TEST(cache_store, an_offline_miss_names_the_key_and_what_differs_from_the_nearest_entry) {
    const temp_dir dir;
    fake_compiler compiler;
    auto stored = job(3);
    store(options_for(dir / "cache")).get(std::vector{stored}, &compiler, 1);
    auto options = options_for(dir / "cache");
    options.offline = true;
    store cache(options);
    auto wanted = stored;
    wanted.spec.num_ranks = 4;
    wanted.key = jit::hash_text("other");
    const auto got = cache.get(std::vector{wanted}, &compiler, 1);
    EXPECT_TRUE(is_a<offline_miss_error>(got[0].failure));
    const std::string text = text_of(got[0].failure);
    EXPECT_THAT(text, HasSubstr(wanted.key.hex()));
    EXPECT_THAT(text, HasSubstr(stored.key.hex()));
    EXPECT_THAT(text, HasSubstr("R=4 where it has R=8"));
    EXPECT_EQ(compiler.compiles, 1);

    const auto edited = job(3, "sm_90a", "templates 2");
    EXPECT_THAT(text_of(cache.get(std::vector{edited}, &compiler, 1)[0].failure),
                HasSubstr("other templates or options"));

    store online(options_for(dir / "cache"));
    const auto none = online.get(std::vector{wanted}, nullptr, 1);
    EXPECT_TRUE(is_a<library_error>(none[0].failure));
    EXPECT_THAT(text_of(none[0].failure), HasSubstr("NVRTC"));
}

TEST(cache_store, reads_later_layers_and_writes_the_first_only) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "shipped")).get(jobs(2), &compiler, 1);
    const auto before = files_below(dir / "shipped");
    log_lines log;
    store cache(options_for({dir / "own", dir / "shipped"}, &log));
    const auto got = cache.get(jobs(3), &compiler, 1);
    EXPECT_EQ(got[0].from, origin::disk);
    EXPECT_EQ(got[1].from, origin::disk);
    EXPECT_EQ(got[2].from, origin::compiled);
    EXPECT_EQ(files_below(dir / "shipped"), before);
    EXPECT_THAT(files_below(dir / "own", ".epjit"), SizeIs(1));
    const auto listed = cache.list();
    ASSERT_THAT(listed, SizeIs(3));
    EXPECT_EQ(listed[0].layer, 0);
    EXPECT_EQ(listed[1].layer, 1);
    EXPECT_THAT(log.warnings(), IsEmpty());
}

TEST(cache_store, lists_what_is_stored_with_its_provenance) {
    const temp_dir dir;
    fake_compiler compiler;
    store cache(options_for(dir / "cache"));
    cache.get(jobs(1), &compiler, 1);
    write_file(dir / "cache/" + job(0).key.hex().substr(0, 2) + "/README", "not an entry");
    const auto listed = cache.list();
    ASSERT_THAT(listed, SizeIs(1));
    EXPECT_EQ(listed[0].key, job(0).key);
    EXPECT_EQ(listed[0].compiler, compiler.identity().id);
    EXPECT_EQ(listed[0].compiler_description, "NVRTC 13.0.88");
    EXPECT_EQ(listed[0].arch, "sm_90a");
    EXPECT_THAT(listed[0].kernels, ElementsAre("plan_kernel", "scan_kernel"));
    EXPECT_EQ(listed[0].bytes, std::filesystem::file_size(listed[0].path));
    EXPECT_NEAR(static_cast<double>(listed[0].last_used), static_cast<double>(std::time(nullptr)), 60);
    const auto checked = cache.verify();
    EXPECT_EQ(checked.entries, 1U);
    EXPECT_EQ(checked.bad, 0U);
}

TEST(cache_store, threads_that_want_the_same_keys_compile_each_once) {
    const temp_dir dir;
    for (const bool on_disk : {true, false}) {
        fake_compiler compiler;
        compiler.delay = std::chrono::milliseconds(3);
        store cache(on_disk ? options_for(dir / "cache") : memory_only());
        const auto wanted = jobs(20);
        std::vector<std::thread> threads;
        std::atomic<int> served_count{0};
        for (int t = 0; t < 8; ++t) {
            threads.emplace_back([&] {
                for (const auto& each : cache.get(wanted, &compiler, 1)) {
                    served_count += each.value != nullptr ? 1 : 0;
                }
            });
        }
        for (auto& thread : threads) {
            thread.join();
        }
        EXPECT_EQ(compiler.compiles, 20);
        EXPECT_EQ(served_count, 8 * 20);
        EXPECT_GT(compiler.most_concurrent, 1) << "distinct keys must run concurrently";
    }
}

TEST(cache_store, a_key_asked_for_twice_in_one_call_is_compiled_once) {
    fake_compiler compiler;
    store cache(memory_only());
    const auto got = cache.get(std::vector{job(0), job(1), job(0)}, &compiler, 4);
    EXPECT_EQ(compiler.compiles, 2);
    EXPECT_EQ(got[0].value, got[2].value);
}

TEST(cache_store, threads_that_wait_share_a_failure_and_later_calls_try_again) {
    fake_compiler compiler;
    compiler.delay = std::chrono::milliseconds(50);
    compiler.failing.insert(job(0).key);
    store cache(memory_only());
    std::vector<std::thread> threads;
    std::atomic<int> failures{0};
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back(
            [&] { failures += is_a<compile_error>(cache.get(jobs(1), &compiler, 1)[0].failure) ? 1 : 0; });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    EXPECT_EQ(failures, 4);
    EXPECT_LE(compiler.compiles, 4);
    compiler.failing.clear();
    EXPECT_NE(cache.get(jobs(1), &compiler, 1)[0].value, nullptr);
}

TEST(cache_store, reports_each_result_as_it_is_published_and_stops_when_cancelled) {
    const temp_dir dir;
    fake_compiler compiler;
    store cache(options_for(dir / "cache"));
    std::vector<std::size_t> reported;
    const auto got = cache.get(
        jobs(6), &compiler, 1,
        [&](std::size_t index, const served& each) {
            reported.push_back(index);
            EXPECT_EQ(files_below(dir.path, ".epjit").size(), static_cast<std::size_t>(compiler.compiles))
                << "what is reported must be on disk";
            EXPECT_EQ(each.from, origin::compiled);
        },
        [&] { return compiler.compiles >= 3; });
    EXPECT_EQ(compiler.compiles, 3);
    EXPECT_THAT(reported, SizeIs(6));
    EXPECT_THAT(files_below(dir.path, ".epjit"), SizeIs(3));
    int cancelled = 0;
    for (const auto& each : got) {
        cancelled += each.failure && text_of(each.failure).find("cancelled") != std::string::npos ? 1 : 0;
    }
    EXPECT_EQ(cancelled, 3);
    EXPECT_EQ(cache.verify().bad, 0U);
}

TEST(cache_store, a_pack_moves_every_verified_entry_to_another_cache) {
    const temp_dir dir;
    fake_compiler a(compiler_a()), b(compiler_b());
    store from(options_for(dir / "from"));
    from.get(jobs(5), &a, 1);
    from.get(jobs(2), &b, 1);
    write_file(from.list().front().path, "damaged");
    jit::digest digest;
    EXPECT_EQ(from.export_to(dir / "pack", &digest), 6U);
    store to(options_for(dir / "to"));
    EXPECT_EQ(to.import_from(dir / "pack", &digest), 6U);
    EXPECT_EQ(to.import_from(dir / "pack"), 6U);
    EXPECT_THAT(to.list(), SizeIs(6));
    EXPECT_EQ(to.verify().bad, 0U);
    for (const auto& info : to.list()) {
        const auto original = files_below(dir / "from", detail::entry_name(info.key, info.compiler));
        EXPECT_EQ(read_file(info.path), read_file(original.at(0)));
    }
    EXPECT_THAT(files_below(dir.path, ".tmp-"), IsEmpty());
}

TEST(cache_store, a_damaged_or_unexpected_pack_stores_nothing) {
    const temp_dir dir;
    fake_compiler compiler;
    store from(options_for(dir / "from"));
    from.get(jobs(2), &compiler, 1);
    from.export_to(dir / "pack");
    const std::string good = read_file(dir / "pack");
    store to(options_for(dir / "to"));
    for (std::size_t at = 0; at < good.size(); at += 37) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ 4);
        write_file(dir / "bad", bad);
        EXPECT_THROW(to.import_from(dir / "bad"), cache_error) << at;
        write_file(dir / "bad", good.substr(0, at));
        EXPECT_THROW(to.import_from(dir / "bad"), cache_error) << at;
    }
    const jit::digest other = jit::hash_text("another pack");
    EXPECT_THROW(to.import_from(dir / "pack", &other), cache_error);
    EXPECT_THROW(to.import_from(dir / "missing"), cache_error);
    EXPECT_THROW(to.import_from(dir.path), cache_error);
    EXPECT_THAT(to.list(), IsEmpty());
}

}  // namespace
}  // namespace epjit::cache::test
