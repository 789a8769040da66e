// SPDX-License-Identifier: Apache-2.0
// How NCCL communicators come to be, bounded by the runtime's first_wait_timeout.
#pragma once

#include "host/nccl/communicator.hpp"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace epjit::host {

/// A rank that this thread makes.
struct nccl_member {
    std::int32_t rank = 0;
    shared_context context;
};

/// The ranks `members` of `size` that share `id`, in one group. @throws nccl_error, timeout_error naming rank, size and
/// phase; what was made is aborted.
std::vector<std::shared_ptr<nccl_communicator>> connect_ranks(const std::shared_ptr<runtime_state>& runtime,
                                                              const nccl_unique_id& id, std::int32_t size,
                                                              std::span<const nccl_member> members);

/// A child of the caller's communicator, which stays the caller's. Collective over `borrowed`. `ranks`: its ranks that
/// take part, in the order of their new ranks; empty: all. Null on a rank that is not among them.
/// @throws config_error (ranks, device), unsupported_error (no ncclCommSplit), nccl_error, timeout_error.
std::shared_ptr<nccl_communicator> borrow(const std::shared_ptr<runtime_state>& runtime, ncclComm* borrowed,
                                          const shared_context& context, std::span<const int> ranks);

/// A new ncclUniqueId. @throws nccl_error.
nccl_unique_id make_unique_id(const nccl_api& api);

}  // namespace epjit::host
