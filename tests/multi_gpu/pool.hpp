// SPDX-License-Identifier: Apache-2.0
// Memory for many small layers: allocating and freeing device memory for each would take longer than the layers.
#pragma once

#include "tools/run/memory.hpp"

#include <cstddef>
#include <memory>
#include <vector>

namespace epjit::tests {

/// Hands out pieces of large blocks; all of them return at once.
class arena {
   public:
    explicit arena(tools::memory_space& blocks_from) : source_(blocks_from) {}
    void* allocate(std::size_t bytes);
    /// Nothing handed out so far is used any more.
    void reset() noexcept;

   private:
    struct block {
        std::byte* data;
        std::size_t bytes, used;
    };
    tools::memory_space& source_;
    std::vector<block> blocks_;
};

/// The stream and copies of `inner`, the memory of `pieces`. Times are not kept.
class pooled_space final : public tools::memory_space {
   public:
    pooled_space(tools::memory_space& inner, arena& pieces) : inner_(inner), pieces_(pieces) {}
    void* allocate(std::size_t bytes) override { return bytes != 0 ? pieces_.allocate(bytes) : nullptr; }
    void upload(void* to, const void* from, std::size_t bytes) override { inner_.upload(to, from, bytes); }
    void download(void* to, const void* from, std::size_t bytes) override { inner_.download(to, from, bytes); }
    void fill(void* to, unsigned char value, std::size_t bytes) override { inner_.fill(to, value, bytes); }
    [[nodiscard]] stream_t stream() const noexcept override { return inner_.stream(); }
    void synchronize() override { inner_.synchronize(); }
    void record(const std::function<void()>& work) override { inner_.record(work); }
    void replay() override { inner_.replay(); }
    std::size_t mark() override { return 0; }
    double us_between(std::size_t, std::size_t) override { return 0; }

   private:
    tools::memory_space& inner_;
    arena& pieces_;
};

}  // namespace epjit::tests
