// SPDX-License-Identifier: Apache-2.0
// Kernels store straight into the peers' symmetric windows; steps are words in them. One window an exchange and rank:
// the words of every lane, then each lane's messages, lines and areas, a region for every source rank in each.
#include "epjit/error.hpp"
#include "epjit/jit/variants.hpp"
#include "host/exchange/device_memory.hpp"
#include "host/exchange/launch.hpp"
#include "host/nccl/communicator.hpp"
#include "host/ranks/backend.hpp"

#include <fmt/format.h>

#include <array>
#include <chrono>
#include <string_view>
#include <vector>

namespace epjit::host {
namespace {

using templates::lane_op;

std::string_view text(lane_op op) {
    switch (op) {
        case lane_op::barrier: return "a step between calls";
        case lane_op::plan_counts: return "make_plan (counts)";
        case lane_op::plan_lines: return "make_plan (lines)";
        case lane_op::dispatch: return "dispatch";
        case lane_op::combine_weights: return "combine (weights)";
        case lane_op::combine: return "combine";
        case lane_op::gradient_rows: return "weight_gradients (rows)";
        case lane_op::gradients: return "weight_gradients";
        case lane_op::none: break;
    }
    return "nothing";
}

/// The areas whose contents are read before a step that lets them be written again.
templates::lane_area group_of(travel_area area) {
    switch (area) {
        case travel_area::rows:
        case travel_area::scales:
        case travel_area::weights: return templates::lane_area::rows;
        case travel_area::combine_weights: return templates::lane_area::weights;
        case travel_area::partials: return templates::lane_area::partials;
        case travel_area::scalars: return templates::lane_area::scalars;
    }
    return templates::lane_area::rows;
}

class lsa_transport final : public transport {
   public:
    lsa_transport(communicator_state& comm, const resolved_config& config, const travel_shape& shape)
        : comm_(comm), me_(config.first_driven), ranks_(config.num_ranks), shape_(shape) {
        lay_out();
        window_ = symmetric_window(comm.nccl, static_cast<std::size_t>(total_));
        require_all_reachable();
        control_ = device_buffer(comm.context, sizeof(templates::exchange_control));
        peers_ = device_buffer(comm.context, static_cast<std::size_t>(ranks_) * sizeof(void*));
        record_ = pinned_buffer(comm.context, sizeof(templates::failure_record));
        comm.runtime->allocations.fetch_add(3, std::memory_order_relaxed);
        upload();
        const jit::variant_spec helpers = jit::exchange_helpers_spec(
            device_arch(comm.context->compute_major(), comm.context->compute_minor()), ranks_, shape.topk);
        variant_ = comm.runtime->load(comm.context, std::span(&helpers, 1));
        sync_ = prepare_kernel(*comm.context, variant_[0]->get("sync_kernel"), 64, 0, 0);
        comm.nccl->barrier_host();
    }

    [[nodiscard]] std::size_t workspace_bytes() const noexcept override { return static_cast<std::size_t>(total_); }
    [[nodiscard]] bool peers_written() const noexcept override { return true; }
    [[nodiscard]] templates::rank_link link(std::int32_t lane) const noexcept override {
        std::byte* base = local();
        templates::rank_link link{};
        link.control = control_.as<templates::exchange_control>();
        link.record = static_cast<templates::failure_record*>(record_.device_data());
        link.peers = peers_.as<templates::u8*>();
        link.words = reinterpret_cast<templates::u64*>(base + words_offset(lane));
        link.poison = reinterpret_cast<templates::u64*>(base + templates::window_poison_offset);
        link.me = me_;
        link.num_ranks = ranks_;
        link.lane = lane;
        link.words_offset = static_cast<std::int32_t>(words_offset(lane));
        return link;
    }
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
    void exchange_counts(std::int32_t, stream_t) override {}
    void exchange_lines(std::int32_t, stream_t) override {}

    [[nodiscard]] std::uint8_t* out(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept override {
        return static_cast<std::uint8_t*>(window_.peer(rank)) + area_offset(area, lane, me_);
    }
    [[nodiscard]] std::uint8_t* in(travel_area area, std::int32_t lane, std::int32_t rank) const noexcept override {
        return reinterpret_cast<std::uint8_t*>(local()) + area_offset(area, lane, rank);
    }
    void begin(std::int32_t lane, travel_area area, stream_t stream) override {
        step(lane, lane_op::barrier, {.wait_area = static_cast<templates::i32>(group_of(area))}, stream);
    }
    void done(std::int32_t lane, lane_op op, travel_area area, stream_t stream) override {
        step(lane, op, {.signal = 1, .read_area = static_cast<templates::i32>(group_of(area))}, stream);
    }
    [[nodiscard]] templates::chunk_flags flags(travel_area area, std::int32_t lane) const noexcept override {
        const std::int64_t at = counts_offset(lane) + flags_at_[area == travel_area::rows ? 0 : 1];
        return {reinterpret_cast<templates::u32*>(local() + at), at, shape_.max_lines, 0};
    }
    void post(std::int32_t lane, lane_op op, std::span<const travel_area>, const line_traffic&, bool,
              stream_t stream) override {
        step(lane, op, {.signal = 1}, stream);
    }
    void arrive(std::int32_t lane, lane_op op, stream_t stream) override { step(lane, op, {.wait = 1}, stream); }

    void check() override;
    void close() noexcept override;

   private:
    [[nodiscard]] std::byte* local() const noexcept { return static_cast<std::byte*>(window_.local()); }
    [[nodiscard]] std::int64_t words_offset(std::int32_t lane) const noexcept {
        return templates::window_words_offset + lane * ((ranks_ * 8 + 255) / 256 * 256);
    }
    [[nodiscard]] std::int64_t line_region() const noexcept { return shape_.max_lines * shape_.plan_line_bytes; }
    [[nodiscard]] std::int64_t area_offset(travel_area area, std::int32_t lane, std::int32_t source) const noexcept {
        return counts_offset(lane) + areas_at_[static_cast<std::size_t>(area)] + source * shape_.region(area);
    }
    void lay_out();
    void require_all_reachable();
    void upload();
    struct step_parts {
        templates::i32 wait_area = -1, signal = 0, read_area = -1, wait = 0;
    };
    void step(std::int32_t lane, lane_op op, const step_parts& parts, stream_t stream);

    communicator_state& comm_;
    const std::int32_t me_, ranks_;
    const travel_shape shape_;
    std::int64_t lanes_at_ = 0, lane_bytes_ = 0, lines_at_ = 0, total_ = 0;
    std::array<std::int64_t, num_travel_areas> areas_at_{};
    std::array<std::int64_t, 2> flags_at_{};
    symmetric_window window_;
    device_buffer control_, peers_;
    pinned_buffer record_;
    std::vector<std::shared_ptr<const loaded_variant>> variant_;
    launchable sync_;
};

void lsa_transport::lay_out() {
    const auto align = [](std::int64_t n) { return (n + 255) / 256 * 256; };
    lanes_at_ = words_offset(shape_.num_lanes);
    std::int64_t next = 0;
    const auto part = [&](std::int64_t bytes) {
        const std::int64_t at = next;
        next = align(next + bytes);
        return at;
    };
    part(std::int64_t{ranks_} * shape_.counts_words * 4);
    lines_at_ = part(ranks_ * line_region());
    for (std::size_t a = 0; a < num_travel_areas; ++a) {
        areas_at_[a] = part(ranks_ * shape_.region(static_cast<travel_area>(a)));
    }
    for (std::int64_t& at : flags_at_) {
        at = part(std::int64_t{ranks_} * shape_.max_lines * 4);
    }
    lane_bytes_ = next;
    total_ = lanes_at_ + shape_.num_lanes * lane_bytes_;
}

void lsa_transport::require_all_reachable() {
    std::string missing;
    for (std::int32_t r = 0; r < ranks_; ++r) {
        if (window_.peer(r) == nullptr) {
            missing += fmt::format("{}{}", missing.empty() ? "" : ", ", r);
        }
    }
    // Every rank must come to the same end.
    const std::uint8_t mine = missing.empty() ? 0 : 1;
    std::vector<std::uint8_t> all(static_cast<std::size_t>(ranks_));
    comm_.nccl->all_gather_host(&mine, all.data(), 1);
    for (std::int32_t r = 0; r < ranks_; ++r) {
        if (all[static_cast<std::size_t>(r)] != 0) {
            throw unsupported_error(
                missing.empty()
                    ? fmt::format("exchange 'lsa': rank {} cannot reach all ranks' memory", r)
                    : fmt::format("exchange 'lsa': rank {} cannot reach the memory of rank(s) {}", me_, missing),
                "use sendrecv or hybrid, or put all ranks into one NVLink domain");
        }
    }
}

void lsa_transport::upload() {
    const settings& o = comm_.runtime->options;
    const auto ns = [](std::chrono::milliseconds ms) {
        return static_cast<templates::u64>(std::chrono::duration_cast<std::chrono::nanoseconds>(ms).count());
    };
    templates::exchange_control control{};
    control.first_limit_ns = ns(o.first_wait_timeout);
    control.limit_ns = ns(o.wait_timeout);
    std::vector<void*> peers;
    for (std::int32_t r = 0; r < ranks_; ++r) {
        peers.push_back(window_.peer(r));
    }
    copy_to_device(comm_.context, control_.data(), &control, sizeof control, nullptr);
    copy_to_device(comm_.context, peers_.data(), peers.data(), peers.size() * sizeof(void*), nullptr);
    synchronize(comm_.context, nullptr);
    comm_.runtime->uploads.fetch_add(1, std::memory_order_relaxed);
}

void lsa_transport::step(std::int32_t lane, lane_op op, const step_parts& parts, stream_t stream) {
    templates::sync_args args{};
    args.link = link(lane);
    args.op = op;
    args.wait_area = parts.wait_area;
    args.signal = parts.signal;
    args.read_area = parts.read_area;
    args.wait = parts.wait;
    launch(comm_, sync_, 1, &args, stream);
}

void lsa_transport::check() {
    const auto* record = record_.as<const templates::failure_record>();
    if (__atomic_load_n(&record->set, __ATOMIC_ACQUIRE) == 0) {
        return;
    }
    const std::string where =
        fmt::format("exchange 'lsa', lane {}: rank {} in {}", record->lane, record->rank, text(record->op));
    switch (record->kind) {
        case templates::failure_kind::mismatch:
            throw config_error(fmt::format("{}: rank {} called {} instead (step {})", where, record->peer,
                                           text(record->seen_op), record->expected),
                               "issue the same calls in the same order on every rank, then make a new exchange");
        case templates::failure_kind::peer:
            throw timeout_error(fmt::format("{}: rank {} has failed and said so", where, record->peer),
                                "look at that rank's error, then make a new exchange");
        default:
            throw timeout_error(fmt::format("{}: waited for rank {}: expected step {}, seen {} ({})", where,
                                            record->peer, record->expected, record->seen, text(record->seen_op)),
                                "look at what that rank does; raise EPJIT_WAIT_TIMEOUT_MS if it is only slow; then "
                                "make a new exchange");
    }
}

void lsa_transport::close() noexcept {
    // The window may go only when no peer writes it any more: all ranks meet, or one of them is gone.
    try {
        synchronize(comm_.context, nullptr);
        comm_.context->synchronize();
        if (__atomic_load_n(&record_.as<const templates::failure_record>()->set, __ATOMIC_ACQUIRE) == 0) {
            comm_.nccl->barrier_host();
        }
    } catch (const std::exception& e) {
        comm_.runtime->log().write(log_level::warn, fmt::format("closing an lsa exchange: {}", e.what()));
    }
}

}  // namespace

std::unique_ptr<transport> make_lsa_transport(communicator_state& comm, const resolved_config& config,
                                              const travel_shape& shape) {
    return std::make_unique<lsa_transport>(comm, config, shape);
}

}  // namespace epjit::host
