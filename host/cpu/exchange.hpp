// SPDX-License-Identifier: Apache-2.0
// The CPU exchange's work on rows, one function for each public operation.
#pragma once

#include "host/cpu/plan.hpp"
#include "host/exchange/backend.hpp"

#include <span>

namespace epjit::host::cpu {

/// Row buffers of one worker, each of H floats.
struct worker_rows {
    float* a = nullptr;
    float* b = nullptr;
    float* c = nullptr;
};

/// The exchange's scratch of one lane: buffers for every worker of parallel_for.
struct scratch_rows {
    std::span<float> floats;
    std::int64_t hidden = 0;
    [[nodiscard]] worker_rows of(int worker) const noexcept {
        float* first = floats.data() + 3 * hidden * worker;
        return {first, first + hidden, first + 2 * hidden};
    }
};

void dispatch_rows(const cpu_plan& p, const resolved_config& config, std::span<const dispatch_args> ranks,
                   const dispatch_options& options, const scratch_rows& scratch);
void combine_rows(const cpu_plan& p, const resolved_config& config, std::span<const combine_args> ranks,
                  const combine_options& options, const scratch_rows& scratch);
void collect_weight_gradients(const cpu_plan& p, const resolved_config& config,
                              std::span<const weight_gradient_args> ranks);

/// Address of a row of a view and of its scales.
inline std::byte* row_of(const tensor_view& v, std::int64_t row) noexcept {
    const std::int64_t stride = v.row_stride != 0 ? v.row_stride : v.columns;
    return static_cast<std::byte*>(v.data) + row * stride * size_of(v.type);
}
inline std::byte* scales_of(const tensor_view& v, std::int64_t row, scale_type type) noexcept {
    const std::int64_t stride = v.scale_row_stride != 0 ? v.scale_row_stride : (v.columns + 127) / 128;
    return static_cast<std::byte*>(v.scales) + row * stride * size_of(type);
}

/// Finds the source rank of a global token; tokens are asked for in ascending order.
class token_cursor {
   public:
    token_cursor(const cpu_plan& p, std::int64_t token) noexcept : first_(p.first_token) {
        while (first_[static_cast<std::size_t>(rank_) + 1] <= token) {
            ++rank_;
        }
    }
    /// Moves to `token` and returns its rank.
    int at(std::int64_t token) noexcept {
        while (first_[static_cast<std::size_t>(rank_) + 1] <= token) {
            ++rank_;
        }
        return rank_;
    }

   private:
    std::span<const std::int64_t> first_;
    int rank_ = 0;
};

}  // namespace epjit::host::cpu
