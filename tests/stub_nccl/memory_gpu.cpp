// SPDX-License-Identifier: Apache-2.0
#include "tests/stub_nccl/memory.hpp"

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>

namespace epjit::tests {
namespace {

/// What is used of the driver, and the first GPU's context, which its ranks share.
class driver {
   public:
    driver() {
        // The one of ranks that share a GPU, where they have loaded it.
        library_ = dlopen("libone_gpu_cuda.so", RTLD_NOW | RTLD_NOLOAD);
        library_ = library_ != nullptr ? library_ : dlopen("libcuda.so.1", RTLD_NOW);
        if (library_ == nullptr) {
            std::fprintf(stderr, "stub NCCL: %s\n", dlerror());
            std::abort();
        }
        find(context_set_, "cuCtxSetCurrent");
        find(allocate_, "cuMemAlloc_v2");
        find(free_, "cuMemFree_v2");
        find(fill_, "cuMemsetD8_v2");
        find(copy_, "cuMemcpy");
        find(synchronize_, "cuStreamSynchronize");
        int (*retain)(void**, int) = nullptr;
        find(retain, "cuDevicePrimaryCtxRetain");
        check(retain(&context_, 0), "cuDevicePrimaryCtxRetain");
    }

    void* allocate(std::size_t bytes) const {
        enter();
        std::uint64_t memory = 0;
        if (allocate_(&memory, bytes) != 0) {
            return nullptr;
        }
        check(fill_(memory, 0xa5, bytes), "cuMemsetD8");
        check(synchronize_(nullptr), "cuStreamSynchronize");
        return reinterpret_cast<void*>(memory);
    }
    void release(void* memory) const {
        enter();
        free_(reinterpret_cast<std::uint64_t>(memory));
    }
    void copy(void* to, const void* from, std::size_t bytes) const {
        enter();
        check(copy_(reinterpret_cast<std::uint64_t>(to), reinterpret_cast<std::uint64_t>(from), bytes), "cuMemcpy");
        check(synchronize_(nullptr), "cuStreamSynchronize");
    }
    void wait(stream_t stream) const {
        enter();
        check(synchronize_(stream), "cuStreamSynchronize");
    }

   private:
    template <class Function>
    void find(Function& function, const char* name) const {
        function = reinterpret_cast<Function>(dlsym(library_, name));
        check(function == nullptr ? 1 : 0, name);
    }
    static void check(int result, const char* what) {
        if (result != 0) {
            std::fprintf(stderr, "stub NCCL: %s gave %d\n", what, result);
            std::abort();
        }
    }
    void enter() const { check(context_set_(context_), "cuCtxSetCurrent"); }

    void* library_ = nullptr;
    void* context_ = nullptr;
    int (*context_set_)(void*) = nullptr;
    int (*allocate_)(std::uint64_t*, std::size_t) = nullptr;
    int (*free_)(std::uint64_t) = nullptr;
    int (*fill_)(std::uint64_t, unsigned char, std::size_t) = nullptr;
    int (*copy_)(std::uint64_t, std::uint64_t, std::size_t) = nullptr;
    int (*synchronize_)(stream_t) = nullptr;
};

const driver& the_driver() {
    static const driver one;
    return one;
}

}  // namespace

void* allocate_stub_memory(std::size_t bytes) {
    return the_driver().allocate(bytes);
}
void free_stub_memory(void* memory) {
    the_driver().release(memory);
}
void copy_stub_memory(void* to, const void* from, std::size_t bytes) {
    the_driver().copy(to, from, bytes);
}
void wait_for_stub_stream(stream_t stream) {
    the_driver().wait(stream);
}
stub_team map_stub_team(const std::vector<void*>& memory, std::size_t) {
    return {0, 0, memory};
}
void unmap_stub_team(const stub_team&) {}

}  // namespace epjit::tests
