// SPDX-License-Identifier: Apache-2.0
// Kernels store straight into the peers' symmetric windows; steps are words in them. One window an exchange and rank:
// the words of every lane, then each lane's messages, lines and areas, a region for every source rank in each.
#include "host/lsa/steps.hpp"
#include "host/ranks/backend.hpp"
#include "host/ranks/plan.hpp"

#include <algorithm>
#include <array>
#include <optional>

namespace epjit::host {
namespace {

/// What lies where in a window.
struct window_parts {
    window_parts(std::int32_t ranks, const travel_shape& shape);
    std::int64_t lanes_at_ = 0, lane_bytes_ = 0, lines_at_ = 0, routing_at_ = 0, total_ = 0;
    std::array<std::int64_t, num_travel_areas> areas_at_{};
    std::array<std::int64_t, 2> flags_at_{};
    std::array<std::int64_t, num_travel_areas> packets_at_{};
    std::array<std::int64_t, 2> weights_at_{};
    std::int64_t window_at_ = 0;
    std::int32_t flag_stride_ = 0;  ///< of a source: one a chunk, at least the two of a dispatch into windows
};

class lsa_transport final : public transport, private window_parts {
   public:
    lsa_transport(communicator_state& comm, const resolved_config& config, const travel_shape& shape)
        : window_parts(config.num_ranks, shape),
          comm_(comm),
          me_(config.first_driven),
          ranks_(config.num_ranks),
          shape_(shape) {
        window_ = symmetric_window(comm.nccl, static_cast<std::size_t>(total_));
        require_reachable(comm, window_, 0, ranks_, 0, "lsa",
                          "use sendrecv or hybrid, or put all ranks into one NVLink domain");
        steps_.emplace(comm, window_, 0, ranks_, shape);
        comm.nccl->barrier_host();
    }

    [[nodiscard]] std::size_t workspace_bytes() const noexcept override { return static_cast<std::size_t>(total_); }
    [[nodiscard]] bool peers_written() const noexcept override { return true; }
    [[nodiscard]] templates::rank_link link(std::int32_t lane) const noexcept override { return steps_->link(lane); }
    [[nodiscard]] std::uint32_t* counts(std::int32_t lane) const noexcept override {
        return reinterpret_cast<std::uint32_t*>(local() + counts_offset(lane));
    }
    [[nodiscard]] std::int64_t counts_offset(std::int32_t lane) const noexcept override {
        return lanes_at_ + lane * lane_bytes_;
    }
    [[nodiscard]] std::uint8_t* lines_out(std::int32_t) const noexcept override { return nullptr; }
    [[nodiscard]] std::int64_t lines_offset(std::int32_t lane) const noexcept override {
        return counts_offset(lane) + lines_at_ + me_ * line_region();
    }
    [[nodiscard]] const std::uint8_t* lines_in(std::int32_t lane) const noexcept override {
        return reinterpret_cast<const std::uint8_t*>(local() + counts_offset(lane) + lines_at_);
    }
    void exchange_counts(const plan_options&, std::int32_t, stream_t) override {}
    void exchange_lines(std::int32_t, stream_t) override {}
    [[nodiscard]] std::uint8_t* routing(std::int32_t lane) const noexcept override {
        return reinterpret_cast<std::uint8_t*>(local() + routing_offset(lane));
    }
    [[nodiscard]] std::int64_t routing_offset(std::int32_t lane) const noexcept override {
        return counts_offset(lane) + routing_at_;
    }

    [[nodiscard]] std::uint8_t* out(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept override {
        return static_cast<std::uint8_t*>(window_.peer(rank)) + area_offset(area, lane, me_);
    }
    [[nodiscard]] std::uint8_t* in(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept override {
        return reinterpret_cast<std::uint8_t*>(local()) + area_offset(area, lane, rank);
    }
    void begin(std::int32_t lane, travel_area area, stream_t stream) override { steps_->begin(lane, area, stream); }
    void done(std::int32_t lane, lane_op op, travel_area area, stream_t stream) override {
        steps_->done(lane, op, area, stream);
    }
    [[nodiscard]] templates::chunk_flags flags(travel_area area, std::int32_t lane) const noexcept override {
        const std::int64_t at = counts_offset(lane) + flags_at_[area == travel_area::rows ? 0 : 1];
        return {reinterpret_cast<templates::u32*>(local() + at), at, flag_stride_, 0};
    }
    [[nodiscard]] std::uint8_t* window(std::int32_t lane, std::int32_t rank) const noexcept override {
        if (shape_.window_bytes == 0) {
            return nullptr;
        }
        auto* const base = static_cast<std::uint8_t*>(rank == me_ ? window_.local() : window_.peer(rank));
        return base + counts_offset(lane) + window_at_;
    }
    [[nodiscard]] templates::weight_area line_weights(std::int32_t lane, bool few) const noexcept override {
        const std::int64_t at = counts_offset(lane) + weights_at_[few ? 1 : 0];
        return {reinterpret_cast<templates::u64*>(local() + at), at, few ? shape_.packet_lines : shape_.max_lines, 0};
    }
    [[nodiscard]] templates::packet_area packets(travel_area area, std::int32_t lane) const noexcept override {
        const std::int64_t at = counts_offset(lane) + packets_at_[static_cast<std::size_t>(area)];
        return {reinterpret_cast<templates::u8*>(local() + at), at, shape_.packet_lines, 0};
    }
    void post(std::int32_t lane, lane_op op, std::span<const travel_area>, const line_traffic&, bool,
              stream_t stream) override {
        steps_->signal(lane, op, stream);
    }
    void arrive(std::int32_t lane, lane_op op, stream_t stream) override { steps_->wait(lane, op, stream); }

    void check() override { steps_->check("lsa"); }
    void close() noexcept override;

   private:
    [[nodiscard]] std::byte* local() const noexcept { return static_cast<std::byte*>(window_.local()); }
    [[nodiscard]] std::int64_t line_region() const noexcept { return shape_.max_lines * shape_.plan_line_bytes; }
    [[nodiscard]] std::int64_t area_offset(travel_area area, std::int32_t lane, std::int32_t source) const noexcept {
        return counts_offset(lane) + areas_at_[static_cast<std::size_t>(area)] + source * shape_.region(area);
    }

    communicator_state& comm_;
    const std::int32_t me_, ranks_;
    const travel_shape shape_;
    symmetric_window window_;
    std::optional<peer_steps> steps_;
};

window_parts::window_parts(std::int32_t ranks, const travel_shape& shape) {
    const auto align = [](std::int64_t n) { return (n + 255) / 256 * 256; };
    lanes_at_ = peer_steps::words_bytes(ranks, shape.num_lanes);
    std::int64_t next = 0;
    const auto part = [&](std::int64_t bytes) {
        const std::int64_t at = next;
        next = align(next + bytes);
        return at;
    };
    part(std::int64_t{ranks} * shape.counts_words * 4);
    lines_at_ = part(std::int64_t{ranks} * shape.max_lines * shape.plan_line_bytes);
    routing_at_ = part(2 * ranks * shape.routing_bytes);
    const std::int64_t staging =
        part(ranks * std::max(shape.region(travel_area::rows), shape.region(travel_area::partials)));
    for (std::size_t a = 0; a < num_travel_areas; ++a) {
        const auto area = static_cast<travel_area>(a);
        const bool staged = area == travel_area::rows || area == travel_area::partials;
        areas_at_[a] = staged ? staging : part(ranks * shape.region(area));
    }
    flag_stride_ = std::max(shape.max_lines, 2);
    for (std::int64_t& at : flags_at_) {
        at = part(std::int64_t{ranks} * flag_stride_ * 4);
    }
    weights_at_ = {part(std::int64_t{ranks} * shape.max_lines * shape.topk * 8),
                   part(2 * std::int64_t{ranks} * shape.packet_lines * shape.topk * 8)};
    for (std::size_t a = 0; a < num_travel_areas; ++a) {
        packets_at_[a] = part(2 * std::int64_t{ranks} * shape.packet_lines * shape.packet_bytes[a]);
    }
    window_at_ = part(shape.window_bytes);
    lane_bytes_ = next;
    total_ = lanes_at_ + shape.num_lanes * lane_bytes_;
}

void lsa_transport::close() noexcept {
    steps_->close("an lsa exchange");
}

}  // namespace

std::int64_t lsa_window_bytes(const resolved_config& config) {
    return window_parts(config.num_ranks, shape_travel(config)).total_;
}

std::int32_t lsa_launches(const resolved_config& config, std::int32_t tokens) {
    return shape_travel(config).launches(tokens);
}

plan_source lsa_plan_source(const resolved_config& config, plan_source wanted) {
    const exchange_config& c = config.config;
    templates::plan_config shape{};
    shape.num_experts = c.num_experts;
    shape.num_slots = config.placement.num_slots;
    shape.num_ranks = config.num_ranks;
    shape.topk = c.topk;
    const exchange_path path = choose_path(c.ll_max_tokens_per_rank, c.max_tokens_per_rank, 0);
    return is_gathered(wanted, true, path, shape, c.max_tokens_per_rank) ? plan_source::gathered : plan_source::counts;
}

std::unique_ptr<transport> make_lsa_transport(communicator_state& comm, const resolved_config& config,
                                              const travel_shape& shape) {
    return std::make_unique<lsa_transport>(comm, config, shape);
}

}  // namespace epjit::host
