// SPDX-License-Identifier: Apache-2.0
// Root of the plan program.
#pragma once

#include "plan/plan_kernel.cuh"
