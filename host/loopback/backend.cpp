// SPDX-License-Identifier: Apache-2.0
// R virtual ranks on one GPU: every operation is one grid that carries the rank index, so no kernel waits for another
// launch. The send half does all the work; the receive half only keeps the order of the stream.
#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/loopback/arguments.hpp"
#include "host/loopback/kernels.hpp"
#include "host/loopback/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

namespace epjit::host {
namespace {

class loopback_backend final : public backend {
   public:
    loopback_backend(communicator_state& comm, const resolved_config& config) : comm_(comm), config_(config) {
        tables_ = device_tables(comm, config);
        for (std::int32_t lane = 0; lane < config.config.lanes; ++lane) {
            lanes_[lane] = lane_order(comm.context);
        }
    }

    void prepare() override { kernels(); }
    [[nodiscard]] std::size_t workspace_bytes() const noexcept override { return tables_.bytes; }

    [[nodiscard]] bool prepared() const noexcept override { return kernels_.has_value(); }
    std::unique_ptr<plan_state> make_plan(std::span<const plan_args> ranks, const plan_options& options,
                                          stream_t stream, std::unique_ptr<plan_state> reuse) override;
    void dispatch_send(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                       stream_t stream) override;
    void dispatch_receive(plan_state& p, std::span<const dispatch_args>, const dispatch_options&,
                          stream_t stream) override {
        const scoped_context current(*comm_.context);
        order_on(p.options.lane, stream);
    }
    void combine_send(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                      stream_t stream) override;
    void combine_receive(plan_state& p, std::span<const combine_args>, const combine_options&,
                         stream_t stream) override {
        const scoped_context current(*comm_.context);
        order_on(p.options.lane, stream);
    }
    void weight_gradients(plan_state& p, std::span<const weight_gradient_args> ranks, stream_t stream) override;

   private:
    loopback_kernels& kernels() {
        if (!kernels_) {
            kernels_.emplace(comm_, config_);
        }
        return *kernels_;
    }
    void order_on(std::int32_t lane, stream_t stream) { lanes_[lane].on(*comm_.context, stream); }
    std::unique_ptr<loopback_plan> plan_with_memory(const plan_options& options, std::unique_ptr<plan_state> reuse,
                                                    stream_t stream);
    void wait_for_counts(loopback_plan& plan, stream_t stream);
    /// Throws what the device has reported about a plan, and refuses work after a time-out.
    void check_reports(const loopback_plan& plan);
    [[nodiscard]] std::chrono::milliseconds wait_limit() const noexcept {
        const settings& o = comm_.runtime->options;
        return first_step_done_ ? o.wait_timeout : o.first_wait_timeout;
    }

    communicator_state& comm_;
    const resolved_config& config_;
    device_tables tables_;
    std::optional<loopback_kernels> kernels_;
    std::array<lane_order, 2> lanes_;
    std::uint32_t sequence_ = 0;
    bool first_step_done_ = false;
    bool warned_ = false;
    std::string failure_;  ///< why the exchange refuses work; empty: it does not
};

std::unique_ptr<loopback_plan> loopback_backend::plan_with_memory(const plan_options& options,
                                                                  std::unique_ptr<plan_state> reuse, stream_t stream) {
    const std::int32_t bound = options.token_bound != 0 ? options.token_bound : config_.config.max_tokens_per_rank;
    const std::int64_t tokens = std::int64_t{config_.num_ranks} * bound;
    if (reuse != nullptr) {
        std::unique_ptr<loopback_plan> old(static_cast<loopback_plan*>(reuse.release()));
        // Work of another lane is not ordered before this one, so its memory cannot be written yet.
        if (old->token_capacity >= tokens && old->options.lane == options.lane) {
            return old;
        }
    }
    loopback_kernels& k = kernels();
    const std::int64_t blocks = templates::plan_blocks(static_cast<std::int32_t>(tokens), k.plan.max_blocks);
    const plan_offsets offsets = lay_out_plan(config_, tokens, blocks, k.plan_keys);
    auto plan = std::make_unique<loopback_plan>();
    plan->device = workspace(comm_, config_.config.memory, offsets.total);
    plan->pinned =
        pinned_buffer(comm_.context, loopback_plan::counts_offset +
                                         static_cast<std::size_t>(config_.placement.num_slots + config_.num_ranks) * 4);
    comm_.runtime->allocations.fetch_add(1, std::memory_order_relaxed);
    std::byte* pinned = static_cast<std::byte*>(plan->pinned.device_data());
    plan->memory = place_plan(plan->device.data(), offsets, pinned, pinned + loopback_plan::counts_offset);
    plan->token_capacity = tokens;
    plan->rank_first = config_.placement.rank_first;
    plan->first_driven = config_.first_driven;
    plan->ranks.reserve(config_.num_driven);
    fill_bytes(comm_.context, plan->device.data(), 0, offsets.zeroed, stream);
    return plan;
}

std::unique_ptr<plan_state> loopback_backend::make_plan(std::span<const plan_args> ranks, const plan_options& options,
                                                        stream_t stream, std::unique_ptr<plan_state> reuse) {
    if (reuse != nullptr) {
        check_reports(static_cast<const loopback_plan&>(*reuse));
    } else if (!failure_.empty()) {
        throw timeout_error(failure_, "make a new exchange");
    }
    loopback_kernels& k = kernels();
    const scoped_context current(*comm_.context);
    order_on(options.lane, stream);
    std::unique_ptr<loopback_plan> plan = plan_with_memory(options, std::move(reuse), stream);
    plan->options = options;
    plan->ranks.assign(ranks.begin(), ranks.end());
    plan->exact = options.mode == mode::exact;
    sequence_ = sequence_ + 1 != 0 ? sequence_ + 1 : 1;
    plan->sequence = sequence_;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
        plan->rows[r] = ranks[r].capacity;
        plan->known_rows[r] = -1;
    }
    plan_kernel_args args;
    const auto limit = std::chrono::duration_cast<std::chrono::nanoseconds>(wait_limit()).count();
    fill_plan_args(args, config_, tables_, plan->memory, ranks, options,
                   {plan->sequence, static_cast<std::uint64_t>(limit)});
    launch(comm_, k.plan, templates::plan_blocks(args.num_tokens, k.plan.max_blocks), &args, stream,
           launch_mode::cooperative);
    if (plan->exact) {
        wait_for_counts(*plan, stream);
    }
    return plan;
}

void loopback_backend::wait_for_counts(loopback_plan& plan, stream_t stream) {
    comm_.runtime->host_waits.fetch_add(1, std::memory_order_relaxed);
    const driver_api& api = comm_.context->api();
    const std::chrono::milliseconds limit = wait_limit();
    const poll_outcome outcome =
        poll_ready(&plan.host_status()->ready, plan.sequence, limit, [&] { return plan_kernel_runs(api, stream); });
    if (outcome != poll_outcome::ready) {
        failure_ =
            fmt::format("plan: waited {} ms for the counts: expected sequence {}, seen {}{}", limit.count(),
                        plan.sequence, plan.host_status()->ready,
                        outcome == poll_outcome::work_ended ? " (the stream is done)" : " (the stream still works)");
        throw timeout_error(failure_,
                            "look for earlier work on the stream that does not end, or raise EPJIT_WAIT_TIMEOUT_MS");
    }
    first_step_done_ = true;
    const std::int32_t* rows = plan.host_counts() + config_.placement.num_slots;
    for (std::int32_t r = 0; r < config_.num_driven; ++r) {
        plan.known_rows[r] = rows[config_.first_driven + r];
        if (plan.options.layout != layout::masked) {
            plan.rows[r] = rows[config_.first_driven + r];
        }
    }
    check_reports(plan);
}

void loopback_backend::check_reports(const loopback_plan& plan) {
    if (!failure_.empty()) {
        throw timeout_error(failure_, "make a new exchange");
    }
    const plan_report report = plan.report();
    if (!report.complete) {
        return;
    }
    first_step_done_ = true;
    if (report.timed_out) {
        failure_ =
            fmt::format("plan: the blocks of plan_kernel (sequence {}) did not meet within the limit", plan.sequence);
        throw timeout_error(failure_,
                            "check that no other work keeps the GPU's SMs for ever, then make a new exchange");
    }
    report_status(*comm_.runtime, plan.options, report.status, warned_);
}

void loopback_backend::dispatch_send(plan_state& p, std::span<const dispatch_args> ranks,
                                     const dispatch_options& options, stream_t stream) {
    const loopback_plan& plan = static_cast<const loopback_plan&>(p);
    check_reports(plan);
    loopback_kernels& k = kernels();
    scatter_kernel_args args;
    fill_scatter_args(args, config_, tables_, plan.memory, plan, plan.rows, ranks, options);
    // Beside the tokens, every slot's padding and, in static mode, what lies beyond the data is filled.
    std::int64_t rows_to_fill = config_.placement.num_slots;
    if (!plan.exact) {
        for (std::size_t r = 0; r < ranks.size(); ++r) {
            rows_to_fill += plan.rows[r];
        }
    }
    const scoped_context current(*comm_.context);
    order_on(options.lane, stream);
    launch_scatter(comm_, k.scatter, args, args.num_tokens, rows_to_fill, stream);
}

void loopback_backend::combine_send(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                                    stream_t stream) {
    const loopback_plan& plan = static_cast<const loopback_plan&>(p);
    check_reports(plan);
    loopback_kernels& k = kernels();
    gather_kernel_args args;
    fill_combine_args(args, config_, plan.memory, plan, ranks, options);
    const scoped_context current(*comm_.context);
    order_on(options.lane, stream);
    if (args.num_tokens != 0) {
        launch(comm_, k.gather, args.num_tokens, &args, stream);
    }
}

void loopback_backend::weight_gradients(plan_state& p, std::span<const weight_gradient_args> ranks, stream_t stream) {
    const loopback_plan& plan = static_cast<const loopback_plan&>(p);
    check_reports(plan);
    loopback_kernels& k = kernels();
    gather_kernel_args args;
    fill_gradient_args(args, config_, plan.memory, plan, ranks);
    const scoped_context current(*comm_.context);
    order_on(plan.options.lane, stream);
    if (args.num_tokens != 0) {
        const launchable& kernel = k.weight_gradient(comm_, config_);
        const std::int64_t warps = kernel.threads / 32;
        launch(comm_, kernel, (args.num_tokens + warps - 1) / warps, &args, stream);
    }
}

}  // namespace

std::unique_ptr<backend> make_loopback_backend(communicator_state& comm, const resolved_config& config) {
    return std::make_unique<loopback_backend>(comm, config);
}

}  // namespace epjit::host
