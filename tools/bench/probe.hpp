// SPDX-License-Identifier: Apache-2.0
// Two kernels that no exchange launches, for what a launch and a flag cost on this machine.
#pragma once

#include "host/driver/device.hpp"

#include <cstdint>

namespace epjit::tools {

class probe_kernels {
   public:
    /// @throws cuda_error, also where the driver cannot assemble PTX.
    explicit probe_kernels(const host::shared_context& context);

    void launch_empty(stream_t stream) const;
    /// Passes a number to the peer and back `rounds` times; the leader begins. The peer runs the same with the flags
    /// exchanged. `mine` and `peer` are u32 in device memory, 0 before; `result` (u64) gets nanoseconds, 0 after
    /// `limit_ns` without an answer.
    void launch_flags(const void* mine, void* peer, void* result, std::uint64_t limit_ns, std::uint32_t rounds,
                      bool leads, stream_t stream) const;

   private:
    host::shared_context context_;
    host::gpu_module module_;
    host::cu_function empty_ = nullptr, flags_ = nullptr;
};

}  // namespace epjit::tools
