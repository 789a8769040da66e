// SPDX-License-Identifier: Apache-2.0
// The kernels of one loopback exchange: which variants, loaded, with what the launches need to know.
#pragma once

#include "epjit/jit/spec.hpp"
#include "host/exchange/backend.hpp"
#include "host/exchange/launch.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace epjit::host {

/// The variants that a loopback exchange of `config` launches from: plan, scatter, gather.
std::array<jit::variant_spec, 3> loopback_specs(const resolved_config& config, jit::target_arch arch);

/// Loaded into the communicator's context.
class loopback_kernels {
   public:
    /// @throws what runtime_state::load throws; unsupported_error when a block does not fit the GPU.
    loopback_kernels(communicator_state& comm, const resolved_config& config);

    /// Loaded when first asked for: a forward run needs no such kernel.
    const launchable& weight_gradient(communicator_state& comm, const resolved_config& config);

    launchable plan;
    scatter_program scatter;
    launchable gather;
    std::int32_t plan_keys = 0;

   private:
    std::vector<std::shared_ptr<const loaded_variant>> variants_;
    std::vector<std::shared_ptr<const loaded_variant>> gradient_variant_;
    launchable weight_gradient_;
};

}  // namespace epjit::host
