// SPDX-License-Identifier: Apache-2.0
// One rank of a suite and what it runs on: a real rank with a GPU, or a thread of the host exchange, on which the
// suites themselves are tested.
#pragma once

#include "epjit/epjit.hpp"
#include "tools/run/memory.hpp"

#include <cstdint>
#include <memory>

namespace epjit::tests {

class rank_world {
   public:
    virtual ~rank_world() = default;
    [[nodiscard]] virtual runtime& rt() = 0;
    [[nodiscard]] virtual communicator& comm() = 0;
    [[nodiscard]] virtual bool on_gpu() const = 0;
    /// Collective.
    virtual exchange make_exchange(const exchange_config& config) = 0;
    /// A space with a stream of its own.
    virtual std::unique_ptr<tools::memory_space> make_memory() = 0;
    /// Returns when every rank has called it.
    virtual void barrier() = 0;

    [[nodiscard]] int rank() { return comm().first_driven(); }
    [[nodiscard]] int ranks() { return comm().num_ranks(); }
};

/// A rank through NCCL. `comm` is moved in. `most_sms`, unless 0: what calls of its exchanges may have.
std::unique_ptr<rank_world> make_real_world(runtime& rt, communicator comm, std::int32_t most_sms = 0);
/// All ranks in one thread: a host or loopback communicator.
std::unique_ptr<rank_world> make_whole_world(runtime& rt, communicator comm);

/// Free device memory of the rank's GPU, after everything on it is done. 0 without a GPU.
std::size_t free_device_memory(rank_world& world);

}  // namespace epjit::tests
