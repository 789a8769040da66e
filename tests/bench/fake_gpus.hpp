// SPDX-License-Identifier: Apache-2.0
// A machine of two fake GPUs, a fake NVRTC and a stub NCCL.
#pragma once

#include "epjit/runtime.hpp"

#include <gtest/gtest.h>

#include <cstdlib>

namespace epjit::tools {

inline runtime_options with_fakes() {
    runtime_options o;
    o.cache_path = "";
    o.cuda_library = EPJIT_FAKE_CUDA;
    o.nvrtc_library = EPJIT_FAKE_NVRTC_A;
    o.nccl_library = EPJIT_NCCL_STUB;
    o.wait_timeout_ms = o.first_wait_timeout_ms = 5000;
    return o;
}

class two_gpus : public ::testing::Test {
   protected:
    two_gpus() { setenv("FAKE_CUDA_DEVICES", "2", 1); }
    ~two_gpus() override { unsetenv("FAKE_CUDA_DEVICES"); }
    runtime rt{with_fakes()};
};

}  // namespace epjit::tools
