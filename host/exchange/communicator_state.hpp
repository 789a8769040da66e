// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/profile.hpp"
#include "epjit/types.hpp"
#include "host/dispatcher/dispatcher.hpp"
#include "host/driver/device.hpp"
#include "host/exchange/call_order.hpp"
#include "host/runtime/runtime_state.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

namespace epjit::host {

class nccl_communicator;

struct communicator_state {
    std::shared_ptr<runtime_state> runtime;
    exchange_kind kind = exchange_kind::host;
    std::int32_t num_ranks = 1;
    std::int32_t num_driven = 1;
    std::int32_t first_driven = 0;
    shared_context context;                        ///< null for host
    std::shared_ptr<nccl_communicator> nccl;       ///< null for host and loopback; kind is automatic where it is set
    std::shared_ptr<nccl_communicator> host_nccl;  ///< of this rank's host; null where all ranks reach each other
    /// Agreed by all ranks when the communicator was made; num_ranks and have_gpu are taken from above.
    machine_facts facts;
    std::optional<jit::tuned_knobs> forced_knobs;  ///< in place of profiles: a tuner's, the same on every rank
    std::atomic<bool> fallback_logged{false};      ///< why a slower exchange was taken is said once
    exchange_order order;                          ///< of the exchanges of real ranks
};

}  // namespace epjit::host
