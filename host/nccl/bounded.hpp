// SPDX-License-Identifier: Apache-2.0
// Calls into NCCL that must not hold the thread for ever.
#pragma once

#include "host/driver/device.hpp"
#include "host/nccl/api.hpp"

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace epjit::host {

using steady_time = std::chrono::steady_clock::time_point;

/// Polls until `comm` is no longer in progress: NCCL's final result of a call on a non-blocking communicator that
/// returned `result`. nccl_in_progress when `until` has passed.
nccl_result settle(const nccl_api& api, nccl_comm comm, nccl_result result, steady_time until) noexcept;

/// Runs `call` on a thread of its own with `context` current; empty when it is not done by `until`. It then goes on by
/// itself, so it may use nothing that does not outlive it: it holds what it needs.
std::optional<nccl_result> call_bounded(const shared_context& context, std::function<nccl_result()> call,
                                        steady_time until);

/// Aborts communicators of one GPU, all at once: NCCL frees device memory while it takes one down, which waits for the
/// kernels of the others, and those end when their own communicator is told. False when one is not done by `until`; it
/// then goes on by itself.
bool abort_together(const shared_context& context, const std::shared_ptr<const nccl_api>& api,
                    std::span<ncclComm* const> comms, steady_time until) noexcept;

/// "rank 3 of 8".
std::string rank_text(int rank, int size);

}  // namespace epjit::host
