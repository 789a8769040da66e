// SPDX-License-Identifier: Apache-2.0
#include "host/exchange/backend.hpp"

#include "epjit/error.hpp"
#include "host/cpu/exchange.hpp"
#include "host/cpu/parallel.hpp"
#include "host/cpu/plan.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::host {
namespace cpu {
namespace {

/// Every rank's part is done by the calling thread, with helpers where rows are many; calls are complete when
/// they return, so the first half of a pair does the work and the second has nothing left.
class cpu_backend final : public backend {
   public:
    explicit cpu_backend(const resolved_config& config) : config_(config) {
        if (config_.rank_hosts.empty()) {
            config_.rank_hosts.assign(static_cast<std::size_t>(config_.num_ranks), 0);
        }
        const auto floats =
            static_cast<std::size_t>(3 * num_workers()) * static_cast<std::size_t>(config.config.hidden);
        const auto lanes = static_cast<std::size_t>(std::max(config.config.lanes, 1));
        scratch_.reserve(config.config.memory, lanes * floats * sizeof(float));
        lane_floats_ = floats;
    }

    void prepare() override {}

    [[nodiscard]] std::size_t workspace_bytes() const noexcept override { return scratch_.size(); }

    std::unique_ptr<plan_state> make_plan(std::span<const plan_args> ranks, const plan_options& options, stream_t,
                                          std::unique_ptr<plan_state> reuse) override {
        std::unique_ptr<cpu_plan> p;
        if (dynamic_cast<cpu_plan*>(reuse.get()) != nullptr) {
            p.reset(static_cast<cpu_plan*>(reuse.release()));
        } else {
            p = std::make_unique<cpu_plan>();
        }
        p->options = options;
        p->ranks.assign(ranks.begin(), ranks.end());
        build_plan(*p, config_);
        return p;
    }

    void dispatch_send(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                       stream_t) override {
        const cpu_plan& plan = checked(p, "dispatch");
        if (options.weigh_input && config_.config.input_type == dtype::fp8_e4m3) {
            throw config_error("dispatch: weigh_input with fp8 input rows, which pass through untouched",
                               "weigh the rows before they are quantised, or in combine");
        }
        dispatch_rows(plan, config_, ranks, options, scratch_of(options.lane));
    }
    void dispatch_receive(plan_state&, std::span<const dispatch_args>, const dispatch_options&, stream_t) override {}

    void combine_send(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                      stream_t) override {
        const cpu_plan& plan = checked(p, "combine");
        combine_rows(plan, config_, ranks, options, scratch_of(options.lane));
    }
    void combine_receive(plan_state&, std::span<const combine_args>, const combine_options&, stream_t) override {}

    void weight_gradients(plan_state& p, std::span<const weight_gradient_args> ranks, stream_t) override {
        collect_weight_gradients(checked(p, "weight_gradients"), config_, ranks);
    }

   private:
    /// The first host call after a plan whose rows did not fit reports it, when the caller asked for that.
    static const cpu_plan& checked(const plan_state& p, const char* operation) {
        const auto& plan = static_cast<const cpu_plan&>(p);
        if (plan.options.overflow == overflow::fail && plan.counted.dropped_rows > 0) {
            throw capacity_error(
                fmt::format("{}: {} rows of its plan are over the capacity", operation, plan.counted.dropped_rows),
                "give a larger capacity (worst_case_rows() has the bound), or choose overflow::drop");
        }
        return plan;
    }

    [[nodiscard]] scratch_rows scratch_of(int lane) const noexcept {
        return {
            {reinterpret_cast<float*>(scratch_.data()) + lane_floats_ * static_cast<std::size_t>(lane), lane_floats_},
            config_.config.hidden};
    }

    resolved_config config_;
    memory_block scratch_;
    std::size_t lane_floats_ = 0;
};

}  // namespace
}  // namespace cpu

std::unique_ptr<backend> make_cpu_backend(const resolved_config& config) {
    return std::make_unique<cpu::cpu_backend>(config);
}

}  // namespace epjit::host
