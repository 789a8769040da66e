// SPDX-License-Identifier: Apache-2.0
// Where a vendor's shared library may lie: the part of the search that NVRTC and NCCL have in common.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace epjit::jit {

/// Gathers candidates in order, each once. Only files that exist are added, besides what add() is given.
class library_search {
   public:
    /// `sonames` in order of preference; `tried` takes the places without any of them.
    library_search(std::vector<std::string> sonames, std::vector<std::string>& tried)
        : sonames_(std::move(sonames)), tried_(tried) {}

    /// The first soname that the folder holds.
    bool add_folder(const std::filesystem::path& folder);
    /// lib64, lib and targets/*/lib of a toolkit.
    bool add_toolkit(const std::filesystem::path& root);
    /// nvidia/WHEEL/lib in the site-packages of a Python environment.
    bool add_environment(const std::filesystem::path& root, const std::vector<std::string>& wheels);
    void add(std::string place);
    void miss(std::string what) { tried_.push_back(std::move(what)); }

    [[nodiscard]] const std::vector<std::string>& sonames() const noexcept { return sonames_; }
    [[nodiscard]] std::vector<std::string> take() { return std::move(places_); }

    /// Sorted from last to first, so that the newest version of numbered folders comes first.
    static std::vector<std::filesystem::path> children(const std::filesystem::path& folder);

   private:
    std::vector<std::string> sonames_;
    std::vector<std::string>& tried_;
    std::vector<std::string> places_;
};

/// An environment variable; null when not set or empty.
const char* environment_variable(const char* name) noexcept;

/// File that a dlopen handle was loaded from, links resolved. The loader names the path it saw first, which may be a
/// link that is gone by now; then `place` says it. Empty when neither can be resolved.
std::string loaded_path(void* handle, const std::string& place);

/// dlerror's text.
std::string loader_error();

}  // namespace epjit::jit
