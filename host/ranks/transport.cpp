// SPDX-License-Identifier: Apache-2.0
#include "host/ranks/transport.hpp"

#include "host/exchange/windows.hpp"

#include <algorithm>

namespace epjit::host {

std::int64_t travel_shape::region(travel_area area) const noexcept {
    const std::int64_t lines = area == travel_area::partials ? std::max(max_lines, topk) : max_lines;
    return (lines * line_bytes[static_cast<std::size_t>(area)] + 255) / 256 * 256;
}

travel_shape shape_travel(const resolved_config& config) {
    const exchange_config& c = config.config;
    travel_shape shape;
    const auto bytes = [&shape](travel_area area) -> std::int64_t& {
        return shape.line_bytes[static_cast<std::size_t>(area)];
    };
    // Rows start at multiples of 16 bytes, so that they move in the widest accesses.
    const auto aligned = [](std::int64_t n) { return (n + 15) / 16 * 16; };
    const std::int64_t groups = (c.hidden + templates::scale_group - 1) / templates::scale_group;
    bytes(travel_area::rows) = aligned(c.hidden * std::max(size_of(c.input_type), size_of(c.dispatch_type)));
    bytes(travel_area::scales) = aligned(groups * size_of(c.scales));
    bytes(travel_area::weights) = c.topk * 4;
    bytes(travel_area::combine_weights) = c.topk * 4;
    bytes(travel_area::partials) = aligned(c.hidden * size_of(c.combine_type));
    if (c.backward) {
        bytes(travel_area::rows) = std::max(bytes(travel_area::rows), bytes(travel_area::partials));
        bytes(travel_area::scalars) = c.topk * 4;
    }
    if (c.kind == exchange_kind::lsa) {
        const auto packets = [&shape](travel_area area) -> std::int64_t& {
            return shape.packet_bytes[static_cast<std::size_t>(area)];
        };
        const auto type = [](dtype t) { return static_cast<templates::element>(t); };
        packets(travel_area::rows) = templates::row_record(c.hidden, type(c.dispatch_type),
                                                           static_cast<templates::group_scale>(c.scales), c.topk)
                                         .bytes();
        packets(travel_area::partials) = templates::sum_record(c.hidden, type(c.combine_type)).bytes();
        shape.packet_lines = c.ll_max_tokens_per_rank;
        shape.window_bytes = c.window_rows != 0 ? window_layout(c).bytes : 0;
    }
    shape.topk = c.topk;
    shape.max_lines = std::max(1, c.max_tokens_per_rank);
    shape.num_lanes = c.lanes;
    shape.counts_words = templates::plan_message_words(config.placement.num_slots + config.num_ranks);
    shape.plan_line_bytes = templates::line_bytes(c.topk);
    shape.routing_bytes = templates::gathered_bytes(shape.max_lines, c.topk, c.kind == exchange_kind::lsa);
    return shape;
}

}  // namespace epjit::host
