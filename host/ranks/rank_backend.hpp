// SPDX-License-Identifier: Apache-2.0
// One real rank: its tokens are sent as lines to the ranks that hold their experts, lines that arrive become rows; sums
// of rows go back as lines and are summed by the tokens' owners. Derive from it to send rows another way.
#pragma once

#include "epjit/lent_view.hpp"
#include "host/dispatcher/dispatcher.hpp"
#include "host/exchange/launch.hpp"
#include "host/ranks/arguments.hpp"
#include "host/ranks/backend.hpp"
#include "host/ranks/kernels.hpp"
#include "host/ranks/plan.hpp"

#include <array>
#include <chrono>
#include <memory>
#include <optional>

namespace epjit::host {

class rank_backend : public backend {
   public:
    rank_backend(communicator_state& comm, const resolved_config& config, std::unique_ptr<transport> way,
                 const travel_shape& shape);
    ~rank_backend() override;

    void prepare() override { kernels(); }
    [[nodiscard]] bool prepared() const noexcept override { return kernels_.has_value(); }
    void check() const override { way_->check(); }
    [[nodiscard]] std::size_t workspace_bytes() const noexcept override {
        return tables_.bytes + way_->workspace_bytes() + window_lines_.bytes();
    }
    std::unique_ptr<plan_state> make_plan(std::span<const plan_args> ranks, const plan_options& options,
                                          stream_t stream, std::unique_ptr<plan_state> reuse) final;
    void dispatch_send(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                       stream_t stream) final;
    void dispatch_receive(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                          stream_t stream) final;
    void dispatch(plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                  stream_t stream) final;
    void combine(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                 stream_t stream) final;
    void combine_send(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                      stream_t stream) final;
    void combine_receive(plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                         stream_t stream) final;
    void weight_gradients(plan_state& p, std::span<const weight_gradient_args> ranks, stream_t stream) final;
    lent_view lend_rows(plan_state& p, int driven, int source) final;
    [[nodiscard]] void* lent_window(int, int lane) noexcept final { return way_->window(lane, config_.first_driven); }

   protected:
    // The steps in which exchanges differ. Each is called with the context current and the lane's order kept.
    /// After the plan's kernels; exact mode: the host knows the counts, and every rank comes here or none.
    virtual void share_plan(rank_plan&, stream_t) {}
    /// From the caller's input to where the ranks that hold the experts expand it.
    virtual void send_rows(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                           const token_window& window, stream_t stream);
    virtual void await_rows(const rank_plan& plan, stream_t stream);
    /// They have been expanded.
    virtual void rows_read(const rank_plan& plan, stream_t stream) {
        way_->done(plan.options.lane, templates::lane_op::dispatch, travel_area::rows, stream);
    }
    /// Where rows that came from `source` lie, in memory of this rank.
    [[nodiscard]] virtual std::uint8_t* arrived(travel_area area, std::int32_t lane,
                                                std::int32_t source) const noexcept {
        return way_->in(area, lane, source);
    }
    /// This rank's partial sums on their way to the tokens' owners, and what came back, summed.
    virtual void send_sums(const rank_plan& plan, const combine_args& ranks, reduction order,
                           const token_window& window, stream_t stream);
    virtual void finish_sums(const rank_plan& plan, const combine_args& ranks, reduction order,
                             const token_window& window, stream_t stream);
    /// Other ranks' entries that a plan keeps.
    [[nodiscard]] virtual std::int32_t relays() const noexcept { return 0; }

    rank_kernels& kernels();
    [[nodiscard]] rank_setting setting(const rank_plan& plan, const token_window& window = {}) const noexcept {
        return {config_, tables_, *way_, shape_, &way_->link(plan.options.lane).control->failed, way_->whole_tensors(),
                window};
    }
    [[nodiscard]] line_traffic traffic(const rank_plan& plan) const noexcept {
        return plan.exact ? line_traffic{plan.lines_sent(), plan.lines_received()} : line_traffic{};
    }
    [[nodiscard]] std::int32_t bound(const plan_options& options) const noexcept {
        return options.token_bound != 0 ? options.token_bound : config_.config.max_tokens_per_rank;
    }
    [[nodiscard]] std::int32_t bound(const rank_plan& plan) const noexcept { return bound(plan.options); }
    /// Of the launches of a plan's calls.
    [[nodiscard]] const jit::knobs& knobs(const rank_plan& plan) const noexcept {
        return config_.knobs.launches(plan.options.layout, bound(plan));
    }
    /// Rows cross as they came where they are quantised row by row, each with its weight, and as whole tensors.
    [[nodiscard]] bool crosses_raw(const dispatch_options& options) const noexcept {
        return config_.config.input_type != config_.config.dispatch_type &&
               (options.weigh_input || way_->whole_tensors());
    }
    [[nodiscard]] bool quantises(const dispatch_options& options) const noexcept {
        return config_.config.input_type != config_.config.dispatch_type && !crosses_raw(options);
    }
    [[nodiscard]] bool scales_cross(const dispatch_options& options) const noexcept {
        return config_.config.scales != scale_type::none && !crosses_raw(options);
    }
    void send_weights(const rank_plan& plan, const float* weights, travel_area area, stream_t stream);

    communicator_state& comm_;
    const resolved_config& config_;
    device_tables tables_;
    const travel_shape shape_;
    std::unique_ptr<transport> way_;

   private:
    [[noreturn]] void refuse_tokens(const rank_plan& plan, std::int32_t rank, std::int32_t tokens) const;
    std::unique_ptr<rank_plan> plan_with_memory(const plan_options& options, std::unique_ptr<plan_state> reuse,
                                                stream_t stream);
    void fill_plan_head(templates::plan_head& head, templates::plan_rank& own, const rank_plan& plan,
                        const plan_args& ranks) const;
    /// Says `what` the plan's kernel tells; no dispatch follows where two lanes share the GPU.
    void let_follow(rank_plan& plan, rank_plan::told what) const noexcept {
        plan.tells = shares_gpu() ? rank_plan::told::nothing : what;
    }
    void launch_plan(rank_plan& plan, const plan_args& ranks, stream_t stream);
    void launch_gathered_plan(rank_plan& plan, const plan_args& ranks, stream_t stream);
    [[nodiscard]] bool gathers(const plan_options& options);
    void wait_for_counts(rank_plan& plan, stream_t stream);
    void refuse_early(const rank_plan& plan) const;
    void report(const rank_plan& plan);
    /// Weights of a combine go to the holders of the rows whether or not this rank has any: one without tokens cannot
    /// know what the others have. Those without weights send ones.
    [[nodiscard]] static bool weights_travel(const rank_plan& plan) noexcept {
        return plan.options.layout != layout::flat;
    }
    /// Two lanes: a call of either must find room on the GPU while the peers of the other's are not there yet.
    [[nodiscard]] bool shares_gpu() const noexcept { return config_.config.lanes > 1; }
    /// Of kernels that wait for peers. One that is launched before the end of the kernel in front takes SMs long before
    /// it works.
    [[nodiscard]] launch_mode overlapping() const noexcept {
        return shares_gpu() ? launch_mode::after : launch_mode::overlapping;
    }
    /// The blocks that are resident are all that a call may have.
    [[nodiscard]] bool bounded() const noexcept { return config_.config.num_sms > 0 || shares_gpu(); }
    /// Of `blocks`, those that a budget lets send where others may be more.
    [[nodiscard]] std::int32_t sending_blocks(std::int32_t blocks) const noexcept {
        const exchange_config& c = config_.config;
        return c.expansion_sms > c.num_sms ? std::min(blocks, c.num_sms) : blocks;
    }
    void combine_rows(const rank_plan& plan, const combine_args& ranks, stream_t stream);
    template <std::int32_t NumRanks>
    void launch_dispatch(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                         bool follows, stream_t stream);
    template <std::int32_t NumRanks>
    void launch_direct_dispatch(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                                stream_t stream);
    /// The way of a plan's dispatches into lent outputs; equal on every rank.
    [[nodiscard]] bool goes_direct(const rank_plan& plan) const;
    /// Exact mode: the rows of every rank fit the outputs that are lent. @throws config_error, on every rank or none.
    void check_window_rows(const rank_plan& plan) const;
    template <std::int32_t NumRanks>
    void launch_combine(const rank_plan& plan, const combine_args& ranks, const combine_options& options,
                        stream_t stream);

    // Where a call's rows do not all fit the memory that they travel through.
    /// Tokens that the largest rank of a plan's calls may have, as far as every rank knows.
    [[nodiscard]] std::int32_t most_tokens(const rank_plan& plan) const noexcept;
    /// Tokens of a window of a plan's calls, a multiple of `unit` where that leaves any; 0: all at once.
    [[nodiscard]] std::int32_t window_tokens(const rank_plan& plan, std::int32_t unit) const noexcept;
    /// Calls `work` with each window, one or more.
    template <class Work>
    void by_windows(const rank_plan& plan, std::int32_t unit, const Work& work) const {
        const std::int32_t tokens = window_tokens(plan, unit);
        if (tokens == 0) {
            work(token_window{});
            return;
        }
        for (std::int32_t first = 0; first < most_tokens(plan); first += tokens) {
            work(token_window{first, tokens});
        }
    }
    [[nodiscard]] bool is_last(const rank_plan& plan, const token_window& window) const noexcept {
        return !window.narrows() || window.first + window.tokens >= most_tokens(plan);
    }
    /// @throws config_error where the call takes more than one window.
    void require_one_window(const rank_plan& plan, const char* call) const;
    /// The setting of launches that take the list of lines as it is given: what it is narrowed to is found first.
    [[nodiscard]] rank_setting narrowed(const rank_plan& plan, const token_window& window, stream_t stream);
    void receive_rows(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                      const token_window& window, stream_t stream);
    /// Whole calls in more than one launch.
    void dispatch_by_steps(const rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options,
                           stream_t stream);
    void combine_by_steps(const rank_plan& plan, const combine_args& ranks, const combine_options& options,
                          stream_t stream);
    void begin_combine(const rank_plan& plan, const combine_args& ranks, std::int32_t lane, stream_t stream);
    void end_sends(const rank_plan& plan, std::int32_t lane, stream_t stream);
    void send_gradients(const rank_plan& plan, const weight_gradient_args& ranks, bool by_rows,
                        const token_window& window, stream_t stream);
    /// Around a call's launches, the context current: behind what the lane and other exchanges have enqueued.
    [[nodiscard]] ordered_call in_order(std::int32_t lane, stream_t stream) {
        return {order_[static_cast<std::size_t>(lane)], comm_.order, this, lane, comm_.context, stream};
    }
    /// The same where a dispatch or combine begins: nothing has failed, and the lane's memory is the call's.
    /// @throws what the plan or the exchange has to say.
    [[nodiscard]] ordered_call begin_call(const rank_plan& plan, std::int32_t lane, stream_t stream);
    [[nodiscard]] exchange_path path_of(const plan_options& options) const noexcept {
        return choose_path(config_.config.ll_max_tokens_per_rank, config_.config.max_tokens_per_rank,
                           options.token_bound);
    }
    /// Calls bounded by ll_max_tokens_per_rank; equal on every rank, like all that decides. Each part of their grids
    /// needs a block.
    [[nodiscard]] bool few_tokens(const rank_plan& plan) {
        return way_->peers_written() && kernels().ll_dispatch.max_blocks >= 3 && kernels().ll_combine.max_blocks >= 3 &&
               path_of(plan.options) == exchange_path::low_latency;
    }
    void launch_ll_dispatch(rank_plan& plan, const dispatch_args& ranks, const dispatch_options& options, bool follows,
                            stream_t stream);
    void launch_ll_combine(const rank_plan& plan, const combine_args& ranks, const combine_options& options,
                           stream_t stream);
    /// How rows came: only those that were staged can be lent.
    enum class travelled : std::uint8_t { staged, packets, straight };
    /// Whether a dispatch of the plan begins before the plan's kernel has ended. Its tensors must be ready, and that
    /// kernel tell `what` is sent by, be the last that takes steps of the lane, and be replayed whenever the dispatch
    /// is.
    [[nodiscard]] bool may_follow(const rank_plan& plan, const dispatch_options& options, rank_plan::told what,
                                  stream_t stream) const noexcept {
        const made_plan& last = planned_[static_cast<std::size_t>(options.lane)];
        return options.follows_plan && knobs(plan).dispatch_follows == 2 && plan.tells == what &&
               last.sequence == plan.sequence && last.capture &&
               last.capture == capture_of(comm_.context->api(), stream);
    }
    // What a lane's last dispatch left may be lent until the memory is used again.
    void take_back(std::int32_t lane) noexcept;
    void leave_rows(const rank_plan& plan, dtype type, bool own, travelled how = travelled::staged) noexcept;
    [[nodiscard]] std::chrono::milliseconds wait_limit() const noexcept {
        const settings& o = comm_.runtime->options;
        return first_step_done_ ? o.wait_timeout : o.first_wait_timeout;
    }

    /// What a lane's last dispatch left.
    struct lane_rows {
        lease_counter lease;
        std::uint32_t sequence = 0;  ///< of its plan; 0: another call has used the memory since
        dtype type = dtype::bf16;
        bool own = false;  ///< this rank's rows too
        travelled how = travelled::staged;
    };

    std::optional<rank_kernels> kernels_;
    device_buffer window_lines_;  ///< [lanes, window_numbers(R)], empty where no call takes more than one window
    std::array<lane_order, templates::max_lanes> order_;
    std::array<lane_rows, templates::max_lanes> rows_;
    /// The plan whose making was a lane's last call, where a dispatch may follow it.
    struct made_plan {
        std::uint32_t sequence = 0;            ///< 0: none, or another call came after it
        std::optional<std::uint64_t> capture;  ///< see capture_of()
    };
    std::array<made_plan, templates::max_lanes> planned_;
    std::uint32_t sequence_ = 0;
    bool first_step_done_ = false;
    bool warned_ = false;
};

}  // namespace epjit::host
