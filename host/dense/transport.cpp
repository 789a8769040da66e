// SPDX-License-Identifier: Apache-2.0
// Every rank's rows to every rank by one all-gather; partial sums of all tokens come back by an exchange of equal sizes
// and are added by the library's own kernel, in the declared order. Takes R * T rows on every rank, which pays for few
// tokens: sizes never depend on the routing. What a plan needs, weights and weights' gradients go as with sendrecv.
#include "host/sendrecv/transport.hpp"

#include "host/loopback/arguments.hpp"
#include "host/ranks/backend.hpp"

#include <vector>

namespace epjit::host {
namespace {

class dense_transport final : public sendrecv_transport {
   public:
    using sendrecv_transport::sendrecv_transport;

    void warm() override {
        const auto gather = [this](travel_area area) {
            return gather_in_place{in(area, 0, 0), static_cast<std::size_t>(shape_.region(area))};
        };
        const auto of_plan = plan_gathers(0);
        std::vector<gather_in_place> gathers(of_plan.begin(), of_plan.end());
        gathers.push_back(gather(travel_area::rows));
        if (shape_.region(travel_area::scales) != 0) {
            gathers.push_back(gather(travel_area::scales));
        }
        comm_.nccl->warm(gathers);
    }
    [[nodiscard]] bool whole_tensors() const noexcept override { return true; }
    void put_tensor(std::int32_t lane, const tensor_view& rows, bool scales, stream_t stream) override {
        const std::int64_t groups = scale_groups(rows.columns);
        put(lane, travel_area::rows, rows.data, stride_bytes(rows), rows.columns * size_of(rows.type), rows.rows,
            stream);
        if (scales) {
            put(lane, travel_area::scales, rows.scales, scale_stride_bytes(rows), groups * size_of(rows.scale),
                rows.rows, stream);
        }
    }
    void begin(std::int32_t lane, travel_area area, stream_t stream) override {
        if (area != travel_area::partials) {
            return;
        }
        // A rank without a row of a token contributes zero, not what an earlier call left.
        const std::size_t region = static_cast<std::size_t>(shape_.region(area));
        fill_bytes(comm_.context, outgoing(area, lane, 0), 0, region * static_cast<std::size_t>(ranks_), stream);
        fill_bytes(comm_.context, out(area, lane, me_), 0, region, stream);
    }
    void post(std::int32_t lane, lane_op op, std::span<const travel_area> areas, const line_traffic& traffic, bool back,
              stream_t stream) override {
        transfers_.clear();
        begin_group(phase_of(op), stream);
        for (const travel_area area : areas) {
            if (area == travel_area::rows || area == travel_area::scales) {
                comm_.nccl->all_gather(in(area, lane, me_), in(area, lane, 0),
                                       static_cast<std::size_t>(shape_.region(area)), stream);
            } else {
                append(lane, area, area == travel_area::partials ? line_traffic{} : traffic, back);
            }
        }
        comm_.nccl->exchange(transfers_, stream);
        end_group(stream);
    }

   private:
    /// Rows to this rank's region, the rest of it cleared.
    void put(std::int32_t lane, travel_area area, const void* from, std::int64_t from_stride, std::int64_t bytes,
             std::int64_t rows, stream_t stream) {
        const std::int64_t line = shape_.line_bytes[static_cast<std::size_t>(area)];
        std::uint8_t* to = in(area, lane, me_);
        copy_rows(comm_.context, to, line, from, from_stride, bytes, rows, stream);
        fill_bytes(comm_.context, to + rows * line, 0, static_cast<std::size_t>(shape_.region(area) - rows * line),
                   stream);
    }
};

}  // namespace

std::unique_ptr<transport> make_dense_transport(communicator_state& comm, const resolved_config& config,
                                                const travel_shape& shape) {
    return std::make_unique<dense_transport>(comm, config, shape);
}

}  // namespace epjit::host
