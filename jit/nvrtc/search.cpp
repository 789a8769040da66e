// SPDX-License-Identifier: Apache-2.0
// Where libnvrtc may lie.
#include "jit/core/library_search.hpp"
#include "jit/nvrtc/library.hpp"

#include <fmt/format.h>

#include <filesystem>

namespace epjit::jit::nvrtc {

namespace fs = std::filesystem;

std::vector<std::string> search_places(const std::string& explicit_path, std::vector<std::string>& tried) {
    if (!explicit_path.empty()) {
        return {explicit_path};  // someone who names a library wants that one or an error
    }
    library_search s({"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}, tried);
    for (const char* name : {"CUDA_HOME", "CUDA_PATH"}) {
        const char* root = environment_variable(name);
        if (root == nullptr) {
            s.miss(fmt::format("{}: not set", name));
        } else if (!s.add_toolkit(root)) {
            s.miss(fmt::format("{}={}: no libnvrtc in lib64, lib or targets/*/lib", name, root));
        }
    }
    for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
        const char* root = environment_variable(name);
        if (root == nullptr) {
            s.miss(fmt::format("{}: not set", name));
            continue;
        }
        // conda installs the toolkit's libraries straight into its lib.
        // The wheels of nvidia-cuda-nvrtc: 13 in the shared folder cu13, 12 in cuda_nvrtc.
        const bool wheel = s.add_environment(root, {"cu13", "cuda_nvrtc"});
        const bool plain = s.add_folder(fs::path(root) / "lib");
        if (!wheel && !plain) {
            s.miss(fmt::format("{}={}: no nvidia-cuda-nvrtc wheel in lib/python*/site-packages", name, root));
        }
    }
    for (const std::string& soname : s.sonames()) {
        s.add(soname);
    }
    bool usual = false;
    for (const fs::path& folder : library_search::children("/usr/local")) {
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
