// SPDX-License-Identifier: Apache-2.0
// Grouped ncclSend and ncclRecv: any topology. What goes out is written into regions of one buffer, a region for every
// rank, and arrives in those of another; this rank's own region is the same in both. Exact mode moves the lines there
// are, static mode whole regions.
#include "epjit/error.hpp"
#include "host/exchange/device_memory.hpp"
#include "host/nccl/communicator.hpp"
#include "host/ranks/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

namespace epjit::host {
namespace {

class sendrecv_transport final : public transport {
   public:
    sendrecv_transport(communicator_state& comm, const resolved_config& config, const travel_shape& shape)
        : comm_(comm), me_(config.first_driven), ranks_(config.num_ranks), shape_(shape) {
        lay_out();
        const std::size_t lane_bytes = static_cast<std::size_t>(lane_bytes_);
        for (std::int32_t lane = 0; lane < shape.num_lanes; ++lane) {
            lane_memory& m = lanes_[static_cast<std::size_t>(lane)];
            m.out = workspace(comm, config.config.memory, lane_bytes);
            m.in = workspace(comm, config.config.memory, lane_bytes);
            bytes_ += 2 * lane_bytes;
        }
        control_ = device_buffer(comm.context, 512);
        record_ = pinned_buffer(comm.context, sizeof(templates::failure_record));
        comm.runtime->allocations.fetch_add(2, std::memory_order_relaxed);
        fill_bytes(comm.context, control_.data(), 0, 512, nullptr);
        synchronize(comm.context, nullptr);
        transfers_.reserve(static_cast<std::size_t>(ranks_) * 3);
    }

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
    void exchange_counts(std::int32_t lane, stream_t stream) override {
        const std::size_t bytes = static_cast<std::size_t>(shape_.counts_words) * 4;
        std::byte* all = base(lanes_[static_cast<std::size_t>(lane)].in);
        comm_.nccl->all_gather(all + static_cast<std::size_t>(me_) * bytes, all, bytes, stream);
        comm_.nccl->watch("make_plan (counts)", stream);
    }
    void exchange_lines(std::int32_t lane, stream_t stream) override {
        transfers_.clear();
        const std::int64_t region = shape_.max_lines * shape_.plan_line_bytes;
        for (std::int32_t r = 0; r < ranks_; ++r) {
            const std::size_t bytes = static_cast<std::size_t>(region);
            transfers_.push_back({r, lines_out(lane) + r * region, bytes,
                                  const_cast<std::uint8_t*>(lines_in(lane)) + r * region, bytes});
        }
        comm_.nccl->exchange(transfers_, stream);
        comm_.nccl->watch("make_plan (lines)", stream);
    }

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
    void check() override { comm_.nccl->check(); }

   private:
    struct lane_memory {
        workspace out, in;
    };
    static std::byte* base(const workspace& w) noexcept { return static_cast<std::byte*>(w.data()); }
    [[nodiscard]] std::uint8_t* at(const workspace& w, travel_area area, std::int32_t rank) const noexcept {
        return reinterpret_cast<std::uint8_t*>(base(w) + areas_at_[static_cast<std::size_t>(area)] +
                                               rank * shape_.region(area));
    }
    void lay_out();

    communicator_state& comm_;
    const std::int32_t me_, ranks_;
    const travel_shape shape_;
    std::int64_t lane_bytes_ = 0, lines_at_ = 0;
    std::array<std::int64_t, num_travel_areas> areas_at_{};
    std::array<lane_memory, templates::max_lanes> lanes_;
    std::size_t bytes_ = 0;
    device_buffer control_;
    pinned_buffer record_;
    std::vector<peer_transfer> transfers_;
};

void sendrecv_transport::lay_out() {
    std::int64_t next = 0;
    const auto part = [&next](std::int64_t bytes) {
        const std::int64_t at = next;
        next = (next + bytes + 255) / 256 * 256;
        return at;
    };
    part(std::int64_t{ranks_} * shape_.counts_words * 4);
    lines_at_ = part(std::int64_t{ranks_} * shape_.max_lines * shape_.plan_line_bytes);
    // What a lane's calls move is never there at the same time, so that rows, partial sums and scalars share memory;
    // weights and scales travel beside rows.
    areas_at_[static_cast<std::size_t>(travel_area::scales)] = part(ranks_ * shape_.region(travel_area::scales));
    const std::int64_t weights = part(ranks_ * shape_.region(travel_area::weights));
    areas_at_[static_cast<std::size_t>(travel_area::weights)] = weights;
    areas_at_[static_cast<std::size_t>(travel_area::combine_weights)] = weights;
    areas_at_[static_cast<std::size_t>(travel_area::scalars)] = part(ranks_ * shape_.region(travel_area::scalars));
    const std::int64_t rows =
        part(ranks_ * std::max(shape_.region(travel_area::rows), shape_.region(travel_area::partials)));
    areas_at_[static_cast<std::size_t>(travel_area::rows)] = rows;
    areas_at_[static_cast<std::size_t>(travel_area::partials)] = rows;
    lane_bytes_ = next;
}

void sendrecv_transport::post(std::int32_t lane, lane_op op, std::span<const travel_area> areas,
                              const line_traffic& traffic, bool back, stream_t stream) {
    transfers_.clear();
    const std::int32_t* sent = back ? traffic.received : traffic.sent;
    const std::int32_t* received = back ? traffic.sent : traffic.received;
    for (const travel_area area : areas) {
        const std::int64_t line = shape_.line_bytes[static_cast<std::size_t>(area)];
        for (std::int32_t r = 0; r < ranks_; ++r) {
            if (r == me_) {
                continue;
            }
            const std::int64_t whole = shape_.region(area);
            transfers_.push_back({r, out(area, lane, r),
                                  static_cast<std::size_t>(sent != nullptr ? sent[r] * line : whole), in(area, lane, r),
                                  static_cast<std::size_t>(received != nullptr ? received[r] * line : whole)});
        }
    }
    comm_.nccl->exchange(transfers_, stream);
    comm_.nccl->watch(op == lane_op::dispatch                                    ? "dispatch"
                      : op == lane_op::combine || op == lane_op::combine_weights ? "combine"
                                                                                 : "weight_gradients",
                      stream);
}

}  // namespace

std::unique_ptr<transport> make_sendrecv_transport(communicator_state& comm, const resolved_config& config,
                                                   const travel_shape& shape) {
    return std::make_unique<sendrecv_transport>(comm, config, shape);
}

}  // namespace epjit::host
