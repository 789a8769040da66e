// SPDX-License-Identifier: Apache-2.0
// What the opaque handles of epjit.h are.
#pragma once

#include "epjit/communicator.hpp"
#include "epjit/epjit.h"
#include "epjit/exchange.hpp"
#include "epjit/runtime.hpp"

#include <memory>

namespace epjit::host::c {

/// The C callback behind the runtime's C++ one. Whatever may log keeps a share of it: a communicator, an exchange or a
/// plan may outlive its runtime's handle.
struct log_target {
    epjit_log_callback callback = nullptr;
    void* user = nullptr;
};

}  // namespace epjit::host::c

// The target comes first, so that it is destroyed last.
struct epjit_runtime {
    std::shared_ptr<const epjit::host::c::log_target> log;
    epjit::runtime object;
};

struct epjit_communicator {
    std::shared_ptr<const epjit::host::c::log_target> log;
    epjit::communicator object;
};

struct epjit_exchange {
    std::shared_ptr<const epjit::host::c::log_target> log;
    epjit::exchange object;
};

struct epjit_plan {
    std::shared_ptr<const epjit::host::c::log_target> log;
    epjit::plan object;
};
