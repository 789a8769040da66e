// SPDX-License-Identifier: Apache-2.0
#include "tools/command/signals.hpp"

#include <atomic>
#include <csignal>
#include <fcntl.h>
#include <unistd.h>

namespace epjit::tools {
namespace {

std::atomic<int> scopes{0};
std::atomic<bool> raised{false};

void on_interrupt(int) {
    if (scopes.load() == 0 || raised.exchange(true)) {
        _exit(130);
    }
}

}  // namespace

void open_standard_streams() noexcept {
    for (int fd = 0; fd < 3; ++fd) {
        if (::fcntl(fd, F_GETFD) == -1) {
            // Read-only in stdout's place: writing to it is the error that a closed stdout is.
            const int opened = ::open("/dev/null", fd == 1 ? O_RDONLY : O_RDWR);
            (void)opened;  // the lowest free number, which is `fd`
        }
    }
}

void install_signal_handlers() noexcept {
    struct sigaction action {};
    action.sa_handler = on_interrupt;  // no SA_RESTART: waits must wake up
    sigaction(SIGINT, &action, nullptr);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, nullptr);
}

interruptible::interruptible() noexcept {
    scopes.fetch_add(1);
}
interruptible::~interruptible() {
    scopes.fetch_sub(1);
}
bool interruptible::interrupted() noexcept {
    return raised.load();
}
const std::atomic<bool>& interruptible::flag() noexcept {
    return raised;
}

}  // namespace epjit::tools
