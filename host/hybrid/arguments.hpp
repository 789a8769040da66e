// SPDX-License-Identifier: Apache-2.0
// Kernel arguments of what hybrid does beside other exchanges: one row a token for the network, other ranks' tokens
// passed on inside a host, and sums of a host's partial sums. Pure: touches no device.
#pragma once

#include "host/hybrid/transport.hpp"
#include "host/ranks/arguments.hpp"

#include <cstdint>

namespace epjit::host {

/// Tokens that a rank works on for their owner.
struct relayed_tokens {
    std::int32_t source = 0;
    std::int32_t num_tokens = 0;  ///< static mode: the bound; entries beyond the source's tokens are unused ones
    const templates::plan_entry* entries = nullptr;  ///< [num_tokens, K]
    const std::int32_t* positions = nullptr;         ///< [num_tokens, K]
};

/// Each of this rank's tokens that goes anywhere, once, to row `token` of what goes out.
void fill_stage_args(scatter_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                     const rank_plan& plan, const tensor_view& input);
/// `rows`, one a token of the source, to the windows of this rank's host. `skip`: a rank that needs none, or -1.
void fill_forward_args(scatter_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                       const rank_plan& plan, const relayed_tokens& tokens, const tensor_view& rows, std::int32_t skip);
/// This rank's rows of every line, summed, to the rank of its host that adds them up for the line's owner.
void fill_host_reduce_args(gather_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                           const rank_plan& plan, const combine_args& ranks);
/// The partial sums of this host's ranks, summed, to row `token` of `output`.
void fill_host_sum_args(gather_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                        const rank_plan& plan, const relayed_tokens& tokens, void* output);
/// The hosts' sums, added up for this rank's tokens.
void fill_host_finish_args(gather_kernel_args& args, const rank_setting& s, const hybrid_transport& way,
                           const rank_plan& plan, const combine_args& ranks);

}  // namespace epjit::host
