// SPDX-License-Identifier: Apache-2.0
// Who exchanges. A communicator drives the ranks of this thread: one for real ranks, R for loopback and host.
#pragma once

#include "epjit/export.hpp"
#include "epjit/runtime.hpp"

#include <cstdint>
#include <memory>
#include <span>

namespace epjit {

namespace host {
struct communicator_state;
}

class EPJIT_API communicator {
   public:
    /// R ranks computed by the CPU in host memory. 1 <= ranks <= 64. @throws config_error.
    static communicator host(runtime& rt, int ranks);
    /// R virtual ranks on one GPU; its primary context is retained. 1 <= ranks <= 64.
    /// @throws config_error, library_error (no driver), cuda_error.
    static communicator loopback(runtime& rt, int ranks, int device = 0);
    /// Works on a child of a borrowed communicator, which stays the caller's. @throws unsupported_error in this
    /// version.
    static communicator from_nccl(runtime& rt, ncclComm* borrowed, int device);
    /// From a 128-byte ncclUniqueId that the caller shared out. @throws unsupported_error in this version.
    static communicator from_unique_id(runtime& rt, std::span<const std::byte, 128> id, int rank, int ranks,
                                       int device);
    /// From RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT or the Open MPI / Slurm equivalents.
    /// @throws unsupported_error in this version.
    static communicator from_launcher(runtime& rt);

    ~communicator();
    communicator(communicator&&) noexcept;
    communicator& operator=(communicator&&) noexcept;

    [[nodiscard]] int num_ranks() const noexcept;       ///< R
    [[nodiscard]] int num_driven() const noexcept;      ///< ranks that this communicator drives
    [[nodiscard]] int first_driven() const noexcept;    ///< the lowest of them; they are consecutive
    [[nodiscard]] exchange_kind kind() const noexcept;  ///< host, loopback, or automatic for NCCL-backed ones

    [[nodiscard]] epjit::host::communicator_state& state() const noexcept { return *state_; }

   private:
    explicit communicator(std::shared_ptr<epjit::host::communicator_state> s) noexcept;
    std::shared_ptr<epjit::host::communicator_state> state_;
    friend class exchange;
};

}  // namespace epjit
