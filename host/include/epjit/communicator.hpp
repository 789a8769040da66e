// SPDX-License-Identifier: Apache-2.0
// Who exchanges. A communicator drives the ranks of this thread: one for real ranks, R for loopback and host.
#pragma once

#include "epjit/export.hpp"
#include "epjit/runtime.hpp"

#include <cstddef>
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

    // Real ranks, through NCCL: one GPU each. Each rank calls, the call ends within first_wait_timeout.
    // @throws library_error (no NCCL or no driver), config_error, cuda_error, nccl_error, timeout_error (a rank is
    // missing).

    /// 128 bytes that name a new set of ranks, an ncclUniqueId. One rank makes them and shares them out.
    static void unique_id(runtime& rt, std::span<std::byte, 128> id);
    /// Rank `rank` of `ranks`, from a unique id that the caller shared out.
    static communicator from_unique_id(runtime& rt, std::span<const std::byte, 128> id, int rank, int ranks,
                                       int device);
    /// Works on a child of a borrowed communicator, which stays the caller's, and aborts only what it owns. Collective
    /// over `borrowed`. `ranks` are those of its ranks that take part, in the order of their ranks in the new
    /// communicator; empty: all. Ranks that are not in their own list get an empty communicator, so that several groups
    /// without a common rank are made at once: every rank passes its own group's list. `device` is the borrowed
    /// communicator's. @throws also unsupported_error where NCCL has no ncclCommSplit.
    static communicator from_nccl(runtime& rt, ncclComm* borrowed, int device, std::span<const int> ranks = {});
    /// From RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT or the Open MPI / Slurm equivalents, on device
    /// LOCAL_RANK mod GPUs. NCCL connects the ranks over a port of rank 0's host: EPJIT_BOOTSTRAP_PORT, else
    /// MASTER_PORT + 1017. @throws config_error naming the variable that is missing or wrong.
    static communicator from_launcher(runtime& rt);
    /// All ranks of one process: rank i on devices[i], into out[i]. They are made together by one thread; afterwards
    /// each is used by a thread of its own.
    static void local(runtime& rt, std::span<const int> devices, std::span<communicator> out);

    /// Empty: may only be destroyed or assigned to.
    communicator() noexcept;
    ~communicator();
    communicator(communicator&&) noexcept;
    communicator& operator=(communicator&&) noexcept;

    [[nodiscard]] int num_ranks() const noexcept;       ///< R
    [[nodiscard]] int num_driven() const noexcept;      ///< ranks that this communicator drives
    [[nodiscard]] int first_driven() const noexcept;    ///< the lowest of them; they are consecutive
    [[nodiscard]] exchange_kind kind() const noexcept;  ///< host, loopback, or automatic for NCCL-backed ones

    [[nodiscard]] explicit operator bool() const noexcept { return state_ != nullptr; }

    [[nodiscard]] epjit::host::communicator_state& state() const noexcept { return *state_; }

   private:
    explicit communicator(std::shared_ptr<epjit::host::communicator_state> s) noexcept;
    std::shared_ptr<epjit::host::communicator_state> state_;
    friend class exchange;
    friend class resident_registry;
};

}  // namespace epjit
