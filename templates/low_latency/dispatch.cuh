// SPDX-License-Identifier: Apache-2.0
// Root of the programs that dispatch few tokens through windows.
#pragma once

#include "low_latency/ll_dispatch_kernel.cuh"
