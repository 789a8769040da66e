// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>

namespace epjit::tools {

/// Gives closed standard streams to /dev/null, so that no file of ours takes their numbers. A closed stdout still
/// fails when written to.
void open_standard_streams() noexcept;

/// SIGPIPE is ignored; Ctrl-C ends the process with 130, at once unless an interruptible scope is open.
void install_signal_handlers() noexcept;

/// While one lives, the first Ctrl-C only raises a flag; a second one ends the process.
class interruptible {
   public:
    interruptible() noexcept;
    ~interruptible();
    interruptible(const interruptible&) = delete;
    interruptible& operator=(const interruptible&) = delete;

    static bool interrupted() noexcept;
    static const std::atomic<bool>& flag() noexcept;
};

}  // namespace epjit::tools
