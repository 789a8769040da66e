// SPDX-License-Identifier: Apache-2.0
#include "host/lsa/steps.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/variants.hpp"
#include "host/nccl/communicator.hpp"

#include <fmt/format.h>

#include <chrono>
#include <string>

namespace epjit::host {
namespace {

using templates::lane_op;

std::string_view text(lane_op op) {
    switch (op) {
        case lane_op::barrier: return "a step between calls";
        case lane_op::plan_counts: return "make_plan (counts)";
        case lane_op::plan_lines: return "make_plan (lines)";
        case lane_op::plan_rows: return "make_plan (routing of all ranks)";
        case lane_op::dispatch: return "dispatch";
        case lane_op::combine_weights: return "combine (weights)";
        case lane_op::combine: return "combine";
        case lane_op::gradient_rows: return "weight_gradients (rows)";
        case lane_op::gradients: return "weight_gradients";
        case lane_op::window_open: return "dispatch (into windows)";
        case lane_op::none: break;
    }
    return "nothing";
}

}  // namespace

void require_reachable(communicator_state& comm, const symmetric_window& window, std::int32_t first, std::int32_t count,
                       std::int32_t first_in_window, std::string_view exchange, const char* remedy) {
    std::string missing;
    for (std::int32_t r = first; r < first + count; ++r) {
        if (window.peer(r - first_in_window) == nullptr) {
            missing += fmt::format("{}{}", missing.empty() ? "" : ", ", r);
        }
    }
    const std::uint8_t mine = missing.empty() ? 0 : 1;
    std::vector<std::uint8_t> all(static_cast<std::size_t>(comm.num_ranks));
    comm.nccl->all_gather_host(&mine, all.data(), 1);
    for (std::int32_t r = 0; r < comm.num_ranks; ++r) {
        if (all[static_cast<std::size_t>(r)] != 0) {
            throw unsupported_error(
                missing.empty()
                    ? fmt::format("exchange '{}': rank {} cannot reach the memory of all ranks it needs", exchange, r)
                    : fmt::format("exchange '{}': rank {} cannot reach the memory of rank(s) {}", exchange,
                                  comm.first_driven, missing),
                remedy);
        }
    }
}

peer_steps::peer_steps(communicator_state& comm, const symmetric_window& window, std::int32_t first, std::int32_t count,
                       const travel_shape& shape, std::int32_t first_in_window)
    : comm_(comm), base_(static_cast<std::byte*>(window.local())), first_(first), count_(count) {
    control_ = device_buffer(comm.context, sizeof(templates::exchange_control));
    peers_ = device_buffer(comm.context, static_cast<std::size_t>(count) * sizeof(void*));
    record_ = pinned_buffer(comm.context, sizeof(templates::failure_record));
    comm.runtime->allocations.fetch_add(3, std::memory_order_relaxed);
    upload(window, first_in_window);
    const jit::variant_spec helpers = jit::exchange_helpers_spec(
        device_arch(comm.context->compute_major(), comm.context->compute_minor()), comm.num_ranks, shape.topk);
    variant_ = comm.runtime->load(comm.context, std::span(&helpers, 1));
    sync_ = prepare_kernel(*comm.context, variant_[0]->get("sync_kernel"), 64, 0, 0);
}

templates::rank_link peer_steps::link(std::int32_t lane) const noexcept {
    templates::rank_link link{};
    link.control = control_.as<templates::exchange_control>();
    link.record = static_cast<templates::failure_record*>(record_.device_data());
    link.peers = peers_.as<templates::u8*>();
    link.words = reinterpret_cast<templates::u64*>(base_ + words_offset(count_, lane));
    link.poison = reinterpret_cast<templates::u64*>(base_ + templates::window_poison_offset);
    link.me = comm_.first_driven - first_;
    link.num_ranks = count_;
    link.lane = lane;
    link.words_offset = static_cast<std::int32_t>(words_offset(count_, lane));
    return link;
}

/// The areas whose contents are read before a step that lets them be written again.
templates::lane_area peer_steps::group_of(travel_area area) noexcept {
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

void peer_steps::upload(const symmetric_window& window, std::int32_t first_in_window) {
    const settings& o = comm_.runtime->options;
    const auto ns = [](std::chrono::milliseconds ms) {
        return static_cast<templates::u64>(std::chrono::duration_cast<std::chrono::nanoseconds>(ms).count());
    };
    templates::exchange_control control{};
    control.first_limit_ns = ns(o.first_wait_timeout);
    control.limit_ns = ns(o.wait_timeout);
    std::vector<void*> peers;
    for (std::int32_t r = 0; r < count_; ++r) {
        peers.push_back(window.peer(first_ + r - first_in_window));
    }
    copy_to_device(comm_.context, control_.data(), &control, sizeof control, nullptr);
    copy_to_device(comm_.context, peers_.data(), peers.data(), peers.size() * sizeof(void*), nullptr);
    synchronize(comm_.context, nullptr);
    comm_.runtime->uploads.fetch_add(1, std::memory_order_relaxed);
}

void peer_steps::step(std::int32_t lane, lane_op op, const step_parts& parts, stream_t stream) {
    templates::sync_args args{};
    args.link = link(lane);
    args.op = op;
    args.wait_area = parts.wait_area;
    args.signal = parts.signal;
    args.read_area = parts.read_area;
    args.wait = parts.wait;
    launch(comm_, sync_, 1, &args, stream);
}

bool peer_steps::failed() const noexcept {
    return __atomic_load_n(&record_.as<const templates::failure_record>()->set, __ATOMIC_ACQUIRE) != 0;
}

void peer_steps::check(std::string_view exchange) const {
    if (!failed()) {
        return;
    }
    const auto* record = record_.as<const templates::failure_record>();
    const std::int32_t me = comm_.first_driven;
    // A plan's own wait is for itself; steps know ranks by their number among those that take them.
    const bool in_plan =
        record->op == lane_op::plan_counts || record->op == lane_op::plan_lines || record->op == lane_op::plan_rows;
    const std::int32_t peer = in_plan && record->peer == me ? me : first_ + record->peer;
    const std::string where =
        fmt::format("exchange '{}', lane {}: rank {} in {}", exchange, record->lane, me, text(record->op));
    switch (record->kind) {
        case templates::failure_kind::mismatch:
            throw config_error(fmt::format("{}: rank {} called {} instead (step {})", where, peer,
                                           text(record->seen_op), record->expected),
                               "issue the same calls in the same order on every rank, then make a new exchange");
        case templates::failure_kind::peer:
            throw timeout_error(fmt::format("{}: rank {} has failed and said so", where, peer),
                                "look at that rank's error, then make a new exchange");
        default:
            throw timeout_error(fmt::format("{}: waited for rank {}: expected step {}, seen {} ({})", where, peer,
                                            record->expected, record->seen, text(record->seen_op)),
                                "look at what that rank does; raise EPJIT_WAIT_TIMEOUT_MS if it is only slow; then "
                                "make a new exchange");
    }
}

void peer_steps::close(std::string_view what) const noexcept {
    try {
        synchronize(comm_.context, nullptr);
        comm_.context->synchronize();
        if (!failed()) {
            comm_.nccl->barrier_host();
        }
    } catch (const std::exception& e) {
        comm_.runtime->log().write(log_level::warn, fmt::format("closing {}: {}", what, e.what()));
    }
}

}  // namespace epjit::host
