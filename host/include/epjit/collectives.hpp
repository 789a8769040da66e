// SPDX-License-Identifier: Apache-2.0
// Collectives with a different count on every rank, which NCCL itself does not have: attention that is data parallel
// beside experts that are not needs them before and after a layer.
#pragma once

#include "epjit/communicator.hpp"
#include "epjit/export.hpp"
#include "epjit/types.hpp"

#include <cstdint>
#include <span>

namespace epjit {

/// What one driven rank brings. Device memory (host communicator: ordinary).
struct collective_args {
    const void* send = nullptr;
    void* receive = nullptr;
};

// Each is collective, takes one collective_args per driven rank, orders itself on `stream` and can be captured. Counts
// are elements, equal on every rank, 0 allowed. A pointer may be null where nothing is read or written through it.
// `send` and `receive` are apart from each other, or in place as said below. Through NCCL, and by the CPU on a host
// communicator. @throws config_error (counts, pointers, root), unsupported_error (a loopback communicator; a sum of
// fp8), nccl_error, timeout_error.

/// Rank r's counts[r] elements at `send` arrive on every rank at `receive` + counts[0] + .. + counts[r-1]. In place:
/// `send` is that place in the rank's own `receive`. fp8_e4m3 stands for bytes of any kind.
EPJIT_API void all_gather_v(communicator& comm, std::span<const collective_args> ranks,
                            std::span<const std::int64_t> counts, dtype type, stream_t stream);

/// `send` holds all ranks' parts, one after the other; rank r receives the sum over ranks of part r, counts[r]
/// elements. In place: `receive` is part r of `send`. bf16, fp16 or f32. NCCL chooses the order of the sum (host:
/// ascending ranks in fp32, rounded once): where the same bytes are wanted everywhere, use an exchange.
EPJIT_API void reduce_scatter_v(communicator& comm, std::span<const collective_args> ranks,
                                std::span<const std::int64_t> counts, dtype type, stream_t stream);

/// `count` elements at `send` of rank `root` arrive at `receive` of every rank, `root` too. `send` is read on `root`
/// only. In place: both are the same. fp8_e4m3 stands for bytes of any kind.
EPJIT_API void broadcast(communicator& comm, std::span<const collective_args> ranks, std::int64_t count, int root,
                         dtype type, stream_t stream);

}  // namespace epjit
