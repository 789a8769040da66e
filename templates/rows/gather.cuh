// SPDX-License-Identifier: Apache-2.0
// Root of the programs that gather rows: unpermute and combine.
#pragma once

#include "rows/gather_kernel.cuh"
