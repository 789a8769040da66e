// SPDX-License-Identifier: Apache-2.0
// Public arguments to kernel arguments. Pure: no driver, no device memory is touched; tested without a GPU.
#pragma once

#include "epjit/exchange.hpp"
#include "host/exchange/backend.hpp"
#include "host/exchange/device_memory.hpp"
#include "host/exchange/layouts.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace epjit::host {

/// The largest instances; a kernel for fewer ranks reads the front.
using plan_kernel_args = templates::plan_args<templates::max_driven_ranks>;
using scatter_kernel_args = templates::scatter_args<templates::max_driven_ranks>;
using gather_kernel_args = templates::gather_args<templates::max_driven_ranks>;

/// Where one plan's parts lie in its device memory, in bytes from its start. What must be zero before the first launch
/// comes first.
struct plan_offsets {
    std::size_t barrier = 0, device_status = 0;
    std::size_t zeroed = 0;  ///< bytes from the start to clear
    std::size_t entries = 0, entry_slots = 0, slot_counts = 0, slot_offsets = 0, rank_rows = 0, block_counts = 0;
    std::size_t total = 0;
};
/// For `num_tokens` tokens over all ranks and at most `blocks` blocks of a plan kernel with `keys` keys.
plan_offsets lay_out_plan(const resolved_config& config, std::int64_t num_tokens, std::int64_t blocks,
                          std::int64_t keys);

/// A plan's device memory with its parts.
struct plan_memory {
    templates::plan_entry* entries = nullptr;
    std::uint16_t* entry_slots = nullptr;
    std::int32_t* slot_counts = nullptr;
    std::int32_t* slot_offsets = nullptr;
    std::int32_t* rank_rows = nullptr;
    std::uint32_t* block_counts = nullptr;
    std::uint32_t* barrier = nullptr;
    templates::plan_status* device_status = nullptr;
    // As kernels address it.
    templates::plan_status* host_status = nullptr;
    std::int32_t* host_counts = nullptr;
};
plan_memory place_plan(void* device, const plan_offsets& offsets, void* pinned_status, void* pinned_counts);

struct plan_launch {
    std::uint32_t sequence = 0;
    std::uint64_t timeout_ns = 0;
};
void fill_plan_args(plan_kernel_args& args, const resolved_config& config, const device_tables& tables,
                    const plan_memory& memory, std::span<const plan_args> ranks, const plan_options& options,
                    const plan_launch& launch);

/// `rows` [R]: rows of each rank's output that the kernel may touch (masked: per slot).
void fill_scatter_args(scatter_kernel_args& args, const resolved_config& config, const device_tables& tables,
                       const plan_memory& memory, const plan_state& plan, std::span<const std::int32_t> rows,
                       std::span<const dispatch_args> ranks, const dispatch_options& options);
void fill_combine_args(gather_kernel_args& args, const resolved_config& config, const plan_memory& memory,
                       const plan_state& plan, std::span<const combine_args> ranks, const combine_options& options);
void fill_gradient_args(gather_kernel_args& args, const resolved_config& config, const plan_memory& memory,
                        const plan_state& plan, std::span<const weight_gradient_args> ranks);

/// Tokens of all ranks of a plan.
std::int32_t total_tokens(const plan_state& plan) noexcept;
/// Bytes from one row to the next, and from one row's scales to the next's.
std::int64_t stride_bytes(const tensor_view& t) noexcept;
std::int32_t scale_stride_bytes(const tensor_view& t) noexcept;
/// Row length of routing weights: K, or E of a sparse map.
std::int32_t weight_columns(const exchange_config& c) noexcept;
/// What widest_access takes: or these of every address, stride and length.
std::uint64_t bits_of(const void* pointer) noexcept;
std::uint64_t bits_of(std::int64_t bytes) noexcept;
/// The widest access, 16, 8, 4, 2 or 1 bytes, that divides every number whose bits are or-ed into `bits`.
std::int32_t widest_access(std::uint64_t bits) noexcept;

}  // namespace epjit::host
