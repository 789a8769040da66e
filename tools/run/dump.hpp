// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tools/reference/problem.hpp"

#include <string>

namespace epjit::tools {

/// Writes what a run took and gave as .npy files into `directory` (made when missing): for every rank r seen x.r,
/// topk_idx.r, topk_weights.r, rows.r with row_expert.r and row_source.r, out.r, and, by rank 0, expert_scale and
/// expert_bias. Floats as f32 (fp8 rows times their scales), integers as i64. Only rows that hold data are written; on
/// flat a row is written once for each expert that wants it, in the row's order.
/// @throws config_error naming the file.
void write_dump(const std::string& directory, const reference::problem& p, const reference::observation& seen);

}  // namespace epjit::tools
