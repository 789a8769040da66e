// SPDX-License-Identifier: Apache-2.0
// Root of the programs in which a real rank makes its plan from the routing of all ranks.
#pragma once

#include "plan/gathered_plan_kernel.cuh"
