// SPDX-License-Identifier: Apache-2.0
// R threads that each drive one rank, over the host exchange: they meet in every call, and the last to come makes it
// for all. It behaves towards its callers as an exchange between real ranks does, without a GPU.
#pragma once

#include "tests/multi_gpu/world.hpp"

#include <chrono>
#include <memory>
#include <vector>

namespace epjit::tests {

/// One world for each rank, to be used by a thread of its own. A rank whose peers do not come within `limit` gets a
/// timeout_error, and so do they when they come later; different calls that meet are a config_error on each rank.
std::vector<std::unique_ptr<rank_world>> make_rendezvous(runtime& rt, int ranks,
                                                         std::chrono::milliseconds limit = std::chrono::seconds(60));

}  // namespace epjit::tests
