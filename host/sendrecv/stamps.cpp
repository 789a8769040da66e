// SPDX-License-Identifier: Apache-2.0
#include "host/sendrecv/stamps.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <chrono>
#include <iterator>
#include <string>
#include <thread>

namespace epjit::host {
namespace {

std::string text(const plan_stamp& s) {
    return fmt::format("exchange {} of its communicator, lane {}, at most {} tokens, {}, {}, source {}", s.exchange,
                       s.lane, s.bound, name(static_cast<mode>(s.choice & 0xff)),
                       name(static_cast<layout>(s.choice >> 8 & 0xff)), name(static_cast<plan_source>(s.choice >> 16)));
}

plan_stamp load(const plan_stamp* from) noexcept {
    const auto* words = reinterpret_cast<const std::uint32_t*>(from);
    const auto word = [words](int i) { return __atomic_load_n(words + i, __ATOMIC_ACQUIRE); };
    return {word(0), word(1), word(2), word(3)};
}

}  // namespace

plan_stamps::plan_stamps(communicator_state& comm, std::int32_t lanes)
    : comm_(comm),
      number_(comm.nccl->number_exchange()),
      lanes_(lanes),
      device_(comm.context, sizeof(plan_stamp) * static_cast<std::size_t>(lanes * comm.num_ranks)),
      host_(comm.context, device_.bytes()) {
    comm.runtime->allocations.fetch_add(2, std::memory_order_relaxed);
    fill_bytes(comm.context, device_.data(), 0, device_.bytes(), nullptr);
    synchronize(comm.context, nullptr);
}

gather_in_place plan_stamps::gather(std::int32_t lane) const noexcept {
    return {device_.as<plan_stamp>() + lane * comm_.num_ranks, sizeof(plan_stamp)};
}

void plan_stamps::put(std::int32_t lane, std::int32_t bound, mode m, layout l, plan_source source, stream_t stream) {
    const auto at = static_cast<std::size_t>(lane);
    const plan_stamp mine{
        number_, static_cast<std::uint32_t>(lane), static_cast<std::uint32_t>(bound),
        static_cast<std::uint32_t>(m) | static_cast<std::uint32_t>(l) << 8 | static_cast<std::uint32_t>(source) << 16};
    captured_[at] = captured_[at] || is_capturing(comm_.context, stream);
    if (mine == written_[at] && !captured_[at]) {
        return;
    }
    const driver_api& api = comm_.context->api();
    const auto to =
        reinterpret_cast<cu_pointer>(device_.as<plan_stamp>() + lane * comm_.num_ranks + comm_.first_driven);
    const std::uint32_t words[] = {mine.exchange, mine.lane, mine.bound, mine.choice};
    for (std::size_t i = 0; i < std::size(words); ++i) {
        api.check(api.fill_words(to + i * sizeof words[0], words[i], 1, stream), "cuMemsetD32Async");
    }
    written_[at] = mine;
}

void plan_stamps::fetch(std::int32_t lane, stream_t stream) {
    const gather_in_place g = gather(lane);
    copy_to_host(comm_.context, seen(lane), g.all, g.bytes * static_cast<std::size_t>(comm_.num_ranks), stream);
}

std::int32_t plan_stamps::differing(std::int32_t lane, plan_stamp& mine, plan_stamp& other) const noexcept {
    mine = load(seen(lane) + comm_.first_driven);
    for (std::int32_t r = 0; r < comm_.num_ranks; ++r) {
        other = load(seen(lane) + r);
        if (other != mine) {
            return r;
        }
    }
    return -1;
}

void plan_stamps::check(std::string_view exchange) const {
    for (std::int32_t lane = 0; lane < lanes_; ++lane) {
        plan_stamp mine;
        plan_stamp other;
        if (differing(lane, mine, other) < 0) {
            continue;
        }
        // A copy that has begun is done in microseconds: what still differs is no half of one.
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (const std::int32_t rank = differing(lane, mine, other); rank >= 0) {
            throw config_error(fmt::format("exchange '{}', lane {}: rank {} made a plan of {}; rank {} of {}", exchange,
                                           lane, comm_.first_driven, text(mine), rank, text(other)),
                               "issue the same calls in the same order on every rank, then make a new exchange");
        }
    }
}

}  // namespace epjit::host
