// SPDX-License-Identifier: Apache-2.0
#include "jit/core/library_search.hpp"

#include <algorithm>
#include <cstdlib>
#include <dlfcn.h>
#include <link.h>

namespace epjit::jit {

namespace fs = std::filesystem;

bool library_search::add_folder(const fs::path& folder) {
    for (const std::string& soname : sonames_) {
        std::error_code failure;
        const fs::path file = folder / soname;
        if (fs::exists(file, failure)) {
            add(file.string());
            return true;
        }
    }
    return false;
}

bool library_search::add_toolkit(const fs::path& root) {
    bool found = add_folder(root / "lib64");
    found |= add_folder(root / "lib");
    for (const fs::path& target : children(root / "targets")) {
        found |= add_folder(target / "lib");
    }
    return found;
}

bool library_search::add_environment(const fs::path& root, const std::vector<std::string>& wheels) {
    bool found = false;
    for (const char* lib : {"lib", "lib64"}) {
        for (const fs::path& python : children(root / lib)) {
            if (!python.filename().string().starts_with("python")) {
                continue;
            }
            for (const std::string& wheel : wheels) {
                found |= add_folder(python / "site-packages" / "nvidia" / wheel / "lib");
            }
        }
    }
    return found;
}

void library_search::add(std::string place) {
    if (std::find(places_.begin(), places_.end(), place) == places_.end()) {
        places_.push_back(std::move(place));
    }
}

std::vector<fs::path> library_search::children(const fs::path& folder) {
    std::vector<fs::path> found;
    std::error_code failure;
    for (fs::directory_iterator it(folder, failure), end; !failure && it != end; it.increment(failure)) {
        found.push_back(it->path());
    }
    std::sort(found.rbegin(), found.rend());
    return found;
}

const char* environment_variable(const char* name) noexcept {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? value : nullptr;
}

std::string loaded_path(void* handle, const std::string& place) {
    link_map* map = nullptr;
    const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr && map->l_name != nullptr;
    for (const std::string& name : {std::string(known ? map->l_name : ""), place}) {
        std::error_code failure;
        const fs::path resolved = fs::canonical(name, failure);
        if (!failure) {
            return resolved.string();
        }
    }
    return {};
}

std::string loader_error() {
    const char* text = dlerror();
    return text != nullptr ? text : "unknown loader error";
}

}  // namespace epjit::jit
