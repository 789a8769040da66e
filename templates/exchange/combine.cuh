// SPDX-License-Identifier: Apache-2.0
// Root of the programs that combine through windows in one launch.
#pragma once

#include "exchange/combine_kernel.cuh"
