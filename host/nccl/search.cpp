// SPDX-License-Identifier: Apache-2.0
// Where libnccl may lie.
#include "host/nccl/api.hpp"
#include "jit/core/library_search.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <string_view>

namespace epjit::host {
namespace {

namespace fs = std::filesystem;
using jit::environment_variable;

constexpr const char* soname = "libnccl.so.2";

void add_roots(jit::library_search& search) {
    for (const char* name : {"NCCL_HOME", "NCCL_ROOT", "NCCL_ROOT_DIR", "CUDA_HOME", "CUDA_PATH"}) {
        const char* root = environment_variable(name);
        if (root == nullptr) {
            search.miss(fmt::format("{}: not set", name));
        } else if (!search.add_toolkit(root)) {
            search.miss(fmt::format("{}={}: no {} in lib64, lib or targets/*/lib", name, root, soname));
        }
    }
}

void add_loader_path(jit::library_search& search) {
    const char* folders = environment_variable("LD_LIBRARY_PATH");
    if (folders == nullptr) {
        search.miss("LD_LIBRARY_PATH: not set");
        return;
    }
    bool found = false;
    for (std::string_view rest = folders; !rest.empty();) {
        const std::size_t end = std::min(rest.find(':'), rest.size());
        if (end > 0) {
            found |= search.add_folder(fs::path(rest.substr(0, end)));
        }
        rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    if (!found) {
        search.miss(fmt::format("LD_LIBRARY_PATH={}: no {}", folders, soname));
    }
}

void add_python(jit::library_search& search) {
    // The root of an interpreter is two levels up, links not resolved: an environment's python is a link to another's.
    if (const char* python = environment_variable("EPJIT_PYTHON"); python == nullptr) {
        search.miss("EPJIT_PYTHON: not set");
    } else if (!search.add_environment(fs::path(python).parent_path().parent_path(), {"nccl"})) {
        search.miss(fmt::format("EPJIT_PYTHON={}: no nvidia-nccl wheel in ../lib/python*/site-packages", python));
    }
    for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
        const char* root = environment_variable(name);
        if (root == nullptr) {
            search.miss(fmt::format("{}: not set", name));
            continue;
        }
        // conda's own package lies straight in its lib.
        const bool wheel = search.add_environment(root, {"nccl"});
        const bool plain = search.add_folder(fs::path(root) / "lib");
        if (!wheel && !plain) {
            search.miss(fmt::format("{}={}: no nvidia-nccl wheel in lib/python*/site-packages", name, root));
        }
    }
}

}  // namespace

std::vector<std::string> nccl_places(const std::string& library, std::vector<std::string>& tried) {
    if (!library.empty()) {
        return {library};  // someone who names a library wants that one or an error
    }
    jit::library_search search({soname}, tried);
    add_roots(search);
    add_loader_path(search);
    add_python(search);
    search.add(soname);
    return search.take();
}

}  // namespace epjit::host
