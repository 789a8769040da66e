// SPDX-License-Identifier: Apache-2.0
// What the exchanges of a GPU keep beside their kernels: memory from the caller's hooks, tables, and the wait
// for a number that a kernel writes.
#pragma once

#include "host/driver/device.hpp"
#include "host/exchange/backend.hpp"
#include "host/exchange/communicator_state.hpp"

#include <chrono>
#include <cstdint>
#include <functional>

namespace epjit::host {

/// Device memory from the caller's hooks, or the library's own.
class workspace {
   public:
    workspace() noexcept = default;
    /// @throws cuda_error; error (config) when the hook returns null.
    workspace(communicator_state& comm, const memory_hooks& hooks, std::size_t bytes);
    workspace(workspace&& other) noexcept;
    workspace& operator=(workspace&& other) noexcept;
    ~workspace();
    [[nodiscard]] void* data() const noexcept { return hooked_ != nullptr ? hooked_ : own_.data(); }

   private:
    device_buffer own_;
    memory_hooks hooks_;
    void* hooked_ = nullptr;
};

/// Device copies of the placement tables, made once per exchange.
class device_tables {
   public:
    device_tables() noexcept = default;
    /// Counts one upload. @throws cuda_error.
    device_tables(communicator_state& comm, const resolved_config& config);

    const std::int32_t* expert_first = nullptr;
    const std::uint16_t* expert_slots = nullptr;  ///< null: expert e has the one slot e
    const std::uint16_t* slot_rank = nullptr;
    const std::int32_t* rank_first = nullptr;
    std::size_t bytes = 0;

   private:
    workspace memory_;
};

enum class poll_outcome { ready, timed_out, work_ended };

/// For poll_ready: whether the stream of a plan's kernels still works. @throws cuda_error when it failed.
bool plan_kernel_runs(const driver_api& api, stream_t stream);

/// What the device has said of a plan that is done. Input problems are logged, once where `warned` was false.
/// @throws capacity_error when rows were dropped and the options ask for that.
void report_status(const runtime_state& runtime, const plan_options& options, const plan_status& status, bool& warned);

/// Polls `*ready` until it is `sequence`. Every millisecond `running` is asked whether the stream still works; it
/// throws when the stream failed. `work_ended`: the stream is done and the number never came.
poll_outcome poll_ready(const std::uint32_t* ready, std::uint32_t sequence, std::chrono::milliseconds limit,
                        const std::function<bool()>& running);

}  // namespace epjit::host
