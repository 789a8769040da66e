// SPDX-License-Identifier: Apache-2.0
// Windows inside each host, grouped ncclSend and ncclRecv between all ranks. What is small, and what has no saving in
// crossing once per host, goes between all ranks as with sendrecv; rows and partial sums go through the windows and,
// between hosts, between ranks of the same number within their hosts (a rail).
#pragma once

#include "host/hybrid/hosts.hpp"
#include "host/lsa/steps.hpp"
#include "host/ranks/plan.hpp"
#include "host/sendrecv/transport.hpp"

#include <optional>

namespace epjit::host {

class hybrid_transport final : public sendrecv_transport {
   public:
    /// Collective. @throws unsupported_error on every rank when a rank cannot reach its host's windows.
    hybrid_transport(communicator_state& comm, const resolved_config& config, const travel_shape& shape);

    [[nodiscard]] std::size_t workspace_bytes() const noexcept override {
        return sendrecv_transport::workspace_bytes() + static_cast<std::size_t>(total_);
    }
    /// A plan takes no steps, but sees that one failed.
    [[nodiscard]] templates::rank_link link(std::int32_t lane) const noexcept override;
    void check() override {
        sendrecv_transport::check();
        steps_->check("hybrid");
    }
    void close() noexcept override;

    [[nodiscard]] const host_layout& hosts() const noexcept { return hosts_; }
    [[nodiscard]] peer_steps& steps() noexcept { return *steps_; }
    /// Region `region` of R of rows, scales or partials in the window of `rank`, which is of this rank's host.
    [[nodiscard]] std::uint8_t* window(travel_area area, std::int32_t lane, std::int32_t rank,
                                       std::int32_t region) const noexcept;
    using sendrecv_transport::outgoing;

    // One group of transfers: start, add, go.
    void start_group() { transfers_.clear(); }
    using sendrecv_transport::append;
    /// Between this rank and that of its rail on host `h`.
    void add_rail(std::int32_t h, const void* send, std::int64_t send_bytes, void* receive,
                  std::int64_t receive_bytes) {
        transfers_.push_back({hosts_.rail(h), send, static_cast<std::size_t>(send_bytes), receive,
                              static_cast<std::size_t>(receive_bytes)});
    }
    using sendrecv_transport::send_all;

   private:
    void lay_out();

    const host_layout hosts_;
    std::int64_t lanes_at_ = 0, lane_bytes_ = 0, total_ = 0;
    std::array<std::int64_t, num_travel_areas> windows_at_{};
    symmetric_window window_;
    std::int32_t first_in_window_ = 0;  ///< rank that is the window's rank 0
    std::optional<peer_steps> steps_;
};

}  // namespace epjit::host
