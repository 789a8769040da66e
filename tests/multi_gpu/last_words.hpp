// SPDX-License-Identifier: Apache-2.0
// What a child process says on stderr when it crashes, or is asked where it is.
#pragma once

#include <csignal>

namespace epjit::tests {

/// Sent to a thread, makes it print its stack and go on.
inline constexpr int where_are_you = SIGUSR2;

/// From here on a signal that ends the process prints its number and the thread's stack first. Once, early: what the
/// printing needs is loaded here.
void leave_last_words();

}  // namespace epjit::tests
