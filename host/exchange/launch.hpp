// SPDX-License-Identifier: Apache-2.0
// Kernels ready to launch, and what a variant's spec means to the device code.
#pragma once

#include "epjit/jit/spec.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/exchange/layouts.hpp"

#include <cstdint>

namespace epjit::host {

templates::plan_config plan_config_of(const jit::variant_spec& spec) noexcept;
templates::scatter_config scatter_config_of(const jit::variant_spec& spec) noexcept;

/// A kernel with its launch shape.
struct launchable {
    loaded_kernel kernel;
    std::int32_t threads = 0;
    std::int32_t shared_bytes = 0;  ///< dynamic
    std::int32_t max_blocks = 0;    ///< resident at once, or the exchange's SM budget

    [[nodiscard]] explicit operator bool() const noexcept { return static_cast<bool>(kernel); }
};

/// Sets the kernel up for its shared memory and asks how many of its blocks are resident at once, at most `sm_budget`
/// where that is not 0. @throws unsupported_error when no block fits, cuda_error.
launchable prepare_kernel(const device_context& context, const loaded_kernel& kernel, std::int32_t threads,
                          std::int32_t shared_bytes, std::int32_t sm_budget);

/// Launches `what` with the one argument struct `args` and counts it; the context is current.
void launch(communicator_state& comm, const launchable& what, std::int64_t blocks, const void* args, stream_t stream,
            bool cooperative = false);

}  // namespace epjit::host
