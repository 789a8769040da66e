// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace epjit::tests {

/// How often this thread may still call operator new before it throws; -1: as often as there is memory.
extern constinit thread_local int allocations_left;

}  // namespace epjit::tests
