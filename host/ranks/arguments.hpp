// SPDX-License-Identifier: Apache-2.0
// Public arguments of one real rank to kernel arguments. Pure: touches no device.
#pragma once

#include "host/loopback/arguments.hpp"
#include "host/ranks/plan.hpp"
#include "host/ranks/transport.hpp"

#include <algorithm>
#include <cstdint>

namespace epjit::host {

/// Tokens of every source whose rows travel at a time.
struct token_window {
    std::int32_t first = 0;
    std::int32_t tokens = 0;  ///< 0: all, each row at the position of its line; else at the place of its token

    [[nodiscard]] bool narrows() const noexcept { return tokens != 0; }
    /// Of a source with so many tokens, how many are in it.
    [[nodiscard]] std::int32_t of(std::int32_t num_tokens) const noexcept {
        return tokens == 0 ? num_tokens : std::clamp(num_tokens - first, 0, tokens);
    }
};

/// What every launch of an exchange needs.
struct rank_setting {
    const resolved_config& config;
    const device_tables& tables;
    const transport& way;
    const travel_shape& shape;
    const std::uint32_t* failed = nullptr;  ///< device memory
    bool whole_tensors = false;             ///< rows travel as whole tensors, so that a row is found by its token
    token_window window{};
    /// Device memory: the lines of the window, for kernels that take a list as it is given. Null: they find them.
    const std::int32_t* window_lines = nullptr;
};

// Where the functions below begin: a list, the plan's tables, and a table of ranks that is zero but for what the list
// needs.
templates::row_list own_tokens(const rank_setting& s, const rank_plan& plan, templates::row_numbering numbering);
/// The lines of the setting's window.
templates::row_list arrived_lines(const rank_setting& s, const rank_plan& plan);
void start(scatter_kernel_args& args, const rank_setting& s, const rank_plan& plan, const templates::row_list& list);
void start(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan, const templates::row_list& list);

/// This rank's tokens to the ranks they go to. `keep_own`: this rank's own lines are written too.
void fill_send_args(scatter_kernel_args& args, const rank_setting& s, const rank_plan& plan, const tensor_view& input,
                    bool keep_own);
/// The lines that have arrived to the rows of the output. `own_input`: this rank's own lines are read from the caller's
/// tensor.
void fill_expand_args(scatter_kernel_args& args, const rank_setting& s, const rank_plan& plan,
                      const dispatch_args& ranks, const dispatch_options& options, dtype crossing, bool own_input);
/// This rank's rows of every line, summed, to the line's owner.
void fill_reduce_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan,
                      const combine_args& ranks);
/// A whole dispatch, or combine, through windows; what says how ranks meet is not filled.
void fill_dispatch_args(templates::dispatch_head& head, templates::scatter_rank* table, const rank_setting& s,
                        const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options);
/// A whole dispatch straight into the outputs that the ranks lend.
void fill_direct_args(templates::dispatch_head& head, templates::scatter_rank* table, const rank_setting& s,
                      const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options);
void fill_combine_args(templates::combine_head& head, templates::gather_rank* table, const rank_setting& s,
                       const rank_plan& plan, const combine_args& ranks, reduction order);
/// The same of few tokens, as packets.
void fill_ll_dispatch_args(templates::ll_dispatch_args& args, const rank_setting& s, const rank_plan& plan,
                           const dispatch_args& ranks, const dispatch_options& options);
void fill_ll_combine_args(templates::ll_combine_args& args, const rank_setting& s, const rank_plan& plan,
                          const combine_args& ranks, reduction order);
/// What came back, summed into the tokens.
void fill_finish_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan, const combine_args& ranks,
                      reduction order);
/// One window of tokens of which every row came back.
void fill_window_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan, const combine_args& ranks,
                      std::int32_t first_token, std::int32_t window);
/// Gradients of the lines' weights at the holder of the rows, to the lines' owners.
void fill_line_gradient_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan,
                             const weight_gradient_args& ranks, bool by_rows);
/// Gradients that came back, to the tokens.
void fill_token_gradient_args(gather_kernel_args& args, const rank_setting& s, const rank_plan& plan,
                              const weight_gradient_args& ranks);

}  // namespace epjit::host
