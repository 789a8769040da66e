// SPDX-License-Identifier: Apache-2.0
// What torchrun, mpirun or srun say in the environment, and NCCL's own bootstrap from it.
#pragma once

#include "host/nccl/api.hpp"

#include <cstdint>
#include <functional>
#include <string>

namespace epjit::host {

/// This process's place among the ranks that a launcher started.
struct launcher_place {
    std::string launcher;         ///< "torchrun", "Open MPI", "Slurm"
    std::int32_t rank = 0;        ///< below size
    std::int32_t size = 1;        ///< ranks in all
    std::int32_t local_rank = 0;  ///< on this host; the device is this modulo the number of GPUs
    std::string address;          ///< of rank 0's host
    std::int32_t port = 0;        ///< that NCCL's bootstrap uses there
};

/// An environment variable's value; null when it is not set.
using variable_reader = std::function<const char*(const char*)>;

/// RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or the Open MPI or Slurm equivalents, in that order.
/// Without MASTER_ADDR the address is 127.0.0.1 where all ranks are on this host. The port is EPJIT_BOOTSTRAP_PORT,
/// else derived: MASTER_PORT itself is taken by the launcher's own store. @throws config_error naming variable and
/// value.
launcher_place read_launcher(const variable_reader& read);

/// The same 128 bytes on every rank, without a message: NCCL makes them from NCCL_COMM_ID=address:port. The variable is
/// set while `use` runs, because rank 0 listens there as it begins to connect, and is not left in the environment; one
/// that is set already is taken as it is. One thread of the process at a time. @throws nccl_error.
void with_bootstrap_id(const nccl_api& api, const launcher_place& place,
                       const std::function<void(const nccl_unique_id&)>& use);

}  // namespace epjit::host
