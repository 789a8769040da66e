// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/hash.hpp"

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace epjit::jit {

/// The device templates: those embedded in the library, or a kernel engineer's folder. Immutable; cheap to copy.
class template_set {
   public:
    /// The templates this library was built with.
    static template_set embedded();
    /// Every *.cuh below `directory`, read once. @throws config_error when the folder cannot be read or lacks a root.
    static template_set from_directory(const std::string& directory);

    /// Contents by name relative to the templates folder ("plan/plan_kernel.cuh"); empty when there is none.
    [[nodiscard]] std::string_view find(std::string_view name) const noexcept;
    /// `root` and all it includes, directly or not, each once, sorted by name: (name, contents).
    /// @throws config_error on an include that is not in the set, or an angle-bracket include.
    [[nodiscard]] std::vector<std::pair<std::string_view, std::string_view>> closure(std::string_view root) const;
    /// Digest of names and bytes of `closure(root)`.
    [[nodiscard]] digest closure_digest(std::string_view root) const;
    /// Empty for the embedded set, else the folder.
    [[nodiscard]] const std::string& directory() const noexcept;

   private:
    struct state;
    explicit template_set(std::shared_ptr<const state> s) : state_(std::move(s)) {}
    std::shared_ptr<const state> state_;
};

}  // namespace epjit::jit
