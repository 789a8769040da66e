// SPDX-License-Identifier: Apache-2.0
// What an exchange must provide behind the public front. The front (exchange.cpp) has validated shapes,
// types, counts of arguments, bounds and that the plan belongs to this exchange; a backend only does the
// work.
#pragma once

#include "epjit/exchange.hpp"
#include "epjit/jit/profile.hpp"
#include "epjit/lent_view.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace epjit::host {

/// Placement with its tables made explicit. Slots are numbered in (rank, local slot) order.
struct placement_tables {
    std::int32_t num_slots = 0;
    std::vector<std::int32_t> slot_expert;    ///< [S]
    std::vector<std::uint16_t> slot_rank;     ///< [S]
    std::vector<std::int32_t> rank_first;     ///< [R+1]
    std::vector<std::int32_t> expert_first;   ///< [E+1]
    std::vector<std::uint16_t> expert_slots;  ///< [S] ascending per expert
};

/// @throws config_error: a slot's expert out of range, sums that do not match, an expert without a slot.
placement_tables resolve(const placement& p, std::int32_t num_experts, std::int32_t num_ranks);

/// An exchange's config with the caller's tables copied.
struct resolved_config {
    exchange_config config;  ///< its pointers point into the vectors below
    std::int32_t num_ranks = 0;
    std::int32_t num_driven = 0;
    std::int32_t first_driven = 0;
    placement_tables placement;
    std::vector<std::int32_t> rank_hosts;  ///< [R]
    jit::tuned_knobs knobs;                ///< equal on every rank
    std::vector<std::uint8_t> host_order;  ///< [R] number of each rank's host, counted from 0 in the hosts' order
};

/// What a plan keeps besides its backend's own part.
struct plan_state {
    virtual ~plan_state() = default;
    const void* owner = nullptr;           ///< names the exchange that made it
    std::shared_ptr<const void> identity;  ///< keeps that name from being used again
    plan_options options;
    std::vector<plan_args> ranks;     ///< as given; routing pointers are not used after make_plan
    bool weights_dispatched = false;  ///< the last dispatch was given weights of all driven ranks
    [[nodiscard]] virtual plan_view view(int driven) const = 0;
    [[nodiscard]] virtual plan_status status() const = 0;
};

class backend {
   public:
    virtual ~backend() = default;
    virtual void prepare() = 0;
    /// Everything that a call may launch is loaded.
    [[nodiscard]] virtual bool prepared() const noexcept { return true; }
    /// @throws what the next call would throw of work that is done.
    virtual void check() const {}
    [[nodiscard]] virtual std::size_t workspace_bytes() const noexcept = 0;
    virtual std::unique_ptr<plan_state> make_plan(std::span<const plan_args> ranks, const plan_options& options,
                                                  stream_t stream, std::unique_ptr<plan_state> reuse) = 0;
    virtual void dispatch_send(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                               stream_t stream) = 0;
    virtual void dispatch_receive(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                                  stream_t stream) = 0;
    /// Both halves, where one launch can do more than two.
    virtual void dispatch(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                          stream_t stream) {
        dispatch_send(p, ranks, options, stream);
        dispatch_receive(p, ranks, options, stream);
    }
    virtual void combine(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                         stream_t stream) {
        combine_send(p, ranks, options, stream);
        combine_receive(p, ranks, options, stream);
    }
    virtual void combine_send(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                              stream_t stream) = 0;
    virtual void combine_receive(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                                 stream_t stream) = 0;
    virtual void weight_gradients(plan_state& p, std::span<const weight_gradient_args> ranks, stream_t stream) = 0;
    /// Memory of window_layout's size that the peers' kernels can write, for outputs; null: it has none.
    [[nodiscard]] virtual void* lent_window(int /*driven*/, int /*lane*/) noexcept { return nullptr; }
    /// @throws unsupported_error where rows do not arrive in memory of the exchange's.
    virtual lent_view lend_rows(plan_state& p, int driven, int source);
};

struct runtime_state;
struct communicator_state;

/// One per room of host/: cpu/, loopback/.
std::unique_ptr<backend> make_cpu_backend(const resolved_config& config);
std::unique_ptr<backend> make_loopback_backend(communicator_state& comm, const resolved_config& config);
/// Bytes of an lsa exchange's window on each rank, nearly all of its workspace. Of `config` the shape, the types, the
/// lanes, the slots and the ranks count.
std::int64_t lsa_window_bytes(const resolved_config& config);
/// Launches of its whole calls with up to `tokens` tokens a rank, where rows are staged on their way.
std::int32_t lsa_launches(const resolved_config& config, std::int32_t tokens);
/// Where its plans of dense ids come from that are bounded by max_tokens_per_rank; `wanted` decides unless automatic.
plan_source lsa_plan_source(const resolved_config& config, plan_source wanted);

}  // namespace epjit::host
