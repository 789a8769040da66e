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
templates::gather_config gather_config_of(const jit::variant_spec& spec) noexcept;

/// A kernel with its launch shape.
struct launchable {
    loaded_kernel kernel;
    std::int32_t threads = 0;
    std::int32_t shared_bytes = 0;  ///< dynamic
    std::int32_t max_blocks = 0;    ///< resident at once, or the exchange's SM budget
    std::int32_t per_sm = 0;        ///< blocks that an SM holds

    [[nodiscard]] explicit operator bool() const noexcept { return static_cast<bool>(kernel); }
};

/// Sets the kernel up for its shared memory and asks how many of its blocks are resident at once, at most `sm_budget`
/// where that is not 0. @throws unsupported_error when no block fits, cuda_error.
launchable prepare_kernel(const device_context& context, const loaded_kernel& kernel, std::int32_t threads,
                          std::int32_t shared_bytes, std::int32_t sm_budget);

/// A program that scatters rows, in its general and its bulk-copy form.
struct scatter_program {
    launchable general;
    launchable bulk;          ///< empty where the variant has none
    std::int32_t movers = 1;  ///< tokens a block of `bulk` moves at a time
};
/// Of the variant `spec`, loaded. @throws as prepare_kernel.
scatter_program prepare_scatter(const device_context& context, const loaded_variant& variant,
                                const jit::variant_spec& spec, std::int32_t sm_budget);

/// How a kernel follows what is before it on the stream.
enum class launch_mode : std::uint8_t {
    after,        ///< starts when that has ended
    cooperative,  ///< so does it, all its blocks at once
    overlapping,  ///< may start before; the kernel waits by itself (wait_for_kernel_before)
};
constexpr launch_mode cooperative_if(bool together) noexcept {
    return together ? launch_mode::cooperative : launch_mode::after;
}

/// Launches `what` with the one argument struct `args` and counts it; the context is current.
void launch(communicator_state& comm, const launchable& what, std::int64_t blocks, const void* args, stream_t stream,
            launch_mode mode = launch_mode::after);

/// Launches the form that the arguments allow, for `tokens` tokens and `rows_to_fill` rows that no token fills.
void launch_scatter(communicator_state& comm, const scatter_program& program,
                    const templates::scatter_args<templates::max_driven_ranks>& args, std::int64_t tokens,
                    std::int64_t rows_to_fill, stream_t stream);

}  // namespace epjit::host
