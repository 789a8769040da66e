// SPDX-License-Identifier: Apache-2.0
// Artifacts of this process by key. Readers take no lock and allocate nothing; nothing is removed before the end.
#pragma once

#include "epjit/jit/artifact.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

namespace epjit::cache::detail {

class memory_map {
   public:
    using value = std::shared_ptr<const jit::artifact>;
    memory_map();

    /// Null when absent. `compiler` null: any build. The pointer lives as long as the map.
    [[nodiscard]] const value* find(const jit::digest& key, const jit::digest* compiler) const noexcept;
    /// The stored value: an equal (key, compiler) that is there already wins. Returns it.
    value insert(value v);

   private:
    /// Open addressing, a power of two, at most half full, so that a probe always meets an empty slot.
    struct table {
        explicit table(std::size_t size) : slots(size) {}
        std::vector<std::atomic<const value*>> slots;
    };
    static void place(table& t, const value* node) noexcept;

    std::mutex mutex_;  ///< of writers
    std::atomic<const table*> current_;
    std::vector<std::unique_ptr<table>> tables_;  ///< outgrown ones stay: a reader may still be in one
    std::vector<std::unique_ptr<const value>> nodes_;
};

}  // namespace epjit::cache::detail
