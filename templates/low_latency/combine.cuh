// SPDX-License-Identifier: Apache-2.0
// Root of the programs that combine few tokens through windows.
#pragma once

#include "low_latency/ll_combine_kernel.cuh"
