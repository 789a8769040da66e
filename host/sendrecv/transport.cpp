// SPDX-License-Identifier: Apache-2.0
#include "host/sendrecv/transport.hpp"

#include "host/ranks/backend.hpp"

#include <algorithm>

namespace epjit::host {

sendrecv_transport::sendrecv_transport(communicator_state& comm, const resolved_config& config,
                                       const travel_shape& shape)
    : comm_(comm),
      me_(config.first_driven),
      ranks_(config.num_ranks),
      shape_(shape),
      groups_(comm.nccl),
      kind_(config.config.kind),
      stamps_(comm, shape.num_lanes) {
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
    order_ = lane_order(comm.context);
    transfers_.reserve(static_cast<std::size_t>(ranks_) * 4);
    round_.reserve(static_cast<std::size_t>(ranks_));
}

void sendrecv_transport::lay_out() {
    std::int64_t next = 0;
    const auto part = [&next](std::int64_t bytes) {
        const std::int64_t at = next;
        next = (next + bytes + 255) / 256 * 256;
        return at;
    };
    part(std::int64_t{ranks_} * shape_.counts_words * 4);
    lines_at_ = part(std::int64_t{ranks_} * shape_.max_lines * shape_.plan_line_bytes);
    routing_at_ = part(std::int64_t{ranks_} * shape_.routing_bytes);
    // What a lane's calls move is never there at the same time, so that rows, partial sums and scalars share memory;
    // weights and scales travel beside rows: where whole regions travel, one rank's are one piece of memory.
    const std::int64_t rows_bytes = std::max(shape_.region(travel_area::rows), shape_.region(travel_area::partials));
    const std::int64_t block = shape_.region(travel_area::scales) + shape_.region(travel_area::weights) + rows_bytes;
    const auto place = [&](std::initializer_list<travel_area> areas, std::int64_t bytes) {
        const std::int64_t at = next;
        for (const travel_area area : areas) {
            areas_at_[static_cast<std::size_t>(area)] = at;
            strides_[static_cast<std::size_t>(area)] = in_blocks() ? block : shape_.region(area);
        }
        next += in_blocks() ? bytes : ranks_ * bytes;
    };
    place({travel_area::scales}, shape_.region(travel_area::scales));
    place({travel_area::weights, travel_area::combine_weights}, shape_.region(travel_area::weights));
    place({travel_area::rows, travel_area::partials}, rows_bytes);
    if (in_blocks()) {
        next += (ranks_ - 1) * block;
    }
    strides_[static_cast<std::size_t>(travel_area::scalars)] = shape_.region(travel_area::scalars);
    areas_at_[static_cast<std::size_t>(travel_area::scalars)] = part(ranks_ * shape_.region(travel_area::scalars));
    lane_bytes_ = next;
}

void sendrecv_transport::warm() {
    comm_.nccl->warm(plan_gathers(0));
}

void sendrecv_transport::gather_plan(lane_op op, const gather_in_place& what, const plan_options& options,
                                     std::int32_t bound, plan_source source, stream_t stream) {
    nccl_communicator& nccl = *comm_.nccl;
    begin_group(phase_of(op), stream);
    stamps_.put(options.lane, bound, options.mode, options.layout, source, stream);
    nccl.group("ncclAllGather", [&] {
        nccl_result result = nccl_success;
        for (const gather_in_place& g : {what, stamps_.gather(options.lane)}) {
            const auto* mine = static_cast<const std::byte*>(g.all) + static_cast<std::size_t>(me_) * g.bytes;
            result = result == nccl_success
                         ? nccl.api().all_gather(mine, g.all, g.bytes, nccl_type::uint8, nccl.handle(), stream)
                         : result;
        }
        return result;
    });
    stamps_.fetch(options.lane, stream);
    end_group(stream);
}

void sendrecv_transport::exchange_counts(const plan_options& options, std::int32_t bound, stream_t stream) {
    gather_plan(lane_op::plan_counts, counts_gather(options.lane), options, bound, plan_source::counts, stream);
}

void sendrecv_transport::exchange_routing(const plan_options& options, std::int32_t bound, std::int64_t bytes,
                                          stream_t stream) {
    gather_plan(lane_op::plan_rows, {routing(options.lane), static_cast<std::size_t>(bytes)}, options, bound,
                plan_source::gathered, stream);
}

void sendrecv_transport::exchange_lines(std::int32_t lane, stream_t stream) {
    transfers_.clear();
    const std::int64_t region = shape_.max_lines * shape_.plan_line_bytes;
    for (std::int32_t r = 0; r < ranks_; ++r) {
        const std::size_t bytes = static_cast<std::size_t>(region);
        transfers_.push_back(
            {r, lines_out(lane) + r * region, bytes, const_cast<std::uint8_t*>(lines_in(lane)) + r * region, bytes});
    }
    send_all(lane_op::plan_lines, stream);
}

void sendrecv_transport::append(std::int32_t lane, travel_area area, const line_traffic& traffic, bool back) {
    const std::int32_t* sent = back ? traffic.received : traffic.sent;
    const std::int32_t* received = back ? traffic.sent : traffic.received;
    const std::int64_t line = shape_.line_bytes[static_cast<std::size_t>(area)];
    const std::int64_t whole = shape_.region(area);
    for (std::int32_t r = 0; r < ranks_; ++r) {
        if (r != me_) {
            transfers_.push_back({r, out(area, lane, r),
                                  static_cast<std::size_t>(sent != nullptr ? sent[r] * line : whole), in(area, lane, r),
                                  static_cast<std::size_t>(received != nullptr ? received[r] * line : whole)});
        }
    }
}

void sendrecv_transport::append_block(std::int32_t lane, std::span<const travel_area> areas) {
    for (std::int32_t r = 0; r < ranks_; ++r) {
        if (r == me_) {
            continue;
        }
        std::uint8_t* first = out(areas[0], lane, r);
        std::uint8_t* last = first;
        for (const travel_area area : areas) {
            first = std::min(first, out(area, lane, r));
            last = std::max(last, out(area, lane, r) + shape_.region(area));
        }
        const std::size_t bytes = static_cast<std::size_t>(last - first);
        transfers_.push_back({r, first, bytes, in(areas[0], lane, r) - (out(areas[0], lane, r) - first), bytes});
    }
}

const char* sendrecv_transport::phase_of(lane_op op) noexcept {
    switch (op) {
        case lane_op::plan_counts: return "make_plan (counts)";
        case lane_op::plan_lines: return "make_plan (lines)";
        case lane_op::plan_rows: return "make_plan (routing of all ranks)";
        case lane_op::dispatch: return "dispatch";
        case lane_op::combine_weights:
        case lane_op::combine: return "combine";
        default: return "weight_gradients";
    }
}

void sendrecv_transport::send_all(lane_op op, stream_t stream, bool one_each) {
    begin_group(phase_of(op), stream);
    while (one_each && !transfers_.empty()) {
        round_.clear();
        std::erase_if(transfers_, [&](const peer_transfer& t) {
            const bool first = std::none_of(round_.begin(), round_.end(),
                                            [&](const peer_transfer& other) { return other.peer == t.peer; });
            if (first) {
                round_.push_back(t);
            }
            return first;
        });
        comm_.nccl->exchange(round_, stream);
    }
    if (!one_each) {
        comm_.nccl->exchange(transfers_, stream);
    }
    end_group(stream);
}

void sendrecv_transport::post(std::int32_t lane, lane_op op, std::span<const travel_area> areas,
                              const line_traffic& traffic, bool back, stream_t stream) {
    transfers_.clear();
    if (traffic.sent == nullptr && areas.size() > 1 && in_blocks()) {
        append_block(lane, areas);
    } else {
        for (const travel_area area : areas) {
            append(lane, area, traffic, back);
        }
    }
    send_all(op, stream);
}

std::unique_ptr<transport> make_sendrecv_transport(communicator_state& comm, const resolved_config& config,
                                                   const travel_shape& shape) {
    return std::make_unique<sendrecv_transport>(comm, config, shape);
}

}  // namespace epjit::host
