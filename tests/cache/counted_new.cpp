// SPDX-License-Identifier: Apache-2.0
#include "tests/cache/counted_new.hpp"

#include <cstdlib>
#include <new>

namespace {
thread_local std::uint64_t count = 0;
}

// Not inlined: the compiler would otherwise see free() on what new gave.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
    ++count;
    if (void* found = std::malloc(bytes)) {
        return found;
    }
    throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* at) noexcept {
    std::free(at);
}
[[gnu::noinline]] void operator delete(void* at, std::size_t) noexcept {
    std::free(at);
}

std::uint64_t epjit::cache::test::allocations() noexcept {
    return count;
}
