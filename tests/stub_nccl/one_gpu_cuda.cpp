// SPDX-License-Identifier: Apache-2.0
// The driver as ranks need it that share a GPU, and so a context, in one process: no call waits inside it for a kernel,
// which may wait for a peer, which may want the driver. Allocations never reach it once it is loaded, and copies
// between host and GPU when their stream has come to them. The GPU is there twice. All other symbols are the driver's
// own, which this library is linked with.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t device_bytes = std::size_t{24} << 30;
constexpr std::size_t pinned_bytes = std::size_t{1} << 30;
constexpr std::size_t smallest = 512;
constexpr int out_of_memory = 2;

template <class Function>
Function real(const char* name) {
    void* found = dlsym(dlopen("libcuda.so.1", RTLD_NOW), name);
    if (found == nullptr) {
        std::fprintf(stderr, "the driver has no %s\n", name);
        std::abort();
    }
    return reinterpret_cast<Function>(found);
}

/// Memory in pieces of powers of two, which are used again and never given back.
class arena {
   public:
    arena(std::uintptr_t base, std::size_t bytes) : next_(base), end_(base + bytes) {}

    /// 0: none is left.
    std::uintptr_t allocate(std::size_t bytes) {
        std::size_t size = smallest;
        while (size < bytes) {
            size *= 2;
        }
        const std::lock_guard lock(mutex_);
        std::vector<std::uintptr_t>& used_before = free_[size];
        std::uintptr_t piece = 0;
        if (!used_before.empty()) {
            piece = used_before.back();
            used_before.pop_back();
        } else if (size <= end_ - next_) {
            piece = next_;
            next_ += size;
        } else {
            return 0;
        }
        size_of_[piece] = size;
        return piece;
    }
    void release(std::uintptr_t piece) {
        const std::lock_guard lock(mutex_);
        free_[size_of_.at(piece)].push_back(piece);
    }

   private:
    std::mutex mutex_;
    std::uintptr_t next_;
    const std::uintptr_t end_;
    std::map<std::size_t, std::vector<std::uintptr_t>> free_;
    std::map<std::uintptr_t, std::size_t> size_of_;
};

arena& device_memory() {
    static arena all = [] {
        std::uint64_t base = 0;
        if (real<int (*)(std::uint64_t*, std::size_t)>("cuMemAlloc_v2")(&base, device_bytes) != 0) {
            std::fprintf(stderr, "ranks that share a GPU want %zu bytes of it\n", device_bytes);
            std::abort();
        }
        return arena(base, device_bytes);
    }();
    return all;
}
arena& pinned_memory() {
    static arena all = [] {
        constexpr unsigned portable_and_mapped = 3;
        void* base = nullptr;
        if (real<int (*)(void**, std::size_t, unsigned)>("cuMemHostAlloc")(&base, pinned_bytes, portable_and_mapped) !=
            0) {
            std::fprintf(stderr, "ranks that share a GPU want %zu bytes of pinned memory\n", pinned_bytes);
            std::abort();
        }
        return arena(reinterpret_cast<std::uintptr_t>(base), pinned_bytes);
    }();
    return all;
}

/// Until the stream has nothing to do, or is captured.
void wait_for(void* stream) {
    constexpr int not_ready = 600;
    static const auto query = real<int (*)(void*)>("cuStreamQuery");
    static const auto capturing = real<int (*)(void*, int*)>("cuStreamIsCapturing");
    int captured = 0;
    if (capturing(stream, &captured) != 0 || captured != 0) {
        return;
    }
    while (query(stream) == not_ready) {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
}

}  // namespace

extern "C" {

int cuMemAlloc_v2(std::uint64_t* memory, std::size_t bytes) {
    *memory = device_memory().allocate(bytes);
    return *memory != 0 ? 0 : out_of_memory;
}
int cuMemFree_v2(std::uint64_t memory) {
    device_memory().release(memory);
    return 0;
}
int cuMemHostAlloc(void** memory, std::size_t bytes, unsigned) {
    *memory = reinterpret_cast<void*>(pinned_memory().allocate(bytes));
    return *memory != nullptr ? 0 : out_of_memory;
}
int cuMemFreeHost(void* memory) {
    pinned_memory().release(reinterpret_cast<std::uintptr_t>(memory));
    return 0;
}
int cuDeviceGetCount(int* count) {
    *count = 2;
    return 0;
}
int cuDeviceGet(int* device, int) {
    static const auto get = real<int (*)(int*, int)>("cuDeviceGet");
    return get(device, 0);
}
int cuDeviceCanAccessPeer(int* can, int, int) {
    *can = 1;
    return 0;
}
int cuCtxEnablePeerAccess(void*, unsigned) {
    return 0;
}
int cuModuleUnload(void*) {
    return 0;
}
int cuMemcpyDtoHAsync_v2(void* to, std::uint64_t from, std::size_t bytes, void* stream) {
    static const auto copy = real<int (*)(void*, std::uint64_t, std::size_t, void*)>("cuMemcpyDtoHAsync_v2");
    wait_for(stream);
    return copy(to, from, bytes, stream);
}
int cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t bytes, void* stream) {
    static const auto copy = real<int (*)(std::uint64_t, const void*, std::size_t, void*)>("cuMemcpyHtoDAsync_v2");
    wait_for(stream);
    return copy(to, from, bytes, stream);
}

}  // extern "C"
