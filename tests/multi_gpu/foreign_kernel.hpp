// SPDX-License-Identifier: Apache-2.0
// Somebody else's kernel that keeps most of a GPU busy.
#pragma once

#include "host/driver/device.hpp"
#include "host/runtime/runtime_state.hpp"

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace epjit::tests {

/// The kernel runs from construction on; destruction waits for it.
class occupation {
   public:
    occupation(const host::shared_context& context, host::runtime_state& runtime, int free_sms,
               std::chrono::milliseconds length);
    ~occupation();
    occupation(const occupation&) = delete;
    occupation& operator=(const occupation&) = delete;

   private:
    host::shared_context context_;
    host::gpu_module module_;
    host::gpu_stream stream_;
};

/// One block with nearly all shared memory on every SM but `free_sms`, for `length`. @throws compile_error, cuda_error.
inline std::unique_ptr<occupation> occupy(const host::shared_context& context, host::runtime_state& runtime,
                                          int free_sms, std::chrono::milliseconds length) {
    return std::make_unique<occupation>(context, runtime, free_sms, length);
}

/// The cubin of the kernel "hold", for `arch` ("sm_90a"). @throws library_error without NVRTC, compile_error.
std::vector<std::byte> compile_foreign_kernel(const std::string& arch, const std::string& nvrtc_library);

}  // namespace epjit::tests
