// SPDX-License-Identifier: Apache-2.0
// What the ranks of a communicator agree on about the machines they run on.
#pragma once

#include "host/dispatcher/dispatcher.hpp"

#include <memory>

namespace epjit::host {

class nccl_communicator;
struct runtime_state;

/// What the facts are, and the communicator of this rank's host, in the order of the ranks.
struct agreed_facts {
    machine_facts facts;
    /// Null where all ranks reach each other, where they are one host, or where hosts have no windows either.
    std::shared_ptr<nccl_communicator> host;
};

/// Collective; the same on every rank. Makes a small window to see who reaches whom: NCCL decides what a host is, so
/// ranks that reach each other's windows are one. Where there is no window over all ranks, a host is a host name and
/// NCCL_HOSTID, and the ranks of each try a window of their own: NCCL 2.28 has none over several hosts.
/// @throws nccl_error, timeout_error.
agreed_facts agree_on_facts(const std::shared_ptr<runtime_state>& runtime,
                            const std::shared_ptr<nccl_communicator>& comm);

}  // namespace epjit::host
