// SPDX-License-Identifier: Apache-2.0
#include "host/cpu/buffer.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <new>
#include <utility>

namespace epjit::host::cpu {
namespace {

constexpr std::align_val_t block_alignment{256};

}  // namespace

memory_block::memory_block(memory_block&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), hooks_(other.hooks_) {}

memory_block& memory_block::operator=(memory_block&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(hooks_, other.hooks_);
    return *this;
}

void memory_block::reserve(const memory_hooks& hooks, std::size_t bytes) {
    if (bytes <= bytes_) {
        return;
    }
    release();
    void* p = hooks.allocate != nullptr ? hooks.allocate(hooks.user, bytes)
                                        : ::operator new(bytes, block_alignment, std::nothrow);
    if (p == nullptr) {
        throw error(error_kind::internal,
                    fmt::format("allocating {} bytes of host memory for the host exchange failed{}", bytes,
                                hooks.allocate != nullptr ? " (the caller's allocate hook returned null)" : ""),
                    "free memory, or use fewer tokens or ranks");
    }
    data_ = static_cast<std::byte*>(p);
    bytes_ = bytes;
    hooks_ = hooks;
}

void memory_block::release() noexcept {
    if (data_ == nullptr) {
        return;
    }
    if (hooks_.allocate == nullptr) {
        ::operator delete(data_, block_alignment);
    } else if (hooks_.release != nullptr) {
        hooks_.release(hooks_.user, data_);
    }
    data_ = nullptr;
    bytes_ = 0;
}

}  // namespace epjit::host::cpu
