// SPDX-License-Identifier: Apache-2.0
#include "epjit/communicator.hpp"

#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/exchange/layouts.hpp"
#include "host/nccl/creation.hpp"
#include "host/nccl/launcher.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

namespace epjit {
namespace {

std::shared_ptr<host::communicator_state> driving_all(std::shared_ptr<host::runtime_state> runtime, exchange_kind kind,
                                                      int ranks) {
    if (runtime == nullptr) {
        throw config_error("the runtime was moved from", "pass the runtime that owns the state now");
    }
    if (ranks < 1 || ranks > templates::max_driven_ranks) {
        throw config_error(fmt::format("a {} communicator of {} ranks was asked for", name(kind), ranks),
                           fmt::format("use 1 to {} ranks", templates::max_driven_ranks));
    }
    auto state = std::make_shared<host::communicator_state>();
    state->runtime = std::move(runtime);
    state->kind = kind;
    state->num_ranks = ranks;
    state->num_driven = ranks;
    return state;
}

host::runtime_state& live(const std::shared_ptr<host::runtime_state>& runtime) {
    if (runtime == nullptr) {
        throw config_error("the runtime was moved from", "pass the runtime that owns the state now");
    }
    return *runtime;
}

void check_rank(int rank, int ranks) {
    constexpr int most = 1 << 15;  // a rank is 16 bits in the plans
    if (ranks < 1 || ranks > most || rank < 0 || rank >= ranks) {
        throw config_error(fmt::format("rank {} of {} was asked for", rank, ranks),
                           fmt::format("use 1 to {} ranks, and a rank from 0 up, below their number", most));
    }
}

std::shared_ptr<host::communicator_state> real_rank(const std::shared_ptr<host::runtime_state>& runtime,
                                                    std::shared_ptr<host::nccl_communicator> nccl) {
    auto state = std::make_shared<host::communicator_state>();
    state->runtime = runtime;
    state->kind = exchange_kind::automatic;
    state->num_ranks = nccl->size();
    state->num_driven = 1;
    state->first_driven = nccl->rank();
    state->context = nccl->context();
    state->nccl = std::move(nccl);
    return state;
}

}  // namespace

communicator::communicator(std::shared_ptr<host::communicator_state> s) noexcept : state_(std::move(s)) {}
communicator::~communicator() = default;
communicator::communicator(communicator&&) noexcept = default;
communicator& communicator::operator=(communicator&&) noexcept = default;

communicator communicator::host(runtime& rt, int ranks) {
    return communicator(driving_all(rt.state_, exchange_kind::host, ranks));
}

communicator communicator::loopback(runtime& rt, int ranks, int device) {
    auto state = driving_all(rt.state_, exchange_kind::loopback, ranks);
    state->context = state->runtime->context(device);
    return communicator(std::move(state));
}

communicator::communicator() noexcept = default;

void communicator::unique_id(runtime& rt, std::span<std::byte, 128> id) {
    const host::nccl_unique_id made = host::make_unique_id(*live(rt.state_).nccl());
    std::memcpy(id.data(), &made, sizeof made);
}

communicator communicator::from_unique_id(runtime& rt, std::span<const std::byte, 128> id, int rank, int ranks,
                                          int device) {
    host::runtime_state& state = live(rt.state_);
    check_rank(rank, ranks);
    host::nccl_unique_id copy;
    std::memcpy(&copy, id.data(), sizeof copy);
    const host::nccl_member member{rank, state.context(device)};
    return communicator(real_rank(rt.state_, host::connect_ranks(rt.state_, copy, ranks, {&member, 1}).front()));
}

communicator communicator::from_nccl(runtime& rt, ncclComm* borrowed, int device, std::span<const int> ranks) {
    const host::shared_context context = live(rt.state_).context(device);
    std::shared_ptr<host::nccl_communicator> nccl = host::borrow(rt.state_, borrowed, context, ranks);
    return nccl != nullptr ? communicator(real_rank(rt.state_, std::move(nccl))) : communicator();
}

communicator communicator::from_launcher(runtime& rt) {
    host::runtime_state& state = live(rt.state_);
    const host::launcher_place place = host::read_launcher([](const char* name) { return std::getenv(name); });
    check_rank(place.rank, place.size);
    const int num_devices = state.driver()->num_devices;
    if (num_devices < 1) {
        throw config_error("the driver sees no GPU", "check CUDA_VISIBLE_DEVICES");
    }
    const host::nccl_member member{place.rank, state.context(place.local_rank % num_devices)};
    std::shared_ptr<host::nccl_communicator> nccl;
    host::with_bootstrap_id(*state.nccl(), place, [&](const host::nccl_unique_id& id) {
        nccl = host::connect_ranks(rt.state_, id, place.size, {&member, 1}).front();
    });
    return communicator(real_rank(rt.state_, std::move(nccl)));
}

void communicator::local(runtime& rt, std::span<const int> devices, std::span<communicator> out) {
    host::runtime_state& state = live(rt.state_);
    if (devices.empty() || devices.size() != out.size()) {
        throw config_error(fmt::format("{} devices and room for {} communicators", devices.size(), out.size()),
                           "pass one or more devices and as many communicators");
    }
    check_rank(0, static_cast<int>(devices.size()));
    std::vector<host::nccl_member> members;
    for (const int device : devices) {
        members.push_back({static_cast<std::int32_t>(members.size()), state.context(device)});
    }
    const auto made = host::connect_ranks(rt.state_, host::make_unique_id(*state.nccl()),
                                          static_cast<std::int32_t>(devices.size()), members);
    for (std::size_t i = 0; i < made.size(); ++i) {
        out[i] = communicator(real_rank(rt.state_, made[i]));
    }
}

int communicator::num_ranks() const noexcept {
    return state_ != nullptr ? state_->num_ranks : 0;
}
int communicator::num_driven() const noexcept {
    return state_ != nullptr ? state_->num_driven : 0;
}
int communicator::first_driven() const noexcept {
    return state_ != nullptr ? state_->first_driven : 0;
}
exchange_kind communicator::kind() const noexcept {
    return state_ != nullptr ? state_->kind : exchange_kind::automatic;
}

}  // namespace epjit
