// SPDX-License-Identifier: Apache-2.0
// Root of the helpers of exchanges between real ranks.
#pragma once

#include "exchange/helpers.cuh"
#include "exchange/sync_kernel.cuh"
