// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/pool.hpp"

#include <algorithm>

namespace epjit::tests {

void* arena::allocate(std::size_t bytes) {
    constexpr std::size_t usual = std::size_t{32} << 20;
    const std::size_t size = (bytes + 255) / 256 * 256;
    for (block& b : blocks_) {
        if (b.bytes - b.used >= size) {
            b.used += size;
            return b.data + b.used - size;
        }
    }
    const std::size_t whole = std::max(size, usual);
    blocks_.push_back({static_cast<std::byte*>(source_.allocate(whole)), whole, size});
    return blocks_.back().data;
}

void arena::reset() noexcept {
    for (block& b : blocks_) {
        b.used = 0;
    }
}

}  // namespace epjit::tests
