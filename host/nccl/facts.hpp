// SPDX-License-Identifier: Apache-2.0
// What the ranks of a communicator agree on about the machines they run on.
#pragma once

#include "host/dispatcher/dispatcher.hpp"

#include <memory>

namespace epjit::host {

class nccl_communicator;

/// Collective; the same on every rank. Makes a small window to see who reaches whom: NCCL decides what a host is, so
/// ranks that reach each other's windows are one. Where there are no windows, a host is a host name and NCCL_HOSTID.
/// @throws nccl_error, timeout_error.
machine_facts agree_on_facts(const std::shared_ptr<nccl_communicator>& comm);

}  // namespace epjit::host
