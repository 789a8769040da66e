// SPDX-License-Identifier: Apache-2.0
// Where libnvrtc may lie.
#include "jit/nvrtc/library.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <string_view>

namespace epjit::jit::nvrtc {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 3> sonames = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};

class search {
   public:
    explicit search(std::vector<std::string>& tried) : tried_(tried) {}

    /// The newest libnvrtc of a folder.
    bool add_folder(const fs::path& folder) {
        for (const char* soname : sonames) {
            std::error_code failure;
            const fs::path file = folder / soname;
            if (fs::exists(file, failure)) {
                add(file.string());
                return true;
            }
        }
        return false;
    }

    /// lib64, lib and targets/*/lib of a toolkit.
    bool add_toolkit(const fs::path& root) {
        bool found = add_folder(root / "lib64");
        found |= add_folder(root / "lib");
        for (const fs::path& target : children(root / "targets")) {
            found |= add_folder(target / "lib");
        }
        return found;
    }

    /// The wheels of a Python environment: nvidia-cuda-nvrtc (13: shared folder cu13, 12: cuda_nvrtc).
    bool add_environment(const fs::path& root) {
        bool found = false;
        for (const char* lib : {"lib", "lib64"}) {
            for (const fs::path& python : children(root / lib)) {
                if (python.filename().string().starts_with("python")) {
                    for (const char* wheel : {"cu13", "cuda_nvrtc"}) {
                        found |= add_folder(python / "site-packages" / "nvidia" / wheel / "lib");
                    }
                }
            }
        }
        return found;
    }

    void add(std::string place) {
        if (std::find(places_.begin(), places_.end(), place) == places_.end()) {
            places_.push_back(std::move(place));
        }
    }

    /// Sorted from last to first, so that the newest version of numbered folders comes first.
    static std::vector<fs::path> children(const fs::path& folder) {
        std::vector<fs::path> found;
        std::error_code failure;
        for (fs::directory_iterator it(folder, failure), end; !failure && it != end; it.increment(failure)) {
            found.push_back(it->path());
        }
        std::sort(found.rbegin(), found.rend());
        return found;
    }

    void miss(std::string what) { tried_.push_back(std::move(what)); }
    std::vector<std::string> take() { return std::move(places_); }

   private:
    std::vector<std::string>& tried_;
    std::vector<std::string> places_;
};

const char* variable(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? value : nullptr;
}

}  // namespace

std::vector<std::string> search_places(const std::string& explicit_path, std::vector<std::string>& tried) {
    if (!explicit_path.empty()) {
        return {explicit_path};  // someone who names a library wants that one or an error
    }
    search s(tried);
    for (const char* name : {"CUDA_HOME", "CUDA_PATH"}) {
        const char* root = variable(name);
        if (root == nullptr) {
            s.miss(fmt::format("{}: not set", name));
        } else if (!s.add_toolkit(root)) {
            s.miss(fmt::format("{}={}: no libnvrtc in lib64, lib or targets/*/lib", name, root));
        }
    }
    for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
        const char* root = variable(name);
        if (root == nullptr) {
            s.miss(fmt::format("{}: not set", name));
            continue;
        }
        // conda installs the toolkit's libraries straight into its lib.
        const bool wheel = s.add_environment(root);
        const bool plain = s.add_folder(fs::path(root) / "lib");
        if (!wheel && !plain) {
            s.miss(fmt::format("{}={}: no nvidia-cuda-nvrtc wheel in lib/python*/site-packages", name, root));
        }
    }
    for (const char* soname : sonames) {
        s.add(soname);
    }
    bool usual = false;
    for (const fs::path& folder : search::children("/usr/local")) {
        if (folder.filename().string().starts_with("cuda")) {
            usual |= s.add_toolkit(folder);
        }
    }
    for (const char* folder :
         {"/opt/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"}) {
        usual |= s.add_folder(folder);
    }
    if (!usual) {
        s.miss("/usr/local/cuda*, /opt/cuda, /usr/lib*: no libnvrtc");
    }
    return s.take();
}

}  // namespace epjit::jit::nvrtc
