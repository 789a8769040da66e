// SPDX-License-Identifier: Apache-2.0
// Checks of everything host-visible before a backend sees it. No allocation and no text unless a check fails. Pointers
// are not dereferenced. All @throw config_error with the values and a remedy, or unsupported_error.
#pragma once

#include "epjit/exchange.hpp"
#include "host/exchange/backend.hpp"

#include <cstdint>
#include <span>

namespace epjit::host {

void validate_config(const exchange_config& config, std::int32_t num_ranks);
/// What needs the resolved placement: index ranges of the whole exchange.
void validate_resolved(const resolved_config& config);

void validate_plan_options(const resolved_config& config, const plan_options& options);
void validate_plan(const resolved_config& config, std::span<const plan_args> ranks, const plan_options& options);
void validate_dispatch(const resolved_config& config, const plan_state& plan, std::span<const dispatch_args> ranks,
                       const dispatch_options& options);
void validate_combine(const resolved_config& config, const plan_state& plan, std::span<const combine_args> ranks,
                      const combine_options& options);
/// Whether each rank with tokens has weights.
[[nodiscard]] bool brings_weights(const plan_state& plan, std::span<const dispatch_args> ranks) noexcept;
void validate_weight_gradients(const resolved_config& config, const plan_state& plan,
                               std::span<const weight_gradient_args> ranks);

/// Slots of a driven rank.
std::int32_t local_slots(const resolved_config& config, int driven) noexcept;
/// Rows that a driven rank's dispatched tensor must have for `plan`.
std::int64_t rows_needed(const resolved_config& config, const plan_state& plan, int driven);
/// See exchange::worst_case_rows; options are valid.
std::int64_t worst_case_rows(const resolved_config& config, int driven, const plan_options& options) noexcept;

}  // namespace epjit::host
