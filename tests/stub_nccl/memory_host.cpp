// SPDX-License-Identifier: Apache-2.0
#include "tests/stub_nccl/memory.hpp"

#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

namespace epjit::tests {
namespace {

struct memory_block {
    int file = -1;
    std::size_t bytes = 0;
};

std::mutex memory_mutex;
std::map<void*, memory_block>& memory() {
    static std::map<void*, memory_block> all;
    return all;
}

}  // namespace

void* allocate_stub_memory(std::size_t bytes) {
    const int file = memfd_create("window", 0);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) {
        return nullptr;
    }
    void* pointer = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    std::memset(pointer, 0xa5, bytes);
    const std::lock_guard lock(memory_mutex);
    memory()[pointer] = {file, bytes};
    return pointer;
}

void free_stub_memory(void* pointer) {
    const std::lock_guard lock(memory_mutex);
    const memory_block block = memory()[pointer];
    memory().erase(pointer);
    munmap(pointer, block.bytes);
    close(block.file);
}

void copy_stub_memory(void* to, const void* from, std::size_t bytes) {
    std::memmove(to, from, bytes);
}

void wait_for_stub_stream(stream_t) {}

stub_team map_stub_team(const std::vector<void*>& members, std::size_t stride) {
    stub_team team;
    team.reserved = stride * members.size();
    void* base = mmap(nullptr, team.reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    team.base = reinterpret_cast<std::uint64_t>(base);
    for (std::size_t i = 0; i < members.size(); ++i) {
        team.peers.push_back(static_cast<char*>(base) + stride * i);
        const std::lock_guard lock(memory_mutex);
        const memory_block& block = memory()[members[i]];
        mmap(team.peers.back(), block.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, block.file, 0);
    }
    return team;
}

void unmap_stub_team(const stub_team& team) {
    munmap(reinterpret_cast<void*>(team.base), team.reserved);
}

}  // namespace epjit::tests
