// SPDX-License-Identifier: Apache-2.0
// Root of the programs that scatter rows: permute and dispatch.
#pragma once

#include "rows/scatter_bulk_kernel.cuh"
#include "rows/scatter_kernel.cuh"
