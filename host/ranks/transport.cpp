// SPDX-License-Identifier: Apache-2.0
#include "host/ranks/transport.hpp"

#include "host/exchange/windows.hpp"

#include <algorithm>

namespace epjit::host {

namespace {

/// What a lane's rows and partial sums take where the caller does not say: at R 8, H 7168 and bf16 4096 tokens a rank.
constexpr std::int64_t automatic_staging_bytes = std::int64_t{448} << 20;

/// Tokens of a source that an lsa exchange has memory for at a time.
std::int32_t staged_tokens(const exchange_config& c, std::int32_t num_ranks, const travel_shape& shape) {
    if (c.kind != exchange_kind::lsa || c.halves) {
        return shape.max_lines;
    }
    const auto bytes = [&shape](travel_area area) { return shape.line_bytes[static_cast<std::size_t>(area)]; };
    const std::int64_t token =
        num_ranks * std::max(bytes(travel_area::rows) + bytes(travel_area::scales), bytes(travel_area::partials));
    if (c.staging_bytes != 0) {
        return static_cast<std::int32_t>(std::clamp<std::int64_t>(c.staging_bytes / token, 1, shape.max_lines));
    }
    // Never more than two launches a call, whatever the chunk that its windows start with.
    const std::int64_t half = std::min<std::int64_t>(shape.max_lines / 2 + 64, shape.max_lines);
    return static_cast<std::int32_t>(std::clamp<std::int64_t>(automatic_staging_bytes / token, half, shape.max_lines));
}

}  // namespace

std::int64_t travel_shape::region(travel_area area) const noexcept {
    std::int64_t lines = max_lines;
    switch (area) {
        case travel_area::rows:
        case travel_area::scales: lines = staged_lines; break;
        case travel_area::partials: lines = std::max(staged_lines, topk); break;
        default: break;
    }
    return (lines * line_bytes[static_cast<std::size_t>(area)] + 255) / 256 * 256;
}

templates::row_record row_packet(const exchange_config& c) noexcept {
    return templates::row_record_of(c.hidden, static_cast<templates::element>(c.dispatch_type),
                                    static_cast<templates::group_scale>(c.scales), c.topk);
}

templates::sum_record sum_packet(const exchange_config& c) noexcept {
    return templates::sum_record_of(c.hidden, static_cast<templates::element>(c.combine_type));
}

travel_shape shape_travel(const resolved_config& config) {
    const exchange_config& c = config.config;
    travel_shape shape;
    const auto bytes = [&shape](travel_area area) -> std::int64_t& {
        return shape.line_bytes[static_cast<std::size_t>(area)];
    };
    // Rows start at multiples of 16 bytes, so that they move in the widest accesses.
    const auto aligned = [](std::int64_t n) { return (n + 15) / 16 * 16; };
    bytes(travel_area::rows) = aligned(c.hidden * std::max(size_of(c.input_type), size_of(c.dispatch_type)));
    bytes(travel_area::scales) = aligned(scale_groups(c.hidden) * size_of(c.scales));
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
        packets(travel_area::rows) = row_packet(c).bytes();
        packets(travel_area::partials) = sum_packet(c).bytes();
        shape.packet_lines = c.ll_max_tokens_per_rank;
        shape.window_bytes = c.window_rows != 0 ? window_layout(c).bytes : 0;
    }
    shape.topk = c.topk;
    shape.max_lines = std::max(1, c.max_tokens_per_rank);
    shape.staged_lines = staged_tokens(c, config.num_ranks, shape);
    shape.num_lanes = c.lanes;
    shape.counts_words = templates::plan_message_words(config.placement.num_slots + config.num_ranks);
    shape.plan_line_bytes = templates::line_bytes(c.topk);
    shape.routing_bytes = templates::gathered_bytes(shape.max_lines, c.topk, c.kind == exchange_kind::lsa);
    return shape;
}

}  // namespace epjit::host
