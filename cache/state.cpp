// SPDX-License-Identifier: Apache-2.0
#include "cache/state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <tuple>

namespace epjit::cache::detail {
namespace {

std::int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

/// A relative path was named by the user in this directory; a later chdir must not move the cache.
std::string absolute(const std::string& path) {
    if (path.starts_with('/')) {
        return path;
    }
    std::vector<char> here(4096);
    return ::getcwd(here.data(), here.size()) != nullptr ? std::string(here.data()) + "/" + path : "/" + path;
}

std::string with_remedy(const std::string& problem, const std::string& remedy) {
    return remedy.empty() ? problem : problem + "; remedy: " + remedy;
}

}  // namespace

store_state::store_state(const store_options& given, file_ops& system) : options(given), ops(system) {
    bool first = true;
    for (const auto& path : options.layers) {
        if (!path.empty()) {
            open_layer(absolute(path), first);
            first = false;
        }
    }
    if (layers.empty() && not_kept_.empty() && !options.memory_only) {
        not_kept_ =
            "there is no cache directory (neither EPJIT_CACHE_PATH nor XDG_CACHE_HOME names one, and HOME is not "
            "an existing directory); remedy: set EPJIT_CACHE_PATH to a directory of your own";
    }
}

void store_state::open_layer(const std::string& path, bool first) {
    const bool create = first && options.create && !options.offline;
    const dir_rule rule = first ? dir_rule::written : dir_rule::read;
    opened_dir dir = open_checked(ops, path, rule, create);
    if (dir.missing && first && !create) {
        not_kept_ = with_remedy(dir.problem, dir.remedy);  // an empty cache, and nothing asks for it to be made
        return;
    }
    const bool usable = static_cast<bool>(dir.fd);
    const std::string& problem = usable ? dir.unwritable : dir.problem;
    const std::string& remedy = usable ? dir.mend_unwritable : dir.remedy;
    if (first && options.strict && !problem.empty()) {
        throw cache_error(fmt::format("the cache directory cannot be used: {}", problem), remedy);
    }
    if (!usable) {
        const std::string line = fmt::format("cache directory {} is not used: {}", path, with_remedy(problem, remedy));
        options.log.write(log_level::warn, line);
        not_kept_ = first ? line : not_kept_;
        return;
    }
    layers.push_back(std::make_unique<layer>(ops, path, rule, first && problem.empty(), std::move(dir.fd)));
    if (first && problem.empty()) {
        written = layers.back().get();
        written_path = path;
        room = std::make_unique<evictor>(*written, bounds{options.max_bytes, options.max_files}, counters.evicted);
    } else if (first) {
        not_kept_ = with_remedy(problem, remedy);
    }
}

std::string store_state::layer_names() const {
    std::string text;
    for (const auto& each : layers) {
        text += (text.empty() ? "" : ":") + each->path();
    }
    return text.empty() ? "(none)" : text;
}

void store_state::warn_once(std::string_view kind, const std::string& line) {
    {
        const std::scoped_lock lock(mutex_);
        if (!warned_.emplace(kind).second) {
            return;
        }
    }
    options.log.write(log_level::warn, line);
}

void store_state::warn_not_kept() {
    if (!not_kept_.empty() && !not_kept_.starts_with("cache directory ")) {  // those were told at construction
        warn_once("not kept", "compiled kernels are not kept: " + not_kept_);
    }
}

void store_state::mark_use(const jit::digest& key, const jit::digest& build, bool used) {
    if (written == nullptr) {
        return;
    }
    const std::int64_t offset = lock_offset(lock_area::use, key, build);
    const std::scoped_lock lock(mutex_);
    if (const int pid = ::getpid(); pid != use_pid_) {
        // In a forked child the parent's description is shared: unlocking through it would unmark the parent's.
        use_locks_ = std::make_unique<lock_file>(ops, written->root()->get());
        used_.clear();
        use_pid_ = pid;
    }
    if (used && used_.insert(offset).second) {
        use_locks_->try_lock(offset, false);
    } else if (!used && used_.erase(offset) != 0) {
        use_locks_->unlock(offset);
    }
}

void store_state::report_bad(layer& from, const location& where, const std::string& why, bool moved) {
    const std::string path = from.path() + "/" + where.text();
    if (moved) {
        ++counters.corrupt;
        options.log.write(log_level::warn,
                          fmt::format("cache entry {} is damaged ({}): moved to {}/bad, the variant is "
                                      "compiled again when it is needed",
                                      path, why, from.path()));
        return;
    }
    {
        const std::scoped_lock lock(mutex_);
        if (!warned_.emplace("bad " + path).second) {
            return;
        }
    }
    ++counters.corrupt;
    options.log.write(log_level::warn, fmt::format("cache entry {} is damaged ({}) and not used", path, why));
}

std::optional<decoded_entry> store_state::read_entry(layer& from, const jit::digest& key, const jit::digest& build,
                                                     bool owner) {
    const location where = location_of(key, build);
    const bool ours = &from == written;
    if (ours) {
        mark_use(key, build, true);  // before it is opened: an evictor sees the mark or we see no entry
    }
    read_result result = from.read(where);
    if (result.status == read_status::hit) {
        from.touch(where, result.mtime);
        return std::move(result.entry);
    }
    if (ours) {
        mark_use(key, build, false);
    }
    if (result.status == read_status::unreadable) {
        ++counters.read_failures;
        warn_once("unreadable",
                  fmt::format("cache entry {}/{} cannot be read ({}) and counts as missing; remedy: chmod "
                              "-R u+rwX,go-w {}",
                              from.path(), where.text(), result.why, from.path()));
    } else if (result.status == read_status::bad && !ours) {
        report_bad(from, where, result.why, false);
    } else if (result.status == read_status::bad && owner) {
        report_bad(from, where, result.why, from.quarantine(where));
    } else if (result.status == read_status::bad) {
        // Only the owner of the lock moves it: between our look and a move another may have published a good one.
        lock_file locks(ops, from.root()->get());
        const std::int64_t offset = lock_offset(lock_area::compile, key, build);
        if (locks.try_lock(offset, true) != lock_result::busy) {
            auto entry = read_entry(from, key, build, true);
            locks.unlock(offset);
            return entry;
        }
    }
    return std::nullopt;
}

artifact_ptr store_state::read_layers(const jit::digest& key, const jit::digest* compiler, bool owner) {
    std::optional<decoded_entry> best;
    const layer* found_in = nullptr;
    for (const auto& from : layers) {
        const auto builds = compiler != nullptr ? std::vector{*compiler} : from->builds(key);
        for (const auto& build : builds) {
            auto entry = read_entry(*from, key, build, owner);
            if (entry && (!best || std::tie(entry->created_ns, entry->value.compiler.id) >
                                       std::tie(best->created_ns, best->value.compiler.id))) {
                best = std::move(entry);
                found_in = from.get();
            }
        }
        if (best && compiler != nullptr) {
            break;
        }
    }
    if (!best) {
        return nullptr;
    }
    if (compiler == nullptr && options.log.enabled(log_level::info)) {
        options.log.write(log_level::info, fmt::format("variant {} ({}): using the build of {} (compiler {}) from {}",
                                                       key.hex(), best->value.spec, best->value.compiler.description,
                                                       best->value.compiler.id.hex(), found_in->path()));
    }
    return std::make_shared<const jit::artifact>(std::move(best->value));
}

void store_state::count_miss(const jit::digest& key, const jit::digest* compiler) {
    ++counters.misses;
    if (compiler != nullptr &&
        std::any_of(layers.begin(), layers.end(), [&](const auto& each) { return !each->builds(key).empty(); })) {
        ++counters.misses_other_compiler;
    }
}

bool store_state::store_bytes(const jit::digest& key, const jit::digest& compiler, std::span<const std::byte> bytes) {
    publish_result result;
    if (room->make_room(bytes.size(), result)) {
        result = written->publish(location_of(key, compiler), bytes);
    }
    if (!result) {
        ++counters.write_failures;
        warn_once("write", with_remedy(result.problem, result.remedy));
    }
    return static_cast<bool>(result);
}

bool store_state::store_entry(const jit::artifact& value, bool in_use) {
    if (written == nullptr) {
        warn_not_kept();
        return false;
    }
    std::vector<std::byte> bytes;
    try {
        bytes = encode_entry(value, now_ns());
    } catch (const cache_error& e) {
        ++counters.write_failures;
        warn_once("encode", e.what());
        return false;
    }
    if (in_use) {
        mark_use(value.key, value.compiler.id, true);
    }
    const bool stored = store_bytes(value.key, value.compiler.id, bytes);
    if (in_use && !stored) {
        mark_use(value.key, value.compiler.id, false);
    }
    return stored;
}

std::vector<entry_info> store_state::list() {
    std::vector<entry_info> found;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        for (const auto& sub : layers[i]->sub_directories()) {
            for (const auto& name : layers[i]->names(sub)) {
                if (!parse_entry_name(name)) {
                    continue;
                }
                auto result = layers[i]->read_head({sub, name});
                if (result.status != read_status::hit) {
                    continue;
                }
                auto& value = result.entry->value;
                entry_info info;
                info.key = value.key;
                info.compiler = value.compiler.id;
                info.path = layers[i]->path() + "/" + sub + "/" + name;
                for (auto& kernel : value.kernels) {
                    info.kernels.push_back(std::move(kernel.name));
                }
                info.arch = std::move(value.arch);
                info.bytes = result.entry->total_bytes;
                info.last_used = result.mtime;
                info.layer = static_cast<int>(i);
                info.compiler_description = std::move(value.compiler.description);
                info.spec = std::move(value.spec);
                found.push_back(std::move(info));
            }
        }
    }
    return found;
}

}  // namespace epjit::cache::detail
