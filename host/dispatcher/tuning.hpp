// SPDX-License-Identifier: Apache-2.0
// The knobs of an exchange: its key in tuning profiles, and the choice that all ranks take over from rank 0.
#pragma once

#include "epjit/jit/profile.hpp"
#include "host/driver/api.hpp"
#include "host/exchange/backend.hpp"

namespace epjit::host {

/// How device `device` reaches the other GPUs that the driver shows: NVLink where one of them is so joined.
jit::link_kind link_of(const driver_api& api, int device);

/// Everything of a key that `config` says; gpu, arch, link and ranks are left empty.
jit::tuning_key key_of(const exchange_config& config);

/// What profiles know the exchange of `config` on `comm` by: GPU and link are this rank's, ranks those of its host.
jit::tuning_key key_of(const communicator_state& comm, const exchange_config& config);

/// Of the runtime's profile and the built-in one. Real ranks: collective, all take what rank 0 chose, and only rank 0
/// reads its profile; ranks of another arch than rank 0's leave all ranks with the cost model, which is logged.
/// @throws config_error, unsupported_error on every rank, with rank 0's text, when its profile cannot be used.
jit::tuned_knobs settle_knobs(communicator_state& comm, const exchange_config& config);

}  // namespace epjit::host
