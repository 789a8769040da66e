// SPDX-License-Identifier: Apache-2.0
#include "host/hybrid/transport.hpp"

namespace epjit::host {

hybrid_transport::hybrid_transport(communicator_state& comm, const resolved_config& config, const travel_shape& shape)
    : sendrecv_transport(comm, config, shape), hosts_(lay_out_hosts(comm.facts.rank_hosts, config.first_driven)) {
    lay_out();
    window_ =
        symmetric_window(comm.host_nccl != nullptr ? comm.host_nccl : comm.nccl, static_cast<std::size_t>(total_));
    first_in_window_ = comm.host_nccl != nullptr ? hosts_.first() : 0;
    require_reachable(comm, window_, hosts_.first(), hosts_.width, first_in_window_, "hybrid",
                      "use sendrecv, or give the ranks of a host GPUs that reach each other");
    steps_.emplace(comm, window_, hosts_.first(), hosts_.width, shape, first_in_window_);
    comm.nccl->barrier_host();
}

void hybrid_transport::lay_out() {
    lanes_at_ = peer_steps::words_bytes(hosts_.width, shape_.num_lanes);
    for (const travel_area area : {travel_area::rows, travel_area::scales, travel_area::partials}) {
        windows_at_[static_cast<std::size_t>(area)] = lane_bytes_;
        lane_bytes_ += ranks_ * shape_.region(area);
    }
    total_ = lanes_at_ + shape_.num_lanes * lane_bytes_;
}

templates::rank_link hybrid_transport::link(std::int32_t lane) const noexcept {
    templates::rank_link link = steps_->link(lane);
    link.me = me_;
    link.num_ranks = 0;
    return link;
}

std::uint8_t* hybrid_transport::window(travel_area area, std::int32_t lane, std::int32_t rank,
                                       std::int32_t region) const noexcept {
    return static_cast<std::uint8_t*>(window_.peer(rank - first_in_window_)) + lanes_at_ + lane * lane_bytes_ +
           windows_at_[static_cast<std::size_t>(area)] + region * shape_.region(area);
}

void hybrid_transport::close() noexcept {
    steps_->close("a hybrid exchange");
}

}  // namespace epjit::host
