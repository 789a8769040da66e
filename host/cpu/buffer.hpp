// SPDX-License-Identifier: Apache-2.0
// Memory of the CPU exchange, from the embedder's hooks or the heap.
#pragma once

#include "epjit/exchange.hpp"

#include <cstddef>
#include <span>

namespace epjit::host::cpu {

/// Owns bytes, 256-byte aligned, never shrinking. @throws error (internal) naming the size when there are
/// none.
class memory_block {
   public:
    memory_block() noexcept = default;
    ~memory_block() { release(); }
    memory_block(memory_block&& other) noexcept;
    memory_block& operator=(memory_block&& other) noexcept;

    /// At least `bytes`; what the block held before is lost when it has to grow.
    void reserve(const memory_hooks& hooks, std::size_t bytes);
    [[nodiscard]] std::byte* data() const noexcept { return data_; }
    [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

   private:
    void release() noexcept;
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
    memory_hooks hooks_;
};

/// Hands out consecutive arrays of a block, or only adds up their bytes when the base is null.
class carver {
   public:
    explicit carver(std::byte* base) noexcept : base_(base) {}
    template <class T>
    std::span<T> take(std::size_t count) noexcept {
        auto* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return {p, base_ == nullptr ? 0 : count};
    }
    [[nodiscard]] std::size_t used() const noexcept { return used_; }

   private:
    std::byte* base_;
    std::size_t used_ = 0;
};

}  // namespace epjit::host::cpu
