// SPDX-License-Identifier: Apache-2.0
// Root of the programs that gather rows: unpermute and combine, and their weight gradients.
#pragma once

#include "rows/gather_kernel.cuh"
#include "rows/weight_gradient_kernel.cuh"
