// SPDX-License-Identifier: Apache-2.0
// A global operator new that counts, for programs that show that something allocates nothing.
#pragma once

#include <cstdint>

namespace epjit::cache::test {

/// Calls of operator new by this thread so far.
std::uint64_t allocations() noexcept;

}  // namespace epjit::cache::test
