// SPDX-License-Identifier: Apache-2.0
#include "epjit/communicator.hpp"

#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/exchange/layouts.hpp"

#include <fmt/format.h>

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

[[noreturn]] void refuse_real_ranks(const char* what) {
    throw unsupported_error(
        fmt::format("{}: exchanges between real ranks (lsa, sendrecv, dense, hybrid) are not in this version", what),
        "use communicator::loopback (virtual ranks on one GPU) or communicator::host (CPU)");
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

communicator communicator::from_nccl(runtime&, ncclComm*, int) {
    refuse_real_ranks("communicator::from_nccl");
}

communicator communicator::from_unique_id(runtime&, std::span<const std::byte, 128>, int, int, int) {
    refuse_real_ranks("communicator::from_unique_id");
}

communicator communicator::from_launcher(runtime&) {
    refuse_real_ranks("communicator::from_launcher");
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
