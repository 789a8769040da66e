// SPDX-License-Identifier: Apache-2.0
#include "epjit/exchange.hpp"

#include "epjit/error.hpp"
#include "host/dispatcher/dispatcher.hpp"
#include "host/dispatcher/tuning.hpp"
#include "host/dispatcher/window_way.hpp"
#include "host/exchange/exchange_state.hpp"
#include "host/exchange/validate.hpp"
#include "host/nccl/compare.hpp"
#include "host/nccl/facts.hpp"
#include "host/ranks/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace epjit {
namespace {

using host::exchange_state;
using host::pending_half;
using host::plan_state;

const char* name_of(pending_half half) {
    return half == pending_half::dispatch ? "dispatch" : "combine";
}

exchange_state& live(const std::unique_ptr<exchange_state>& state) {
    if (state == nullptr) {
        throw config_error("the exchange was moved from", "use the object that it was moved to");
    }
    return *state;
}

/// The state of a plan that this exchange made.
plan_state& owned(const exchange_state& state, const plan& p, const char* call) {
    if (!p) {
        throw config_error(fmt::format("{} got an empty plan", call), "pass a plan from this exchange's make_plan");
    }
    if (p.state().owner != static_cast<const void*>(state.identity.get())) {
        throw config_error(fmt::format("{} got a plan of another exchange", call),
                           "pass a plan from this exchange's make_plan");
    }
    return p.state();
}

void expect_idle(const exchange_state& state, std::int32_t lane, const char* call) {
    const host::lane_state& l = state.lanes[lane];
    if (l.pending != pending_half::none) {
        throw config_error(fmt::format("{} on lane {} between {}_send and {}_receive", call, lane, name_of(l.pending),
                                       name_of(l.pending)),
                           fmt::format("call {}_receive first, or use another lane", name_of(l.pending)));
    }
}

void expect_sent(const exchange_state& state, std::int32_t lane, pending_half half, const plan_state& p) {
    const host::lane_state& l = state.lanes[lane];
    if (l.pending != half) {
        throw config_error(fmt::format("{}_receive on lane {} without its {}_send", name_of(half), lane, name_of(half)),
                           fmt::format("call {}_send with the same arguments first", name_of(half)));
    }
    if (l.plan != &p) {
        throw config_error(
            fmt::format("{}_receive on lane {} with another plan than {}_send", name_of(half), lane, name_of(half)),
            "pass the same arguments to both halves");
    }
}

void validate_dispatch(const exchange_state& state, const plan_state& p, std::span<const dispatch_args> ranks,
                       const dispatch_options& options) {
    host::validate_dispatch(state.config, p, ranks, options);
    if (options.into_window) {
        state.windows.check(ranks, options);
    }
}

host::resolved_config resolve_config(const host::communicator_state& comm, const exchange_config& config,
                                     exchange_kind kind) {
    host::validate_config(config, comm.num_ranks);
    host::resolved_config resolved;
    resolved.config = config;
    resolved.config.kind = kind;
    resolved.num_ranks = comm.num_ranks;
    resolved.num_driven = comm.num_driven;
    resolved.first_driven = comm.first_driven;
    resolved.placement = host::resolve(config.placement, config.num_experts, comm.num_ranks);
    if (config.rank_hosts != nullptr) {
        resolved.rank_hosts.assign(config.rank_hosts, config.rank_hosts + comm.num_ranks);
    } else if (kind == exchange_kind::hybrid) {
        resolved.rank_hosts = comm.facts.rank_hosts;
    } else {
        resolved.rank_hosts.assign(comm.num_ranks, 0);
    }
    std::vector<std::int32_t> hosts = resolved.rank_hosts;
    std::sort(hosts.begin(), hosts.end());
    hosts.erase(std::unique(hosts.begin(), hosts.end()), hosts.end());
    for (const std::int32_t host : resolved.rank_hosts) {
        resolved.host_order.push_back(
            static_cast<std::uint8_t>(std::lower_bound(hosts.begin(), hosts.end(), host) - hosts.begin()));
    }
    host::validate_resolved(resolved);
    return resolved;
}

/// Points the config's tables into the copies; call once the copies no longer move.
void point_into_copies(host::resolved_config& resolved, std::vector<std::int32_t>& rank_slots) {
    for (std::int32_t r = 0; r < resolved.num_ranks; ++r) {
        rank_slots.push_back(resolved.placement.rank_first[r + 1] - resolved.placement.rank_first[r]);
    }
    resolved.config.placement = {resolved.placement.slot_expert.data(), rank_slots.data(),
                                 resolved.placement.num_slots};
    resolved.config.rank_hosts = resolved.rank_hosts.data();
}

exchange_kind choose_kind(host::communicator_state& comm, const exchange_config& config) {
    host::exchange_question question;
    question.wanted = config.kind;
    // EPJIT_EXCHANGE chooses where there is a choice; a communicator of one kind leaves none.
    if (question.wanted == exchange_kind::automatic && comm.kind == exchange_kind::automatic) {
        question.wanted = comm.runtime->options.exchange;
    }
    question.communicator = comm.kind;
    if (comm.nccl != nullptr && comm.facts.rank_hosts.empty()) {
        host::agreed_facts agreed = host::agree_on_facts(comm.runtime, comm.nccl);
        comm.facts = std::move(agreed.facts);
        comm.host_nccl = std::move(agreed.host);
    }
    question.facts = comm.facts;
    question.facts.num_ranks = comm.num_ranks;
    question.facts.have_gpu = comm.context != nullptr;
    question.facts.real_ranks = comm.nccl != nullptr;
    question.largest = host::workload_of(config);
    const host::exchange_choice choice = host::choose_exchange(question);
    if (!choice.fallback.empty() && !comm.fallback_logged.exchange(true)) {
        comm.runtime->log().write(log_level::warn, choice.fallback);
    }
    return choice.exchange;
}

std::unique_ptr<host::backend> make_backend(exchange_state& state) {
    switch (state.kind) {
        case exchange_kind::host: return host::make_cpu_backend(state.config);
        case exchange_kind::loopback: return host::make_loopback_backend(*state.comm, state.config);
        default:
            host::compare_configs(*state.comm->nccl, state.config);
            return host::make_rank_backend(*state.comm, state.config);
    }
}

/// Nothing can be compiled, loaded, allocated or waited for while a stream is captured. Said by name, before the driver
/// refuses some call on the way and the capture is lost; a plan remade in static mode on a warm exchange asks nothing.
void refuse_in_capture(const exchange_state& state, const plan_options& options, bool reuses, stream_t stream) {
    const bool prepared = state.backend->prepared();
    if ((prepared && reuses && options.mode == mode::fixed) || state.comm->context == nullptr) {
        return;
    }
    const host::scoped_context current(*state.comm->context);
    host::capture_status status = host::capture_status::none;
    if (state.comm->context->api().stream_is_capturing(stream, &status) != host::cu_success ||
        status != host::capture_status::active) {
        return;
    }
    if (!prepared) {
        throw unsupported_error(
            fmt::format("make_plan in a capture: the kernels of exchange '{}' are not loaded", name(state.kind)),
            "call exchange::prepare() before the capture begins");
    }
    if (options.mode == mode::exact) {
        throw unsupported_error("make_plan in a capture: exact mode waits for the counts", "use mode::fixed");
    }
    throw unsupported_error("make_plan in a capture: memory for a new plan cannot be allocated",
                            "make the plan once before the capture begins, and pass it as `reuse`");
}

}  // namespace

lent_view host::backend::lend_rows(plan_state&, int, int) {
    throw unsupported_error("lend_rows: rows of this exchange never lie in memory of its own",
                            "read the output that dispatch was given");
}

plan::plan() noexcept = default;
plan::~plan() = default;
plan::plan(plan&&) noexcept = default;
plan& plan::operator=(plan&&) noexcept = default;
plan::plan(std::unique_ptr<host::plan_state> s) noexcept : state_(std::move(s)) {}

plan_view plan::view(int driven) const {
    if (state_ == nullptr) {
        throw config_error("view of an empty plan", "pass a plan from make_plan");
    }
    if (driven < 0 || static_cast<std::size_t>(driven) >= state_->ranks.size()) {
        throw config_error(fmt::format("view of driven rank {}, the plan has {}", driven, state_->ranks.size()),
                           "pass an index from 0 up, below communicator::num_driven()");
    }
    return state_->view(driven);
}

plan_status plan::status() const {
    if (state_ == nullptr) {
        throw config_error("status of an empty plan", "pass a plan from make_plan");
    }
    return state_->status();
}

exchange::exchange(communicator& comm, const exchange_config& config) {
    if (comm.state_ == nullptr) {
        throw config_error("the communicator was moved from", "pass the communicator that it was moved to");
    }
    auto state = std::make_unique<exchange_state>();
    state->comm = comm.state_;
    state->kind = choose_kind(*comm.state_, config);
    state->config = resolve_config(*comm.state_, config, state->kind);
    point_into_copies(state->config, state->rank_slots);
    state->config.knobs = host::settle_knobs(*comm.state_, state->config.config);
    state->backend = make_backend(*state);
    state->windows = host::lent_windows(*comm.state_, state->config, *state->backend);
    state_ = std::move(state);
}

exchange::~exchange() = default;
exchange::exchange(exchange&&) noexcept = default;
exchange& exchange::operator=(exchange&&) noexcept = default;

void exchange::prepare() {
    live(state_).backend->prepare();
}

void exchange::check() const {
    live(state_).backend->check();
}

std::int64_t exchange::worst_case_rows(int driven, const plan_options& options) const {
    const exchange_state& state = live(state_);
    if (driven < 0 || driven >= state.config.num_driven) {
        throw config_error(
            fmt::format("worst_case_rows of driven rank {}, there are {}", driven, state.config.num_driven),
            "pass an index from 0 up, below communicator::num_driven()");
    }
    host::validate_plan_options(state.config, options);
    return host::worst_case_rows(state.config, driven, options);
}

std::size_t exchange::workspace_bytes() const noexcept {
    return state_ != nullptr ? state_->backend->workspace_bytes() + state_->windows.bytes() : 0;
}

tensor_view exchange::window_output(int driven, int lane) const {
    return live(state_).windows.view(driven, lane);
}

plan exchange::make_plan(std::span<const plan_args> ranks, const plan_options& options, stream_t stream, plan reuse) {
    exchange_state& state = live(state_);
    host::validate_plan(state.config, ranks, options);
    refuse_in_capture(state, options, static_cast<bool>(reuse), stream);
    if (reuse) {
        const plan_state& old = owned(state, reuse, "make_plan(reuse)");
        for (const host::lane_state& lane : state.lanes) {
            if (lane.pending != pending_half::none && lane.plan == &old) {
                throw config_error(fmt::format("make_plan(reuse) between {}_send and {}_receive of that plan",
                                               name_of(lane.pending), name_of(lane.pending)),
                                   "receive first, or let make_plan take new memory");
            }
        }
    }
    std::unique_ptr<plan_state> made = state.backend->make_plan(ranks, options, stream, std::move(reuse.state_));
    made->owner = state.identity.get();
    made->identity = state.identity;
    made->options = options;
    made->ranks.assign(ranks.begin(), ranks.end());
    made->weights_dispatched = false;
    return plan(std::move(made));
}

void exchange::dispatch_send(const plan& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                             stream_t stream) {
    exchange_state& state = live(state_);
    plan_state& ps = owned(state, p, "dispatch_send");
    validate_dispatch(state, ps, ranks, options);
    expect_idle(state, options.lane, "dispatch_send");
    state.backend->dispatch_send(ps, ranks, options, stream);
    ps.weights_dispatched = host::brings_weights(ps, ranks);
    state.lanes[options.lane] = {pending_half::dispatch, &ps};
}

void exchange::dispatch_receive(const plan& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                                stream_t stream) {
    exchange_state& state = live(state_);
    plan_state& ps = owned(state, p, "dispatch_receive");
    validate_dispatch(state, ps, ranks, options);
    expect_sent(state, options.lane, pending_half::dispatch, ps);
    state.backend->dispatch_receive(ps, ranks, options, stream);
    state.lanes[options.lane] = {};
}

void exchange::dispatch(const plan& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                        stream_t stream) {
    exchange_state& state = live(state_);
    plan_state& ps = owned(state, p, "dispatch");
    validate_dispatch(state, ps, ranks, options);
    expect_idle(state, options.lane, "dispatch");
    state.backend->dispatch(ps, ranks, options, stream);
    ps.weights_dispatched = host::brings_weights(ps, ranks);
}

void exchange::combine_send(const plan& p, std::span<const combine_args> ranks, const combine_options& options,
                            stream_t stream) {
    exchange_state& state = live(state_);
    plan_state& ps = owned(state, p, "combine_send");
    host::validate_combine(state.config, ps, ranks, options);
    expect_idle(state, options.lane, "combine_send");
    state.backend->combine_send(ps, ranks, options, stream);
    state.lanes[options.lane] = {pending_half::combine, &ps};
}

void exchange::combine_receive(const plan& p, std::span<const combine_args> ranks, const combine_options& options,
                               stream_t stream) {
    exchange_state& state = live(state_);
    plan_state& ps = owned(state, p, "combine_receive");
    host::validate_combine(state.config, ps, ranks, options);
    expect_sent(state, options.lane, pending_half::combine, ps);
    state.backend->combine_receive(ps, ranks, options, stream);
    state.lanes[options.lane] = {};
}

void exchange::combine(const plan& p, std::span<const combine_args> ranks, const combine_options& options,
                       stream_t stream) {
    exchange_state& state = live(state_);
    plan_state& ps = owned(state, p, "combine");
    host::validate_combine(state.config, ps, ranks, options);
    expect_idle(state, options.lane, "combine");
    state.backend->combine(ps, ranks, options, stream);
}

void exchange::weight_gradients(const plan& p, std::span<const weight_gradient_args> ranks, stream_t stream) {
    exchange_state& state = live(state_);
    plan_state& ps = owned(state, p, "weight_gradients");
    host::validate_weight_gradients(state.config, ps, ranks);
    expect_idle(state, ps.options.lane, "weight_gradients");
    state.backend->weight_gradients(ps, ranks, stream);
}

lent_view exchange::lend_rows(const plan& p, int driven, int source) const {
    exchange_state& state = live(state_);
    plan_state& ps = owned(state, p, "lend_rows");
    if (driven < 0 || driven >= state.config.num_driven) {
        throw config_error(fmt::format("lend_rows of driven rank {}, there are {}", driven, state.config.num_driven),
                           "pass an index from 0 up, below communicator::num_driven()");
    }
    expect_idle(state, ps.options.lane, "lend_rows");
    return state.backend->lend_rows(ps, driven, source);
}

exchange_kind exchange::kind() const noexcept {
    return state_ != nullptr ? state_->kind : exchange_kind::automatic;
}

const exchange_config& exchange::config() const noexcept {
    return state_->config.config;
}

}  // namespace epjit
