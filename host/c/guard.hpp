// SPDX-License-Identifier: Apache-2.0
// Where exceptions end: every function of epjit.h runs its body through guarded().
#pragma once

#include "epjit/epjit.h"

namespace epjit::host::c {

/// Keeps the exception being handled as this thread's last error. Call in a handler.
epjit_status keep_current_error() noexcept;
/// This thread's last error, its strings owned by the thread.
epjit_error last_error() noexcept;

/// EPJIT_OK, or the kept error's status.
template <class Call>
epjit_status guarded(Call&& call) noexcept {
    try {
        call();
        return EPJIT_OK;
    } catch (...) {
        return keep_current_error();
    }
}

/// @throws config_error that names `what`.
[[noreturn]] void fail_null(const char* what);

/// `pointer` as a reference. @throws config_error when it is null.
template <class T>
T& not_null(T* pointer, const char* what) {
    if (pointer == nullptr) {
        fail_null(what);
    }
    return *pointer;
}

}  // namespace epjit::host::c
