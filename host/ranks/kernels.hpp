// SPDX-License-Identifier: Apache-2.0
// The kernels of an exchange between real ranks, loaded, with what the launches need to know.
#pragma once

#include "host/exchange/backend.hpp"
#include "host/exchange/launch.hpp"

#include <cstdint>
#include <memory>
#include <vector>

namespace epjit::host {

class rank_kernels {
   public:
    /// @throws what runtime_state::load throws; unsupported_error when a block does not fit the GPU.
    rank_kernels(communicator_state& comm, const resolved_config& config);

    launchable plan;
    launchable gathered_plan;  ///< empty where a block of it does not fit the GPU
    launchable sync;
    launchable send_weights;
    launchable return_rows;
    launchable window_lines;
    launchable gather;
    launchable weight_gradient;  ///< empty without config.backward
    launchable dispatch;         ///< through windows in one launch; empty where rows need more than a copy
    launchable direct_dispatch;  ///< straight into lent outputs; empty as `dispatch`, and where none are lent
    launchable combine;          ///< through windows in one launch
    launchable ll_dispatch;      ///< of few tokens; empty without config.ll_max_tokens_per_rank
    launchable ll_combine;
    std::int32_t dispatch_movers = 1;       ///< of a block that expands
    std::int32_t dispatch_send_movers = 1;  ///< of one that sends
    scatter_program convert;                ///< input type to dispatch type
    scatter_program pass;                   ///< rows that stay as they are: dispatch type
    scatter_program raw;                    ///< input type untouched, to be converted where they arrive
    scatter_program gradients;              ///< combine type

    templates::plan_config plan_shape{};

   private:
    std::vector<std::shared_ptr<const loaded_variant>> variants_;
};

}  // namespace epjit::host
