// SPDX-License-Identifier: Apache-2.0
// The exchange of one real rank over any transport.
#pragma once

#include "host/exchange/backend.hpp"
#include "host/ranks/transport.hpp"

#include <memory>

namespace epjit::host {

/// Collective. @throws what making the transport throws, on every rank when on one.
std::unique_ptr<backend> make_rank_backend(communicator_state& comm, const resolved_config& config);

/// One per room.
std::unique_ptr<transport> make_lsa_transport(communicator_state& comm, const resolved_config& config,
                                              const travel_shape& shape);
std::unique_ptr<transport> make_sendrecv_transport(communicator_state& comm, const resolved_config& config,
                                                   const travel_shape& shape);
std::unique_ptr<transport> make_dense_transport(communicator_state& comm, const resolved_config& config,
                                                const travel_shape& shape);
std::unique_ptr<backend> make_hybrid_backend(communicator_state& comm, const resolved_config& config);

}  // namespace epjit::host
