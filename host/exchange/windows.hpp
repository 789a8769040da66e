// SPDX-License-Identifier: Apache-2.0
// Outputs that an exchange lends: for each driven rank and lane one piece of memory, rows first, then their scales.
#pragma once

#include "host/cpu/buffer.hpp"
#include "host/exchange/device_memory.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace epjit::host {

/// Where rows and scales of one output lie; both are contiguous.
struct window_layout {
    explicit window_layout(const exchange_config& config) noexcept;
    std::int64_t rows = 0;
    std::int64_t row_bytes = 0;
    std::int64_t scale_row_bytes = 0;  ///< 0 without scales
    std::int64_t scales_at = 0;        ///< bytes from the first row
    std::int64_t bytes = 0;            ///< of everything; 0 where nothing is lent
};

class lent_windows {
   public:
    lent_windows() noexcept = default;
    /// Asks the backend for memory that peers can write, and takes ordinary memory where it has none to give: of the
    /// GPU, of the host exchange the machine's, from the config's hooks. @throws cuda_error, config_error.
    lent_windows(communicator_state& comm, const resolved_config& config, backend& from);

    /// @throws config_error naming what is out of range.
    [[nodiscard]] tensor_view view(int driven, int lane) const;
    /// @throws config_error where an output is not the one lent for its rank and the lane.
    void check(std::span<const dispatch_args> ranks, const dispatch_options& options) const;
    /// Bytes that the backend does not count itself.
    [[nodiscard]] std::size_t bytes() const noexcept { return own_bytes_; }

   private:
    const resolved_config* config_ = nullptr;
    std::vector<std::byte*> at_;  ///< [driven, lanes]; empty where nothing is lent
    std::vector<workspace> of_gpu_;
    std::vector<cpu::memory_block> of_host_;
    std::size_t own_bytes_ = 0;
};

}  // namespace epjit::host
