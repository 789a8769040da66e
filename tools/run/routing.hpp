// SPDX-License-Identifier: Apache-2.0
// Who goes where: generated or read routings, and the inputs of a run.
#pragma once

#include "tools/reference/problem.hpp"

#include <cstdint>
#include <string>

namespace epjit::tools {

/// Fills ids (`p.ids`) and weights of every rank; T, K, E, R and the placement are set. Distinct experts in each row:
/// uniform: any K of E. zipf: expert popularity 1/(1+e). grouped: each token stays within ceil(R/2) neighbouring ranks
/// where those hold enough experts. one-rank: rank 0's experts first, others only when rank 0 holds fewer than K.
/// @throws config_error for an unknown name.
void generate_routing(reference::problem& p, const std::string& name, std::uint64_t seed);

/// Takes ids from a file of [T,K], the same on every rank, or [R,T,K]; sets T and `p.ids`, and draws weights.
/// @throws config_error when K or R differ from the problem's, or the file is bad.
void read_routing(reference::problem& p, const std::string& path, std::uint64_t seed);

/// Fills every rank's input rows with different values of the input dtype.
void generate_inputs(reference::problem& p, std::uint64_t seed);

}  // namespace epjit::tools
