// SPDX-License-Identifier: Apache-2.0
// How bytes get from rank to rank: what differs between the exchanges of real ranks. Everything asynchronous is ordered
// on the stream and may be captured; nothing allocates.
#pragma once

#include "epjit/types.hpp"
#include "host/exchange/backend.hpp"
#include "host/exchange/layouts.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace epjit::host {

/// Memory that lines travel through, a region for every rank in each. `rows`, `scales` and `weights` go with a
/// dispatch, `combine_weights` before a combine, `partials` and `scalars` back to the tokens' owners. Rows and partial
/// sums are never there together: they may share theirs.
enum class travel_area : std::uint8_t { rows, scales, weights, combine_weights, partials, scalars };
inline constexpr std::size_t num_travel_areas = 6;

/// Bytes of one line in each area; 0 where the exchange does not use it.
struct travel_shape {
    std::array<std::int64_t, num_travel_areas> line_bytes{};
    std::int32_t max_lines = 0;     ///< of one source: max_tokens_per_rank
    std::int32_t staged_lines = 0;  ///< of them whose rows and partial sums there is memory for at a time
    std::int32_t num_lanes = 1;
    std::int32_t counts_words = 0;  ///< of one rank's message of counts
    std::int64_t plan_line_bytes = 0;
    std::int32_t packet_lines = 0;  ///< of one source as packets: ll_max_tokens_per_rank
    /// Bytes of one line as packets; 0 of an area that has none.
    std::array<std::int64_t, num_travel_areas> packet_bytes{};
    std::int64_t routing_bytes = 0;  ///< one rank's routing as every rank gets it, for max_tokens_per_rank tokens

    /// Tokens that a launch brings at most, a multiple of `unit` where that leaves any.
    [[nodiscard]] std::int32_t launch_tokens(std::int32_t unit) const noexcept {
        return std::min(std::max(1, staged_lines / unit) * unit, staged_lines);
    }
    /// Launches that a whole call takes whose ranks bring up to `tokens` tokens, each a multiple of `unit` of them.
    [[nodiscard]] std::int32_t launches(std::int32_t tokens, std::int32_t unit = 1) const noexcept {
        return staged_lines <= 0 || tokens <= staged_lines ? 1
                                                           : (tokens + launch_tokens(unit) - 1) / launch_tokens(unit);
    }
    /// Bytes of one rank's region; at least K rows of partials, so that one token's rows fit.
    [[nodiscard]] std::int64_t region(travel_area area) const noexcept;
    std::int32_t topk = 1;
    std::int64_t window_bytes = 0;  ///< of the outputs that are lent for a lane
};
travel_shape shape_travel(const resolved_config& config);

/// A token's row, and a partial sum, as they travel when they are few.
templates::row_record row_packet(const exchange_config& config) noexcept;
templates::sum_record sum_packet(const exchange_config& config) noexcept;

/// How many lines go to and come from each rank, where the host knows; else every region travels whole.
struct line_traffic {
    const std::int32_t* sent = nullptr;      ///< [R]
    const std::int32_t* received = nullptr;  ///< [R]
};

class transport {
   public:
    using lane_op = templates::lane_op;

    virtual ~transport() = default;
    [[nodiscard]] virtual std::size_t workspace_bytes() const noexcept = 0;
    /// True: kernels write peers' windows and take steps by themselves; `link` is complete.
    [[nodiscard]] virtual bool peers_written() const noexcept = 0;
    [[nodiscard]] virtual templates::rank_link link(std::int32_t lane) const noexcept = 0;

    // Where a plan's messages and lines go and arrive.
    [[nodiscard]] virtual std::uint32_t* counts(std::int32_t lane) const noexcept = 0;
    [[nodiscard]] virtual std::int64_t counts_offset(std::int32_t lane) const noexcept = 0;
    [[nodiscard]] virtual std::uint8_t* lines_out(
        std::int32_t lane) const noexcept = 0;  ///< where peers are not written
    [[nodiscard]] virtual std::int64_t lines_offset(std::int32_t lane) const noexcept = 0;
    [[nodiscard]] virtual const std::uint8_t* lines_in(std::int32_t lane) const noexcept = 0;
    /// `bound`: tokens that a rank may bring to this plan.
    virtual void exchange_counts(const plan_options& options, std::int32_t bound, stream_t stream) = 0;
    virtual void exchange_lines(std::int32_t lane, stream_t stream) = 0;
    /// The outputs that `rank` lends for the lane, laid out as window_layout says, as mapped here; null: peers write
    /// none.
    [[nodiscard]] virtual std::uint8_t* window(std::int32_t /*lane*/, std::int32_t /*rank*/) const noexcept {
        return nullptr;
    }
    // Where the routing of all ranks arrives, one rank's every travel_shape::routing_bytes; where peers are written two
    // of them, and where they lie in every window.
    [[nodiscard]] virtual std::uint8_t* routing(std::int32_t lane) const noexcept = 0;
    [[nodiscard]] virtual std::int64_t routing_offset(std::int32_t) const noexcept { return 0; }
    /// Each rank's `bytes`, a multiple of 16, to all, every rank's next to the one before; where peers are not written.
    virtual void exchange_routing(const plan_options&, std::int32_t /*bound*/, std::int64_t /*bytes*/, stream_t) {}

    /// Where what is for `rank` is written, and where what came from it is read. On this rank the two are one memory
    /// where nothing has to travel.
    [[nodiscard]] virtual std::uint8_t* out(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept = 0;
    [[nodiscard]] virtual std::uint8_t* in(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept = 0;
    /// Before the first write to `area`: its last contents have been read everywhere.
    virtual void begin(std::int32_t lane, travel_area area, stream_t stream) = 0;
    /// After the last read of `area`.
    virtual void done(std::int32_t lane, lane_op op, travel_area area, stream_t stream) = 0;
    /// True: rows travel as whole tensors by put_tensor(), a row is found by its token, and partial sums come back so.
    [[nodiscard]] virtual bool whole_tensors() const noexcept { return false; }
    /// `rows`, [T,H], becomes this rank's part of the area of rows, with `scales` of that of scales.
    virtual void put_tensor(std::int32_t, const tensor_view&, bool /*scales*/, stream_t) {}
    /// What was written travels. `back`: to the tokens' owners, so that lines sent and received change places.
    virtual void post(std::int32_t lane, templates::lane_op op, std::span<const travel_area> areas,
                      const line_traffic& traffic, bool back, stream_t stream) = 0;
    /// What the peers wrote is there for what follows on the stream.
    virtual void arrive(std::int32_t lane, templates::lane_op op, stream_t stream) = 0;

    /// Flags of the chunks of an area, where peers are written.
    [[nodiscard]] virtual templates::chunk_flags flags(travel_area, std::int32_t) const noexcept { return {}; }

    /// Weights of lines that travel in a combine's own launch, where peers are written; `few`: in one of few tokens.
    [[nodiscard]] virtual templates::weight_area line_weights(std::int32_t, bool /*few*/) const noexcept { return {}; }
    /// The area's lines as packets, where peers are written and calls of few tokens are expected.
    [[nodiscard]] virtual templates::packet_area packets(travel_area, std::int32_t) const noexcept { return {}; }

    /// After creation: what the first call would connect or load is connected and loaded. Collective.
    virtual void warm() {}
    /// What a caller may be told at the next call. @throws timeout_error, nccl_error.
    virtual void check() = 0;
    /// Frees nothing that a peer may still write.
    virtual void close() noexcept {}
};

}  // namespace epjit::host
