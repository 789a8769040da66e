// SPDX-License-Identifier: Apache-2.0
// Root of the plan programs of exchanges between real ranks.
#pragma once

#include "plan/exchange_plan_kernel.cuh"
