// SPDX-License-Identifier: Apache-2.0
// Where the memory of a stub NCCL lies: on the host, as the fake driver's does, or on a GPU that the ranks share.
#pragma once

#include "epjit/types.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace epjit::tests {

/// Null where there is none left. Its contents are no zeros.
void* allocate_stub_memory(std::size_t bytes);
void free_stub_memory(void* memory);

/// From and to memory of either kind; done on return.
void copy_stub_memory(void* to, const void* from, std::size_t bytes);
/// Until what is on the stream has been done.
void wait_for_stub_stream(stream_t stream);

/// The memory of a team's ranks as one rank reaches it.
struct stub_team {
    std::uint64_t base = 0;  ///< where the first one's lies, the others' each `stride` bytes behind; 0: anywhere
    std::size_t reserved = 0;
    std::vector<void*> peers;
};
stub_team map_stub_team(const std::vector<void*>& memory, std::size_t stride);
void unmap_stub_team(const stub_team& team);

}  // namespace epjit::tests
