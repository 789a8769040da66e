// SPDX-License-Identifier: Apache-2.0
// Root of the weight gradients' program: a forward run needs none of it.
#pragma once

#include "rows/weight_gradient_kernel.cuh"
