// SPDX-License-Identifier: Apache-2.0
// Damage, unsafe and unusable directories, and failing system calls: the work is done, the user is told once.
#include "tests/cache/support.hpp"

#include <gmock/gmock.h>

#include <filesystem>
#include <sys/socket.h>

namespace epjit::cache::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::string path_of(const std::string& root, const jit::compile_job& of) {
    const std::string name = detail::entry_name(of.key, compiler_a().id);
    return root + "/" + name.substr(0, 2) + "/" + name;
}

/// Compiles job 0 into `root`, lets `harm` at the entry's path, and expects the next store to compile again, to tell
/// it once, to hold an intact entry after, and the one after that to hit.
void expect_mended(const std::string& what, const std::function<void(const std::string& entry)>& harm) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "cache")).get(jobs(1), &compiler, 1);
    const std::string entry = path_of(dir / "cache", job(0));
    ASSERT_TRUE(fs::exists(entry)) << what;
    harm(entry);
    {
        const auto seen = store(options_for(dir / "cache")).verify();
        EXPECT_EQ(seen.entries, 1U) << what;
        EXPECT_EQ(seen.bad, 1U) << what;
        EXPECT_TRUE(fs::exists(fs::symlink_status(entry))) << what << ": verify repairs nothing";
    }
    log_lines log;
    store cache(options_for(dir / "cache", &log));
    const auto got = cache.get(jobs(1), &compiler, 1);
    EXPECT_EQ(got[0].from, origin::compiled) << what;
    EXPECT_TRUE(got[0].stored) << what;
    EXPECT_EQ(*got[0].value, make_artifact(job(0), compiler_a())) << what;
    EXPECT_EQ(cache.counters().corrupt, 1U) << what;
    EXPECT_THAT(log.warnings(), testing::ElementsAre(AllOf(HasSubstr("damaged"), HasSubstr(entry)))) << what;
    EXPECT_EQ(cache.verify().bad, 0U) << what;
    EXPECT_THAT(cache.list(), SizeIs(1)) << what;
    store next(options_for(dir / "cache"));
    EXPECT_EQ(next.get(jobs(1), &compiler, 1)[0].from, origin::disk) << what;
}

TEST(cache_damage, of_every_kind_is_detected_reported_once_and_mended) {
    expect_mended("bit", [](const std::string& entry) {
        auto text = read_file(entry);
        text[text.size() / 2] = static_cast<char>(text[text.size() / 2] ^ 1);
        write_file(entry, text);
    });
    expect_mended("cut", [](const std::string& entry) { fs::resize_file(entry, fs::file_size(entry) - 1); });
    expect_mended("emptied", [](const std::string& entry) { fs::resize_file(entry, 0); });
    expect_mended("longer", [](const std::string& entry) { write_file(entry, read_file(entry) + "x"); });
    expect_mended("huge", [](const std::string& entry) { fs::resize_file(entry, std::uint64_t{1} << 40); });
    expect_mended("directory", [](const std::string& entry) {
        fs::remove(entry);
        fs::create_directory(entry);
        write_file(entry + "/inside", "x");
    });
    expect_mended("FIFO", [](const std::string& entry) {
        fs::remove(entry);
        ASSERT_EQ(::mkfifo(entry.c_str(), 0600), 0);
    });
    expect_mended("device", [](const std::string& entry) {
        fs::remove(entry);
        if (::mknod(entry.c_str(), S_IFCHR | 0600, 0x103) != 0) {  // /dev/null; only root may
            write_file(entry, "");
        }
    });
    expect_mended("link to a good copy", [](const std::string& entry) {
        fs::rename(entry, entry + ".copy");
        fs::create_symlink(entry + ".copy", entry);
    });
    expect_mended("link to nowhere", [](const std::string& entry) {
        fs::remove(entry);
        fs::create_symlink("/nonexistent/entry", entry);
    });
    expect_mended("writable by others", [](const std::string& entry) { ::chmod(entry.c_str(), 0666); });
}

TEST(cache_damage, swapped_entries_are_both_misses) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "cache")).get(jobs(2), &compiler, 1);
    const std::string a = path_of(dir / "cache", job(0)), b = path_of(dir / "cache", job(1));
    fs::rename(a, dir / "kept");
    fs::rename(b, a);
    fs::rename(dir / "kept", b);
    store cache(options_for(dir / "cache"));
    EXPECT_EQ(cache.verify().bad, 2U);
    const auto got = cache.get(jobs(2), &compiler, 1);
    EXPECT_EQ(got[0].value->key, job(0).key);
    EXPECT_EQ(got[1].value->key, job(1).key);
    EXPECT_EQ(compiler.compiles, 4);
    EXPECT_EQ(cache.counters().corrupt, 2U);
}

TEST(cache_damage, keeps_at_most_16_bad_files_and_never_lists_or_reads_them) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "cache")).get(jobs(30), &compiler, 1);
    for (const auto& file : files_below(dir / "cache", ".epjit")) {
        write_file(file, "damaged");
    }
    store cache(options_for(dir / "cache"));
    cache.get(jobs(30), &compiler, 1);
    EXPECT_THAT(files_below(dir / "cache/bad"), SizeIs(16));
    EXPECT_THAT(cache.list(), SizeIs(30));
    EXPECT_EQ(cache.verify().entries, 30U);
    EXPECT_EQ(cache.counters().corrupt, 30U);
}

TEST(cache_damage, unknown_files_and_a_file_where_a_directory_belongs_never_block_writes) {
    const temp_dir dir;
    fake_compiler compiler;
    fs::create_directory(dir / "cache");
    fs::permissions(dir / "cache", fs::perms::owner_all);
    const std::string sub = job(0).key.hex().substr(0, 2);
    write_file(dir / ("cache/" + sub), "not a directory");
    write_file(dir / "cache/unknown.epjit", "orphan");
    write_file(dir / "cache/index.json", "{");
    store cache(options_for(dir / "cache"));
    EXPECT_TRUE(cache.get(jobs(1), &compiler, 1)[0].stored);
    write_file(dir / ("cache/" + sub + "/later.epjit2"), std::string(5000, 'x'));
    EXPECT_EQ(cache.verify().bad, 0U);
    EXPECT_THAT(cache.list(), SizeIs(1));
}

struct unsafe_case {
    std::string what;
    std::function<void(const std::string& root)> make;
    std::string says, remedy;
};

std::vector<unsafe_case> unsafe_cases() {
    const auto plain = [](const std::string& root) { fs::create_directories(root); };
    return {
        {"world-writable", [=](auto& root) { plain(root), ::chmod(root.c_str(), 0777); }, "writable by others",
         "chmod"},
        {"group-writable", [=](auto& root) { plain(root), ::chmod(root.c_str(), 0770); }, "writable by others",
         "chmod"},
        {"sticky and world-writable", [=](auto& root) { plain(root), ::chmod(root.c_str(), 01777); },
         "writable by others", "chmod"},
        {"a link",
         [](auto& root) {
             fs::create_directories(root + ".real");
             ::chmod((root + ".real").c_str(), 0700);
             fs::create_symlink(root + ".real", root);
         },
         "symbolic link", "EPJIT_CACHE_PATH"},
        {"a file", [](auto& root) { write_file(root, "x"); }, "not a directory", "remove"},
        {"below a world-writable parent",
         [](auto& root) {
             fs::create_directories(root);
             ::chmod(root.c_str(), 0700);
             ::chmod(fs::path(root).parent_path().c_str(), 0777);
         },
         "writable by others", "chmod go-w"},
    };
}

TEST(cache_safety, an_unsafe_directory_is_neither_read_nor_written_and_told_once_with_the_remedy) {
    for (const auto& each : unsafe_cases()) {
        for (const bool written : {true, false}) {
            const temp_dir dir;
            const std::string root = dir / "parent/cache";
            fs::create_directory(dir / "parent");
            ::chmod((dir / "parent").c_str(), 0755);
            each.make(root);
            const auto before = files_below(dir.path);
            fake_compiler compiler;
            log_lines log;
            auto options = written ? options_for(root, &log) : options_for({dir / "own", root}, &log);
            {
                store cache(options);
                const auto got = cache.get(jobs(2), &compiler, 1);
                EXPECT_NE(got[0].value, nullptr) << each.what;
                EXPECT_EQ(got[0].stored, !written) << each.what;
                EXPECT_THAT(log.warnings(), testing::ElementsAre(AllOf(HasSubstr(each.says), HasSubstr(each.remedy),
                                                                       HasSubstr("remedy"))))
                    << each.what;
                EXPECT_EQ(cache.written_layer(), written ? "" : dir / "own");
            }
            fs::remove_all(dir / "own");
            EXPECT_EQ(files_below(dir.path), before) << each.what << ": nothing may be written";
            if (written) {
                options.strict = true;
                try {
                    store strict(options);
                    FAIL() << each.what;
                } catch (const cache_error& e) {
                    EXPECT_THAT(e.message(), HasSubstr(each.says)) << each.what;
                    EXPECT_THAT(e.remedy(), HasSubstr(each.remedy)) << each.what;
                }
                EXPECT_EQ(files_below(dir.path), before) << each.what;
            }
        }
    }
}

TEST(cache_safety, another_owner_is_refused_and_root_may_own_a_read_layer) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "cache")).get(jobs(1), &compiler, 1);
    failing_ops other;  // we are 4711: not root, not the owner
    other.uid = 4711;
    if (::geteuid() == 0) {
        log_lines log;
        store as_written(options_for(dir / "cache", &log), other);
        EXPECT_FALSE(as_written.get(jobs(1), &compiler, 1)[0].stored);
        EXPECT_THAT(log.warnings(), testing::ElementsAre(AllOf(HasSubstr("belongs to user 0"), HasSubstr("chown"))));
        log_lines quiet;
        auto options = options_for({"", dir / "cache"}, &quiet);
        options.layers = {dir / "missing", dir / "cache"};
        options.create = false;
        store as_read(options, other);
        EXPECT_EQ(as_read.get(jobs(1), nullptr, 1)[0].from, origin::disk) << "owned by root";
        EXPECT_THAT(quiet.warnings(), IsEmpty());
        // Someone else's, for root itself.
        ASSERT_EQ(::chown((dir / "cache").c_str(), 12345, 12345), 0);
        for (const auto& layers : {std::vector{dir / "cache"}, std::vector{dir / "own", dir / "cache"}}) {
            log_lines warned;
            store foreign(options_for(layers, &warned));
            EXPECT_EQ(foreign.get(jobs(1), &compiler, 1)[0].from, origin::compiled);
            EXPECT_THAT(warned.warnings(), testing::ElementsAre(HasSubstr("belongs to user 12345")));
        }
    } else {
        store as_written(options_for(dir / "cache"), other);
        EXPECT_FALSE(as_written.get(jobs(1), &compiler, 1)[0].stored);
    }
}

TEST(cache_safety, an_entry_of_another_owner_is_not_served) {
    const temp_dir dir;
    fake_compiler compiler;
    store(options_for(dir / "cache")).get(jobs(1), &compiler, 1);
    if (::chown(path_of(dir / "cache", job(0)).c_str(), 12345, 12345) != 0) {
        GTEST_SKIP() << "only root can give a file away";
    }
    store cache(options_for(dir / "cache"));
    EXPECT_EQ(cache.get(jobs(1), &compiler, 1)[0].from, origin::compiled);
    EXPECT_EQ(cache.counters().corrupt, 1U);
}

TEST(cache_safety, a_parent_reached_through_a_link_of_ones_own_is_fine) {
    const temp_dir dir;
    fs::create_directory(dir / "real");
    ::chmod((dir / "real").c_str(), 0700);
    fs::create_directory_symlink(dir / "real", dir / "link");
    fs::create_directory_symlink("link", dir / "link2");
    fake_compiler compiler;
    store cache(options_for(dir / "link2/../link/cache"));
    EXPECT_TRUE(cache.get(jobs(1), &compiler, 1)[0].stored);
    EXPECT_THAT(files_below(dir / "real/cache", ".epjit"), SizeIs(1));
    fs::create_directory_symlink("loop", dir / "loop");
    log_lines log;
    store looped(options_for(dir / "loop/cache", &log));
    EXPECT_THAT(log.warnings(), SizeIs(1));
}

TEST(cache_safety, a_read_only_directory_serves_hits_and_is_not_written) {
    const temp_dir dir;
    ::chmod(dir.path.c_str(), 0755);
    const int status = run_unprivileged([&] {
        temp_dir own;
        fake_compiler compiler;
        store(options_for(own / "cache")).get(jobs(1), &compiler, 1);
        for (const auto& item : fs::recursive_directory_iterator(own / "cache")) {
            fs::permissions(item, item.is_directory() ? fs::perms(0500) : fs::perms(0400));
        }
        fs::permissions(own / "cache", fs::perms(0500));
        const auto before = files_below(own.path);
        log_lines log;
        bool good = true;
        {
            store cache(options_for(own / "cache", &log));
            good = good && cache.get(jobs(1), &compiler, 1)[0].from == origin::disk && log.warnings().empty();
            const auto got = cache.get(jobs(3), &compiler, 1);
            good = good && got[2].from == origin::compiled && !got[2].stored && log.warnings().size() == 1 &&
                   log.warnings()[0].find("chmod u+w") != std::string::npos && cache.written_layer().empty();
        }
        good = good && files_below(own.path) == before;
        try {
            auto options = options_for(own / "cache");
            options.strict = true;
            store strict(options);
            good = false;
        } catch (const cache_error& e) {
            good = good && e.remedy().find("chmod u+w") != std::string::npos;
        }
        for (const auto& item : fs::recursive_directory_iterator(own / "cache")) {
            fs::permissions(item, fs::perms::owner_all);
        }
        fs::permissions(own / "cache", fs::perms::owner_all);
        return good ? 0 : 1;
    });
    EXPECT_EQ(status, 0);
}

TEST(cache_safety, unreadable_and_unreachable_things_cost_a_compile_and_one_warning) {
    const int status = run_unprivileged([] {
        temp_dir own;
        fake_compiler compiler;
        store(options_for(own / "cache")).get(jobs(2), &compiler, 1);
        for (int n = 0; n < 2; ++n) {
            ::chmod(path_of(own / "cache", job(n)).c_str(), 0);
        }
        log_lines log;
        store cache(options_for(own / "cache", &log));
        const auto got = cache.get(jobs(2), &compiler, 1);
        bool good = got[0].stored && got[1].stored && cache.counters().read_failures >= 2 &&
                    log.warnings().size() == 1 && log.warnings()[0].find("chmod") != std::string::npos;
        good = good && store(options_for(own / "cache")).get(jobs(2), nullptr, 1)[1].from == origin::disk;
        // A root that cannot be entered.
        ::chmod((own / "cache").c_str(), 0);
        log_lines shut;
        store closed(options_for(own / "cache", &shut));
        good = good && closed.get(jobs(2), &compiler, 1)[0].value && shut.warnings().size() == 1;
        ::chmod((own / "cache").c_str(), 0700);
        return good ? 0 : 1;
    });
    EXPECT_EQ(status, 0);
}

TEST(cache_safety, private_modes_hold_under_any_umask) {
    for (const mode_t mask : {0000U, 0022U, 0777U}) {
        const int status = run_unprivileged([mask] {
            temp_dir own;
            ::umask(mask);
            fake_compiler compiler;
            store cache(options_for(own / "a/b/cache"));
            const auto got = cache.get(jobs(2), &compiler, 1);
            bool good = got[0].stored && got[1].stored;
            int files = 0;
            for (const auto& item : fs::recursive_directory_iterator(own.path)) {
                const auto mode = static_cast<unsigned>(item.status().permissions());
                good = good && mode == (item.is_directory() ? 0700U : 0600U);
                files += item.is_regular_file() ? 1 : 0;
            }
            return good && files >= 4 ? 0 : 1;  // two entries, the locks, the tag
        });
        EXPECT_EQ(status, 0) << mask;
    }
}

TEST(cache_safety, without_a_home_it_works_and_says_so_once_and_writes_nowhere) {
    const temp_dir dir;
    const auto layers_with = [](const char* xdg, const char* home) {
        const auto set = [](const char* name, const char* value) {
            value != nullptr ? ::setenv(name, value, 1) : ::unsetenv(name);
        };
        const char* old_xdg = std::getenv("XDG_CACHE_HOME");
        const char* old_home = std::getenv("HOME");
        const std::string kept_xdg = old_xdg != nullptr ? old_xdg : "", kept_home = old_home != nullptr ? old_home : "";
        set("XDG_CACHE_HOME", xdg);
        set("HOME", home);
        auto layers = default_layers(nullptr);
        set("XDG_CACHE_HOME", old_xdg != nullptr ? kept_xdg.c_str() : nullptr);
        set("HOME", old_home != nullptr ? kept_home.c_str() : nullptr);
        return layers;
    };
    EXPECT_THAT(layers_with(nullptr, nullptr), IsEmpty());
    EXPECT_THAT(layers_with("", ""), IsEmpty());
    EXPECT_THAT(layers_with("relative", "relative"), IsEmpty());
    EXPECT_THAT(layers_with(nullptr, "/nonexistent/home"), IsEmpty());
    EXPECT_THAT(layers_with(nullptr, dir.path.c_str()), testing::ElementsAre(dir / ".cache/epjit"));
    EXPECT_THAT(layers_with("/x/cache", dir.path.c_str()), testing::ElementsAre("/x/cache/epjit"));
    EXPECT_THAT(default_layers("a::/b:c:"), testing::ElementsAre("a", "/b", "c"));

    log_lines log;
    fake_compiler compiler;
    store cache(options_for(layers_with(nullptr, nullptr), &log));
    EXPECT_TRUE(cache.written_layer().empty());
    EXPECT_THAT(log.warnings(), IsEmpty());
    const auto got = cache.get(jobs(3), &compiler, 1);
    EXPECT_NE(got[2].value, nullptr);
    EXPECT_FALSE(got[2].stored);
    EXPECT_THAT(log.warnings(), testing::ElementsAre(AllOf(HasSubstr("HOME"), HasSubstr("EPJIT_CACHE_PATH"))));
    EXPECT_EQ(cache.get(jobs(3), &compiler, 1)[0].from, origin::memory);
}

TEST(cache_safety, a_look_does_not_create_the_directory) {
    const temp_dir dir;
    log_lines log;
    auto options = options_for(dir / "cache", &log);
    options.create = false;
    store cache(options);
    EXPECT_THAT(cache.list(), IsEmpty());
    EXPECT_EQ(cache.verify().entries, 0U);
    EXPECT_FALSE(fs::exists(dir / "cache"));
    EXPECT_THAT(log.warnings(), IsEmpty());
}

}  // namespace
}  // namespace epjit::cache::test
