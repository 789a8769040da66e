// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/templates.hpp"

#include "epjit/error.hpp"
#include "jit/program/includes.hpp"
#include "jit/program/program.hpp"
#include "templates/embedded.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>

namespace epjit::jit {
namespace {

namespace fs = std::filesystem;

// A template folder is small; these bounds keep a wrong EPJIT_TEMPLATE_DIR ("/", "$HOME") from being read
// whole.
constexpr std::size_t max_folder_entries = 4096;
constexpr std::uintmax_t max_template_bytes = 4 << 20;

using file_map = std::map<std::string, std::string, std::less<>>;

std::string read_template(const fs::path& path) {
    std::error_code failure;
    const auto bytes = fs::file_size(path, failure);
    if (!failure && bytes > max_template_bytes) {
        throw config_error(
            fmt::format("template {} has {} bytes, more than {}", path.string(), bytes, max_template_bytes));
    }
    std::ifstream in(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (!in.is_open() || in.bad()) {
        throw config_error(fmt::format("cannot read template {}", path.string()), "make the file readable");
    }
    return text;
}

file_map read_folder(const std::string& directory) {
    const auto refuse = [&](const std::string& why) -> config_error {
        return config_error(fmt::format("cannot read the templates of \"{}\": {}", directory, why),
                            "point EPJIT_TEMPLATE_DIR at a copy of the templates folder, or unset it");
    };
    std::error_code failure;
    if (!fs::is_directory(directory, failure)) {
        throw refuse(failure ? failure.message() : "not a directory");
    }
    file_map files;
    std::size_t seen = 0;
    fs::recursive_directory_iterator it(directory, failure);
    for (; !failure && it != fs::recursive_directory_iterator(); it.increment(failure)) {
        if (++seen > max_folder_entries) {
            throw refuse(fmt::format("it holds more than {} entries", max_folder_entries));
        }
        std::error_code unreadable;
        if (it->path().extension() == ".cuh" && it->is_regular_file(unreadable)) {
            files.emplace(it->path().lexically_relative(directory).generic_string(), read_template(it->path()));
        }
    }
    if (failure) {
        throw refuse(failure.message());
    }
    return files;
}

}  // namespace

struct template_set::state {
    file_map files;
    std::string directory;
    std::map<std::string, digest, std::less<>> root_digests;  // of those roots that exist
};

template_set template_set::embedded() {
    // Made once and immutable from then on; digests cost more than a key look-up should.
    static const std::shared_ptr<const state> shared = [] {
        auto s = std::make_shared<state>();
        for (const auto& file : templates::embedded_files()) {
            s->files.emplace(file.name, file.text);
        }
        const template_set set(s);
        for (const std::string_view root : template_roots()) {
            if (s->files.contains(root)) {
                s->root_digests.emplace(root, set.closure_digest(root));
            }
        }
        return s;
    }();
    return template_set(shared);
}

template_set template_set::from_directory(const std::string& directory) {
    auto s = std::make_shared<state>();
    s->files = read_folder(directory);
    s->directory = directory;
    const template_set set(s);
    for (const std::string_view root : template_roots()) {
        s->root_digests.emplace(root, set.closure_digest(root));
    }
    return set;
}

std::string_view template_set::find(std::string_view name) const noexcept {
    const auto it = state_->files.find(name);
    return it == state_->files.end() ? std::string_view{} : std::string_view(it->second);
}

std::vector<std::pair<std::string_view, std::string_view>> template_set::closure(std::string_view root) const {
    const std::string place = state_->directory.empty() ? "the embedded templates" : "\"" + state_->directory + "\"";
    std::map<std::string_view, std::string_view> reached;
    std::vector<std::string_view> open;
    const auto reach = [&](std::string_view name, std::string_view from) {
        const auto it = state_->files.find(name);
        if (it == state_->files.end()) {
            throw config_error(
                from.empty() ? fmt::format("{} hold no template \"{}\"", place, name)
                             : fmt::format("template {} includes \"{}\", which {} do not hold", from, name, place),
                "includes are named relative to the templates folder");
        }
        if (reached.emplace(it->first, it->second).second) {
            open.push_back(it->first);
        }
    };
    reach(root, {});
    while (!open.empty()) {
        const std::string_view name = open.back();
        open.pop_back();
        for (const include_line& line : scan_includes(reached.at(name))) {
            if (line.form != include_form::quoted) {
                throw config_error(fmt::format("template {} line {} has \"{}\"", name, line.number, line.text),
                                   "templates include only each other, by quoted name, so that NVRTC alone can compile "
                                   "them");
            }
            reach(line.name, name);
        }
    }
    return {reached.begin(), reached.end()};
}

digest template_set::closure_digest(std::string_view root) const {
    if (const auto known = state_->root_digests.find(root); known != state_->root_digests.end()) {
        return known->second;
    }
    field_hasher hasher;
    for (const auto& [name, text] : closure(root)) {
        hasher.add(name).add(text);
    }
    return hasher.finish();
}

const std::string& template_set::directory() const noexcept {
    return state_->directory;
}

}  // namespace epjit::jit
