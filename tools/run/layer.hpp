// SPDX-License-Identifier: Apache-2.0
// One MoE layer through the public API: plan, dispatch, stand-in experts on the host, combine, weight gradients. Used
// by `run` and by the property tests of every exchange. Works on the ranks that the exchange's communicator drives: all
// of them, or a real rank's own.
#pragma once

#include "epjit/exchange.hpp"
#include "tools/reference/problem.hpp"
#include "tools/run/memory.hpp"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace epjit::tools {

class resident_experts;

struct layer_options {
    std::int32_t iters = 1;  ///< each of plan, dispatch and combine is issued this often, without a wait between
    bool halves = false;     ///< send and receive halves instead of whole calls
    bool graph = false;      ///< one eager layer, then plan, dispatch and combine captured and replayed `iters` times
    std::int32_t lane = 0;
    std::int32_t token_bound = 0;  ///< plan_options::token_bound
    plan_source source = plan_source::automatic;
    std::int32_t misalignment = 0;  ///< elements by which rows start behind an aligned address
    /// Rows go into the exchange's window_output, which no other layer of the lane may use meanwhile. The problem's
    /// dispatch_stride is H.
    bool into_window = false;
    /// dispatch_options::follows_plan, in a graph: there each dispatch has its plan in front.
    bool follows_plan = false;
    /// The same elsewhere: each whole dispatch comes right behind its plan, which is made once more.
    bool plan_again = false;
    /// combine_options::weights_dispatched, where combine has weights.
    bool weights_dispatched = false;
    /// Combine is given what dispatch made, without a visit to the host: for experts that return their input (scale 1,
    /// bias 0), one dtype and stride, not on flat.
    bool experts_in_place = false;
    /// Where the experts' parameters lie; null: they are taken from the problem.
    const resident_experts* experts = nullptr;
    const std::atomic<bool>* cancel = nullptr;
    /// Called with the plan before it is used, to spoil it; tests only.
    std::function<void(plan&)> after_plan;
    /// Called with what dispatch gave and before the experts run, to spoil it; tests only.
    std::function<void(reference::observation&)> after_dispatch;
};

struct layer_times {
    std::vector<double> plan_us, dispatch_us, combine_us;  ///< of each iteration; with a graph: of the last replay
};

/// The exchange that a problem wants. Its tables point into `p`.
exchange_config config_of(const reference::problem& p, exchange_kind kind, std::int32_t lanes = 1);
plan_options plan_options_of(const reference::problem& p, std::int32_t lane = 0);
/// exchange_config::window_rows that the problem's largest output needs, and some that nobody may touch.
std::int32_t window_rows_for(const reference::problem& p);

/// The steps of one layer, for callers that have several at work; run_problem() takes them in order. Outputs are
/// poisoned first and have guard bytes behind them. All but the constructor throw what the calls throw, and error
/// (cancelled).
class layer {
   public:
    /// `ex`, `memory` and `p` must live as long; the exchange was made with config_of(p), or with a larger token bound.
    layer(exchange& ex, memory_space& memory, const reference::problem& p, layer_options options = {});
    ~layer();
    layer(layer&&) noexcept;
    layer& operator=(layer&&) noexcept;

    void upload();  ///< the inputs; first
    /// Puts the inputs of another problem, which differs in nothing but their contents, in the same places.
    void upload_again(const reference::problem& other);
    void make_plan();  ///< second; makes room for the outputs and poisons them
    void dispatch();   ///< or its halves
    void dispatch_send();
    void dispatch_receive();
    void run_experts();  ///< waits for what was dispatched and gives the experts' rows back to the exchange
    void combine();      ///< or its halves
    void combine_send();
    void combine_receive();
    void weight_gradients();  ///< nothing unless the problem asks for them
    /// After one layer: captures plan, dispatch and combine in one graph, poisons the outputs and replays it.
    /// @throws unsupported_error in host memory.
    void replay_graph(std::int32_t replays);
    /// The parts of replay_graph(); `layers` of them one after another in one graph.
    void record_graph(std::int32_t layers);
    void replay();
    /// Waits and fetches everything. The layer may be used again from make_plan() on. @throws error (internal) when a
    /// guard was overwritten.
    reference::observation finish();
    /// After finish().
    void add_times(layer_times& times);

   private:
    struct state;
    std::unique_ptr<state> state_;
};

/// Runs `p` once.
reference::observation run_problem(exchange& ex, memory_space& memory, const reference::problem& p,
                                   const layer_options& options = {}, layer_times* times = nullptr);

}  // namespace epjit::tools
