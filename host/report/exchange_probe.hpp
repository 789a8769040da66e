// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "host/report/readiness.hpp"

#include <memory>

namespace epjit::host {

/// A static plan, dispatch and combine of a few tokens on `ex`, captured, replayed with new data, and compared with the
/// host exchange given all ranks' data, which every rank draws for itself. `ex` outlives it.
std::unique_ptr<readiness_probe> make_exchange_probe(exchange& ex);

}  // namespace epjit::host
