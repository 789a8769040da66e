// SPDX-License-Identifier: Apache-2.0
// Whether this process is one of several that a launcher started.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace epjit::tools {

struct launcher_place {
    std::int32_t rank = 0;
    std::int32_t size = 1;
    std::string variable;  ///< that told the size, for messages
};

/// Of torchrun (RANK, WORLD_SIZE), Open MPI (OMPI_COMM_WORLD_RANK, _SIZE) or Slurm (SLURM_PROCID,
/// SLURM_STEP_NUM_TASKS), in this order; empty without one, or for one process alone. @throws config_error naming a
/// variable that is missing or holds no number in range.
std::optional<launcher_place> find_launcher();

}  // namespace epjit::tools
