// SPDX-License-Identifier: Apache-2.0
// Root of the programs that dispatch through windows in one launch.
#pragma once

#include "exchange/dispatch_kernel.cuh"
