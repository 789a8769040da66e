// SPDX-License-Identifier: Apache-2.0
#include "host/exchange/windows.hpp"

#include "epjit/error.hpp"
#include "host/exchange/layouts.hpp"

#include <fmt/format.h>

namespace epjit::host {

window_layout::window_layout(const exchange_config& c) noexcept : rows(c.window_rows) {
    const auto align = [](std::int64_t n) { return (n + 255) / 256 * 256; };
    const std::int64_t groups = scale_groups(c.hidden);
    row_bytes = c.hidden * size_of(c.dispatch_type);
    scale_row_bytes = groups * size_of(c.scales);
    scales_at = align(rows * row_bytes);
    bytes = align(scales_at + rows * scale_row_bytes);
}

lent_windows::lent_windows(communicator_state& comm, const resolved_config& config, backend& from) : config_(&config) {
    const window_layout shape(config.config);
    if (shape.rows == 0) {
        return;
    }
    const auto bytes = static_cast<std::size_t>(shape.bytes);
    for (int driven = 0; driven < config.num_driven; ++driven) {
        for (int lane = 0; lane < config.config.lanes; ++lane) {
            void* memory = from.lent_window(driven, lane);
            if (memory == nullptr) {
                own_bytes_ += bytes;
                if (comm.context != nullptr) {
                    memory = of_gpu_.emplace_back(comm, config.config.memory, bytes).data();
                } else {
                    of_host_.emplace_back().reserve(config.config.memory, bytes);
                    memory = of_host_.back().data();
                }
            }
            at_.push_back(static_cast<std::byte*>(memory));
        }
    }
}

tensor_view lent_windows::view(int driven, int lane) const {
    if (at_.empty()) {
        throw config_error("window_output of an exchange that lends none",
                           "set exchange_config::window_rows to the rows that an output may need");
    }
    const exchange_config& c = config_->config;
    if (driven < 0 || driven >= config_->num_driven || lane < 0 || lane >= c.lanes) {
        throw config_error(fmt::format("window_output of driven rank {} and lane {}, there are {} and {}", driven, lane,
                                       config_->num_driven, c.lanes),
                           "pass indices from 0 up, below communicator::num_driven() and exchange_config::lanes");
    }
    const window_layout shape(c);
    std::byte* const memory = at_[static_cast<std::size_t>(driven * c.lanes + lane)];
    tensor_view v;
    v.data = memory;
    v.type = c.dispatch_type;
    v.rows = shape.rows;
    v.columns = c.hidden;
    if (shape.scale_row_bytes != 0) {
        v.scale = c.scales;
        v.scales = memory + shape.scales_at;
    }
    return v;
}

void lent_windows::check(std::span<const dispatch_args> ranks, const dispatch_options& options) const {
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        const tensor_view lent = view(r, options.lane);
        const tensor_view& given = ranks[static_cast<std::size_t>(r)].output;
        const std::int64_t groups = scale_groups(lent.columns);
        const bool contiguous = given.row_stride == 0 || given.row_stride == lent.columns;
        const bool scales =
            lent.scales == nullptr ||
            (given.scales == lent.scales && (given.scale_row_stride == 0 || given.scale_row_stride == groups));
        if (given.data != lent.data || !contiguous || !scales || given.rows > lent.rows) {
            throw config_error(
                fmt::format("into_window: the output of rank {} is not the one lent for lane {} ({} rows at {})", r,
                            options.lane, lent.rows, lent.data),
                "pass exchange::window_output(rank, lane) as the output, or leave into_window out on every rank");
        }
    }
}

}  // namespace epjit::host
