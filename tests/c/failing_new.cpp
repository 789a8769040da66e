// SPDX-License-Identifier: Apache-2.0
#include "tests/c/failing_new.hpp"

#include <cstdlib>
#include <new>

namespace epjit::tests {
constinit thread_local int allocations_left = -1;
}

void* operator new(std::size_t bytes) {
    int& left = epjit::tests::allocations_left;
    if (left == 0) {
        throw std::bad_alloc();
    }
    if (left > 0) {
        --left;
    }
    void* const p = std::malloc(bytes != 0 ? bytes : 1);
    if (p == nullptr) {
        throw std::bad_alloc();
    }
    return p;
}
void operator delete(void* p) noexcept {
    std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
    std::free(p);
}
