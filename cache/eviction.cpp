// SPDX-License-Identifier: Apache-2.0
#include "cache/eviction.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <thread>
#include <tuple>

namespace epjit::cache::detail {
namespace {

constexpr std::chrono::milliseconds lock_wait{5000};
constexpr std::int64_t unlocked_grace_s = 600;  ///< where use cannot be marked, how long an entry counts as in use
constexpr std::uint64_t large_cache_files = 1000;

bool same(const timespec& a, const timespec& b) {
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

bool fits(std::uint64_t bytes, std::uint64_t files, std::uint64_t incoming, const bounds& limits) {
    return files + (incoming != 0 ? 1 : 0) <= limits.files && bytes <= limits.bytes && incoming <= limits.bytes - bytes;
}

std::int64_t now_s() {
    return static_cast<std::int64_t>(std::time(nullptr));
}

}  // namespace

/// What counts: entries, temps and everything in bad/. Files of unknown names are neither counted nor removed, so that
/// they can block nothing. Temps older than an hour are removed on the way.
evictor::usage evictor::scan_sub(int root, const std::string& sub, std::vector<item>* items) {
    usage total;
    file_ops& ops = layer_.ops();
    const bool is_bad = sub == "bad";
    const unique_fd dir = open_sub(ops, root, sub.c_str(), layer_.rule(), false);
    std::vector<std::string> names;
    if (!dir || !read_names(ops, dir.get(), names)) {
        return total;
    }
    for (auto& name : names) {
        struct stat status {};
        if (ops.fstatat(dir.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
            continue;
        }
        const bool temp = is_temp_name(name);
        if (temp && !is_bad && now_s() - status.st_mtim.tv_sec > temp_lifetime_s) {
            ops.unlinkat(dir.get(), name.c_str(), 0);
            continue;
        }
        const bool entry = !is_bad && parse_entry_name(name).has_value();
        if (!entry && !temp && !is_bad) {
            continue;
        }
        const auto bytes = S_ISREG(status.st_mode) ? static_cast<std::uint64_t>(status.st_size) : 0;
        total.bytes += bytes;
        ++total.files;
        if (items != nullptr && !temp) {
            items->push_back({sub, std::move(name), bytes, status.st_mtim, entry});
        }
    }
    return total;
}

/// Exact as of the moment each directory was looked at: a directory is read again when its mtime has moved.
evictor::usage evictor::quick_usage() {
    const auto root = layer_.root();
    auto subs = layer_.sub_directories();
    subs.emplace_back("bad");
    usage total;
    for (const auto& sub : subs) {
        struct stat status {};
        if (layer_.ops().fstatat(root->get(), sub.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
            continue;
        }
        sub_usage& known = known_[sub];
        if (!known.settled || !same(known.changed, status.st_mtim)) {
            // mtime ticks are coarse: two changes may share one.
            known.settled = now_s() - status.st_mtim.tv_sec > 2;
            known.changed = status.st_mtim;
            known.total = scan_sub(root->get(), sub, nullptr);
        }
        total.bytes += known.total.bytes;
        total.files += known.total.files;
    }
    return total;
}

evictor::usage evictor::scan(std::vector<item>& items) {
    const auto root = layer_.root();
    auto subs = layer_.sub_directories();
    subs.emplace_back("bad");
    usage total;
    for (const auto& sub : subs) {
        const usage part = scan_sub(root->get(), sub, &items);
        total.bytes += part.bytes;
        total.files += part.files;
    }
    // What is damaged goes first, then by last use; names settle ties, so that two processes agree.
    std::sort(items.begin(), items.end(), [](const item& a, const item& b) {
        return std::tie(a.entry, a.used.tv_sec, a.used.tv_nsec, a.name) <
               std::tie(b.entry, b.used.tv_sec, b.used.tv_nsec, b.name);
    });
    return total;
}

/// False when the entry is in use.
bool evictor::remove(const item& victim, lock_file& locks) {
    file_ops& ops = layer_.ops();
    const auto root = layer_.root();
    const unique_fd dir = open_sub(ops, root->get(), victim.sub.c_str(), layer_.rule(), false);
    if (!dir) {
        return false;
    }
    if (!victim.entry) {
        remove_tree(ops, dir.get(), victim.name);
        return true;
    }
    const auto name = parse_entry_name(victim.name);
    const std::int64_t use = lock_offset(lock_area::use, name->key, name->compiler);
    const lock_result mine = locks.try_lock(use, true);
    if (mine == lock_result::busy ||
        (mine == lock_result::unsupported && now_s() - victim.used.tv_sec < unlocked_grace_s)) {
        return false;
    }
    const bool gone = ops.unlinkat(dir.get(), victim.name.c_str(), 0) == 0;
    const bool there = !gone && errno != ENOENT;
    if (mine == lock_result::acquired) {
        locks.unlock(use);
    }
    evicted_ += gone ? 1 : 0;
    return !there;
}

bool evictor::take_lock(lock_file& locks) {
    const std::int64_t offset = static_cast<std::int64_t>(lock_area::eviction);
    const auto deadline = std::chrono::steady_clock::now() + lock_wait;
    while (locks.try_lock(offset, true) == lock_result::busy) {
        if (std::chrono::steady_clock::now() > deadline) {
            return false;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
}

bool evictor::evict(usage& total, std::uint64_t incoming, bounds limits, std::uint64_t& count) {
    std::vector<item> items;
    total = scan(items);
    if (fits(total.bytes, total.files, incoming, limits)) {
        return true;
    }
    // A scan of a large cache is worth more than one entry's room.
    bounds target = limits;
    if (total.files > large_cache_files) {
        target = {limits.bytes - limits.bytes / 20, limits.files - limits.files / 20};
    }
    lock_file use(layer_.ops(), layer_.root()->get());
    for (const item& victim : items) {
        if (fits(total.bytes, total.files, incoming, target)) {
            break;
        }
        if (remove(victim, use)) {
            total.bytes -= victim.bytes;
            total.files -= 1;
            count += victim.entry ? 1 : 0;
        }
    }
    return fits(total.bytes, total.files, incoming, limits);
}

bool evictor::make_room(std::uint64_t incoming_bytes, publish_result& why) {
    const std::scoped_lock lock(mutex_);
    if (!swept_) {
        swept_ = true;
        std::vector<item> items;
        scan(items);
    }
    usage total = quick_usage();
    if (fits(total.bytes, total.files, incoming_bytes, limits_)) {
        return true;
    }
    lock_file locks(layer_.ops(), layer_.root()->get());
    if (!take_lock(locks)) {
        why = {fmt::format("{} is full and another process has been evicting from it for {} s", layer_.path(),
                           lock_wait.count() / 1000),
               "end that process if it is stopped"};
        return false;
    }
    std::uint64_t count = 0;
    const bool room = evict(total, incoming_bytes, limits_, count);
    locks.unlock(static_cast<std::int64_t>(lock_area::eviction));
    if (!room) {
        why = {
            fmt::format("an entry of {} bytes does not fit into {}: {} bytes in {} files stay because they are in use, "
                        "the bounds are {} bytes and {} files",
                        incoming_bytes, layer_.path(), total.bytes, total.files, limits_.bytes, limits_.files),
            "raise EPJIT_CACHE_MAX_BYTES or EPJIT_CACHE_MAX_FILES"};
    }
    return room;
}

std::uint64_t evictor::prune(std::uint64_t max_bytes) {
    const std::scoped_lock lock(mutex_);
    lock_file locks(layer_.ops(), layer_.root()->get());
    if (!take_lock(locks)) {
        return 0;
    }
    usage total;
    std::uint64_t count = 0;
    evict(total, 0, {max_bytes, limits_.files}, count);
    locks.unlock(static_cast<std::int64_t>(lock_area::eviction));
    return count;
}

}  // namespace epjit::cache::detail
