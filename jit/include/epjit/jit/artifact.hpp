// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/jit/hash.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace epjit::jit {

/// One kernel of an artifact and the resources the compiler's log states for it.
struct kernel_info {
    std::string name;     ///< short and stable: "dispatch_bulk_kernel"
    std::string lowered;  ///< the symbol in the cubin
    std::uint32_t registers = 0;
    std::uint32_t shared_bytes = 0;  ///< static
    std::uint32_t spill_bytes = 0;   ///< spill stores + spill loads
    friend bool operator==(const kernel_info&, const kernel_info&) = default;
};

/// Which compiler made an artifact: second level of the key.
struct compiler_identity {
    digest id;                ///< of the build-ids of libnvrtc and of its builtins
    std::string description;  ///< "NVRTC 13.0.88"
    friend bool operator==(const compiler_identity&, const compiler_identity&) = default;
};

/// What a compile gives and the cache keeps.
struct artifact {
    digest key;  ///< variant key
    compiler_identity compiler;
    std::string spec;  ///< describe(spec)
    std::string arch;  ///< "sm_90a"
    std::vector<kernel_info> kernels;
    std::vector<std::byte> cubin;
    std::string source;   ///< the generated program (templates not expanded)
    std::string options;  ///< as given to NVRTC, separated by spaces
    std::string log;
    std::string library_version;  ///< epjit that compiled it
    std::string template_digest;  ///< hex
    double compile_ms = 0;        ///< CPU time of the compile
    std::string spill_exception;  ///< reason why spills are accepted, or empty
    friend bool operator==(const artifact&, const artifact&) = default;
};

}  // namespace epjit::jit
