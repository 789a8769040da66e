// SPDX-License-Identifier: Apache-2.0
#include "epjit/cache/store.hpp"

#include "cache/state.hpp"

#include <cstdlib>

namespace epjit::cache {

using detail::artifact_ptr;

namespace {

bool is_directory(const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

/// Environment variables with relative paths are ignored, as the XDG specification asks.
std::string environment_path(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && value[0] == '/' ? value : "";
}

}  // namespace

std::vector<std::string> default_layers(const char* path) {
    std::vector<std::string> layers;
    if (path != nullptr && path[0] != '\0') {
        const std::string all = path;
        for (std::size_t at = 0; at <= all.size();) {
            const std::size_t end = std::min(all.find(':', at), all.size());
            if (end > at) {
                layers.push_back(all.substr(at, end - at));
            }
            at = end + 1;
        }
        return layers;
    }
    if (const auto xdg = environment_path("XDG_CACHE_HOME"); !xdg.empty()) {
        layers.push_back(xdg + "/epjit");
    } else if (const auto home = environment_path("HOME"); !home.empty() && is_directory(home)) {
        layers.push_back(home + "/.cache/epjit");  // a HOME that does not exist is not made
    }
    return layers;
}

store::store(const store_options& options) : store(options, detail::file_ops::system()) {}
store::store(const store_options& options, detail::file_ops& ops) : state_(std::make_unique<state>(options, ops)) {}
store::~store() = default;

const jit::artifact* store::peek(const jit::digest& key, const jit::digest* compiler) const noexcept {
    const auto* found = state_->memory.find(key, compiler);
    return found != nullptr ? found->get() : nullptr;
}

std::optional<served> store::find(const jit::digest& key, const jit::digest* compiler) {
    if (state_->options.offline) {
        compiler = nullptr;
    }
    if (const auto* found = state_->memory.find(key, compiler)) {
        ++state_->counters.memory_hits;
        return served{*found, origin::memory, true, nullptr};
    }
    if (artifact_ptr value = state_->read_layers(key, compiler, false)) {
        ++state_->counters.disk_hits;
        return served{state_->memory.insert(std::move(value)), origin::disk, true, nullptr};
    }
    state_->count_miss(key, compiler);
    return std::nullopt;
}

std::vector<served> store::get(std::span<const jit::compile_job> jobs, jit::compiler* compiler, int parallelism,
                               const std::function<void(std::size_t, const served&)>& progress,
                               const std::function<bool()>& cancelled) {
    return detail::fetch(*state_, jobs, compiler, parallelism, progress, cancelled);
}

bool store::publish(const jit::artifact& value) {
    return state_->store_entry(value, false);
}

std::vector<entry_info> store::list() const {
    return state_->list();
}

store::verify_result store::verify() const {
    verify_result result;
    for (const auto& from : state_->layers) {
        for (const auto& sub : from->sub_directories()) {
            for (const auto& name : from->names(sub)) {
                if (!detail::parse_entry_name(name)) {
                    continue;
                }
                const auto status = from->read({sub, name}).status;
                if (status == detail::read_status::absent) {
                    continue;  // evicted or replaced since the directory was read
                }
                ++result.entries;
                if (status != detail::read_status::hit) {
                    ++result.bad;
                    result.bad_paths.push_back(from->path() + "/" + sub + "/" + name);
                }
            }
        }
    }
    return result;
}

std::uint64_t store::prune(std::optional<std::uint64_t> max_bytes) {
    return state_->room ? state_->room->prune(max_bytes.value_or(state_->options.max_bytes)) : 0;
}

const store_counters& store::counters() const noexcept {
    return state_->counters;
}
const std::string& store::written_layer() const noexcept {
    return state_->written_path;
}

}  // namespace epjit::cache
