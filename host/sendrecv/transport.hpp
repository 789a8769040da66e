// SPDX-License-Identifier: Apache-2.0
// Grouped ncclSend and ncclRecv: any topology. What goes out is written into regions of one buffer, a region for every
// rank, and arrives in those of another; this rank's own region is the same in both. Exact mode moves the lines there
// are, static mode whole regions, those of a dispatch as one message to each rank: NCCL (2.28.3) takes a second message
// to the same rank up in a loop of its kernel that an abort may leave with some of its warps only, and the kernels of a
// captured graph go on being launched after the communicator was aborted.
#pragma once

#include "host/exchange/device_memory.hpp"
#include "host/nccl/watchdog.hpp"
#include "host/ranks/transport.hpp"
#include "host/sendrecv/stamps.hpp"

#include <array>
#include <vector>

namespace epjit::host {

class sendrecv_transport : public transport {
   public:
    sendrecv_transport(communicator_state& comm, const resolved_config& config, const travel_shape& shape);

    [[nodiscard]] std::size_t workspace_bytes() const noexcept override { return bytes_; }
    [[nodiscard]] bool peers_written() const noexcept override { return false; }
    [[nodiscard]] templates::rank_link link(std::int32_t lane) const noexcept override {
        templates::rank_link link{};
        link.control = control_.as<templates::exchange_control>();
        link.record = static_cast<templates::failure_record*>(record_.device_data());
        // No windows: the word that a peer would poison stays zero, and no peer can be told.
        link.poison = reinterpret_cast<templates::u64*>(control_.as<std::byte>() + 256);
        link.me = me_;
        link.num_ranks = 0;
        link.lane = lane;
        return link;
    }
    [[nodiscard]] std::uint32_t* counts(std::int32_t lane) const noexcept override {
        return reinterpret_cast<std::uint32_t*>(base(lanes_[static_cast<std::size_t>(lane)].in));
    }
    [[nodiscard]] std::int64_t counts_offset(std::int32_t) const noexcept override { return 0; }
    [[nodiscard]] std::uint8_t* lines_out(std::int32_t lane) const noexcept override {
        return reinterpret_cast<std::uint8_t*>(base(lanes_[static_cast<std::size_t>(lane)].out) + lines_at_);
    }
    [[nodiscard]] std::int64_t lines_offset(std::int32_t) const noexcept override { return 0; }
    [[nodiscard]] const std::uint8_t* lines_in(std::int32_t lane) const noexcept override {
        return reinterpret_cast<const std::uint8_t*>(base(lanes_[static_cast<std::size_t>(lane)].in) + lines_at_);
    }
    void exchange_counts(const plan_options& options, std::int32_t bound, stream_t stream) override;
    void exchange_lines(std::int32_t lane, stream_t stream) override;
    [[nodiscard]] std::uint8_t* routing(std::int32_t lane) const noexcept override {
        return reinterpret_cast<std::uint8_t*>(base(lanes_[static_cast<std::size_t>(lane)].in) + routing_at_);
    }
    void exchange_routing(const plan_options& options, std::int32_t bound, std::int64_t bytes,
                          stream_t stream) override;

    [[nodiscard]] std::uint8_t* out(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept override {
        const lane_memory& m = lanes_[static_cast<std::size_t>(lane)];
        return at(rank == me_ ? m.in : m.out, area, rank);
    }
    [[nodiscard]] std::uint8_t* in(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept override {
        return at(lanes_[static_cast<std::size_t>(lane)].in, area, rank);
    }
    // The stream orders it.
    void begin(std::int32_t, travel_area, stream_t) override {}
    void done(std::int32_t, lane_op, travel_area, stream_t) override {}
    void post(std::int32_t lane, lane_op op, std::span<const travel_area> areas, const line_traffic& traffic, bool back,
              stream_t stream) override;
    void arrive(std::int32_t, lane_op, stream_t) override {}
    void warm() override;
    void check() override {
        comm_.nccl->check();
        stamps_.check(name(kind_));
    }

   protected:
    /// The region of what goes out to `rank`, other memory than in() for this rank too.
    [[nodiscard]] std::uint8_t* outgoing(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept {
        return at(lanes_[static_cast<std::size_t>(lane)].out, area, rank);
    }
    /// The gathers of plans: of counts, of the largest routing, and of what the ranks say of the plan.
    [[nodiscard]] std::array<gather_in_place, 3> plan_gathers(std::int32_t lane) const noexcept {
        return {{counts_gather(lane),
                 {routing(lane), static_cast<std::size_t>(shape_.routing_bytes)},
                 stamps_.gather(lane)}};
    }
    /// What post() moves of one area, appended to `transfers_`.
    void append(std::int32_t lane, travel_area area, const line_traffic& traffic, bool back);
    /// The same for areas beside each other whose regions travel whole: a message a rank.
    void append_block(std::int32_t lane, std::span<const travel_area> areas);
    /// `transfers_` as one group. `one_each`: as a group for the first to every rank, then one for the second, and so
    /// on, which every rank asks for or none: what a graph captures holds no kernel of several messages to one rank.
    void send_all(lane_op op, stream_t stream, bool one_each = false);
    [[nodiscard]] static const char* phase_of(lane_op op) noexcept;

    communicator_state& comm_;
    const std::int32_t me_, ranks_;
    const travel_shape shape_;
    /// Groups of all lanes run one after the other, in the order of the calls: before each, with its name.
    void begin_group(const char* phase, stream_t stream) {
        order_.on(*comm_.context, stream);
        groups_.begin(phase, stream);
    }
    void end_group(stream_t stream) { groups_.end(stream); }
    std::vector<peer_transfer> transfers_;

   private:
    std::vector<peer_transfer> round_;  ///< of send_all
    struct lane_memory {
        workspace out, in;
    };
    static std::byte* base(const workspace& w) noexcept { return static_cast<std::byte*>(w.data()); }
    [[nodiscard]] std::uint8_t* at(const workspace& w, travel_area area, std::int32_t rank) const noexcept {
        return reinterpret_cast<std::uint8_t*>(base(w) + areas_at_[static_cast<std::size_t>(area)] +
                                               rank * strides_[static_cast<std::size_t>(area)]);
    }
    /// Scales, weights and rows of one rank lie beside each other; else an area's regions do, as an all-gather of whole
    /// tensors wants them.
    [[nodiscard]] bool in_blocks() const noexcept { return kind_ != exchange_kind::dense; }
    [[nodiscard]] gather_in_place counts_gather(std::int32_t lane) const noexcept {
        return {counts(lane), static_cast<std::size_t>(shape_.counts_words) * 4};
    }
    /// A plan's own gather and that of the stamps, as one group.
    void gather_plan(lane_op op, const gather_in_place& what, const plan_options& options, std::int32_t bound,
                     plan_source source, stream_t stream);
    void lay_out();

    lane_order order_;
    watched_groups groups_;
    const exchange_kind kind_;
    plan_stamps stamps_;
    std::int64_t lane_bytes_ = 0, lines_at_ = 0, routing_at_ = 0;
    std::array<std::int64_t, num_travel_areas> areas_at_{}, strides_{};
    std::array<lane_memory, templates::max_lanes> lanes_;
    std::size_t bytes_ = 0;
    device_buffer control_;
    pinned_buffer record_;
};

}  // namespace epjit::host
