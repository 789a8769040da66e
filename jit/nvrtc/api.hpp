// SPDX-License-Identifier: Apache-2.0
// The part of NVRTC's C interface that the library calls, declared here so that no CUDA header is needed to
// build it. Signatures and values: nvrtc.h of CUDA 13.0; unchanged since each function came.
#pragma once

#include <cstddef>

namespace epjit::jit::nvrtc {

using result = int;
inline constexpr result success = 0;
inline constexpr result error_compilation = 6;
inline constexpr result error_cancelled = 16;

struct program_handle;
using program_t = program_handle*;

/// Entry points of a loaded libnvrtc. The optional ones are null where that version lacks them.
struct api {
    const char* (*get_error_string)(result) = nullptr;
    result (*version)(int* major, int* minor) = nullptr;
    result (*create_program)(program_t*, const char* source, const char* name, int num_headers,
                             const char* const* headers, const char* const* include_names) = nullptr;
    result (*destroy_program)(program_t*) = nullptr;
    result (*compile_program)(program_t, int num_options, const char* const* options) = nullptr;
    result (*get_log_size)(program_t, std::size_t*) = nullptr;
    result (*get_log)(program_t, char*) = nullptr;
    result (*add_name_expression)(program_t, const char*) = nullptr;
    result (*get_lowered_name)(program_t, const char* expression, const char** lowered) = nullptr;
    result (*get_cubin_size)(program_t, std::size_t*) = nullptr;  // since 11.1
    result (*get_cubin)(program_t, char*) = nullptr;
    // Optional.
    result (*get_num_supported_archs)(int*) = nullptr;                               // since 11.2
    result (*get_supported_archs)(int*) = nullptr;                                   // since 11.2
    result (*set_flow_callback)(program_t, int (*)(void*, void*), void*) = nullptr;  // since 12.8
};

}  // namespace epjit::jit::nvrtc
