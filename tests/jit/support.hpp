// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/compiler.hpp"
#include "epjit/jit/templates.hpp"

#include <memory>
#include <string>
#include <string_view>

namespace epjit::jit::tests {

/// A folder that is removed with all it holds.
class scratch_folder {
   public:
    scratch_folder();
    ~scratch_folder();
    scratch_folder(const scratch_folder&) = delete;
    scratch_folder& operator=(const scratch_folder&) = delete;

    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    /// Writes `name` below the folder, making its folders; returns the whole path.
    std::string write(std::string_view name, std::string_view text) const;

   private:
    std::string path_;
};

/// Fills `folder` with roots of a few lines beside the real layouts, quick to compile.
void write_tiny_templates(const scratch_folder& folder);
template_set tiny_templates();

/// The real NVRTC, null where this machine has none; `reason` then says why.
std::shared_ptr<compiler> real_compiler(const template_set& templates, std::string& reason);

/// Sets or, with null, unsets a variable until the end of the scope.
class scoped_env {
   public:
    scoped_env(const char* name, const char* value);
    ~scoped_env();
    scoped_env(const scoped_env&) = delete;
    scoped_env& operator=(const scoped_env&) = delete;

   private:
    std::string name_, old_;
    bool had_;
};

}  // namespace epjit::jit::tests
