// SPDX-License-Identifier: Apache-2.0
// A whole dispatch straight into the peers' windows.
#pragma once

#include "exchange/direct_kernel.cuh"
