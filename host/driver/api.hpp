// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA driver's interface that the library uses, declared here so that a build needs no CUDA
// header, and the table of its entry points, filled at run time from libcuda.so.1. Private to host/, tests
// and tools.
#pragma once

#include "epjit/types.hpp"

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;

namespace epjit::host {

using cu_result = int;  ///< CUresult, an enum of int size
using cu_device = int;
using cu_pointer = unsigned long long;  ///< CUdeviceptr
using cu_context = CUctx_st*;
using cu_module = CUmod_st*;
using cu_function = CUfunc_st*;
using cu_event = CUevent_st*;
using cu_graph = CUgraph_st*;
using cu_graph_exec = CUgraphExec_st*;

inline constexpr cu_result cu_success = 0;
inline constexpr cu_result cu_out_of_memory = 2;
inline constexpr cu_result cu_deinitialized = 4;
inline constexpr cu_result cu_no_device = 100;
inline constexpr cu_result cu_invalid_image = 200;
inline constexpr cu_result cu_invalid_context = 201;
inline constexpr cu_result cu_no_binary_for_gpu = 209;
inline constexpr cu_result cu_unsupported_ptx_version = 222;
inline constexpr cu_result cu_invalid_source = 300;
inline constexpr cu_result cu_not_found = 500;
inline constexpr cu_result cu_not_ready = 600;
inline constexpr cu_result cu_peer_access_already_enabled = 704;
inline constexpr cu_result cu_context_destroyed = 709;
inline constexpr cu_result cu_capture_unsupported = 900;
inline constexpr cu_result cu_capture_invalidated = 901;
inline constexpr cu_result cu_capture_isolation = 905;

/// CUdevice_attribute values.
enum class device_attribute : int {
    multiprocessors = 16,
    compute_major = 75,
    compute_minor = 76,
    shared_bytes_per_block_optin = 97,
    cooperative_launch = 95,
};

/// CUfunction_attribute values.
enum class function_attribute : int {
    max_threads_per_block = 0,
    static_shared_bytes = 1,
    num_registers = 4,
    max_dynamic_shared_bytes = 8,
};

/// CUdevice_P2PAttribute values: of a pair of devices.
enum class p2p_attribute : int { access_supported = 2, native_atomics = 3 };

/// CUstreamCaptureMode values: whose calls may spoil a capture.
enum class capture_mode : int { global = 0, thread_local_ = 1, relaxed = 2 };
/// CUstreamCaptureStatus values.
enum class capture_status : int { none = 0, active = 1, invalidated = 2 };

/// CUDA_MEMCPY2D.
struct cu_copy_2d {
    std::size_t from_x = 0, from_y = 0;
    int from_kind = 2;  ///< CU_MEMORYTYPE_DEVICE
    const void* from_host = nullptr;
    cu_pointer from = 0;
    void* from_array = nullptr;
    std::size_t from_pitch = 0;
    std::size_t to_x = 0, to_y = 0;
    int to_kind = 2;
    void* to_host = nullptr;
    cu_pointer to = 0;
    void* to_array = nullptr;
    std::size_t to_pitch = 0;
    std::size_t width_bytes = 0, height = 0;
};
static_assert(sizeof(cu_copy_2d) == 128 && offsetof(cu_copy_2d, to_x) == 56 &&
              offsetof(cu_copy_2d, width_bytes) == 112);

/// CUlaunchAttribute; of the values only what is used.
struct cu_launch_attribute {
    int id = 0;
    int padding = 0;
    int value[16] = {};
};
static_assert(sizeof(cu_launch_attribute) == 72);
inline constexpr int launch_before_the_end = 6;  ///< CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

/// CUlaunchConfig.
struct cu_launch_config {
    unsigned grid[3] = {1, 1, 1};
    unsigned block[3] = {1, 1, 1};
    unsigned shared_bytes = 0;
    stream_t stream = nullptr;
    cu_launch_attribute* attributes = nullptr;
    unsigned num_attributes = 0;
};
static_assert(sizeof(cu_launch_config) == 56 && offsetof(cu_launch_config, stream) == 32);

inline constexpr unsigned host_alloc_portable = 1;
inline constexpr unsigned host_alloc_mapped = 2;
inline constexpr unsigned event_disable_timing = 2;
inline constexpr unsigned event_record_external = 1;
inline constexpr unsigned stream_non_blocking = 1;

// X(member, "symbol", argument types...). Versioned symbols are named in full: dlsym has no header to map
// them.
// clang-format off
#define EPJIT_DRIVER_FUNCTIONS(X)                                                                                     \
    X(init, "cuInit", unsigned)                                                                                       \
    X(driver_version, "cuDriverGetVersion", int*)                                                                     \
    X(error_name, "cuGetErrorName", cu_result, const char**)                                                          \
    X(error_string, "cuGetErrorString", cu_result, const char**)                                                      \
    X(device_count, "cuDeviceGetCount", int*)                                                                         \
    X(device_get, "cuDeviceGet", cu_device*, int)                                                                     \
    X(device_name, "cuDeviceGetName", char*, int, cu_device)                                                          \
    X(device_total_memory, "cuDeviceTotalMem_v2", std::size_t*, cu_device)                                            \
    X(device_get_attribute, "cuDeviceGetAttribute", int*, device_attribute, cu_device)                                \
    X(primary_context_retain, "cuDevicePrimaryCtxRetain", cu_context*, cu_device)                                     \
    X(primary_context_release, "cuDevicePrimaryCtxRelease_v2", cu_device)                                             \
    X(context_push, "cuCtxPushCurrent_v2", cu_context)                                                                \
    X(context_pop, "cuCtxPopCurrent_v2", cu_context*)                                                                 \
    X(context_current, "cuCtxGetCurrent", cu_context*)                                                                \
    X(context_synchronize, "cuCtxSynchronize", void)                                                                  \
    X(module_load, "cuModuleLoadData", cu_module*, const void*)                                                       \
    X(module_unload, "cuModuleUnload", cu_module)                                                                     \
    X(module_function, "cuModuleGetFunction", cu_function*, cu_module, const char*)                                   \
    X(function_get_attribute, "cuFuncGetAttribute", int*, function_attribute, cu_function)                            \
    X(function_set_attribute, "cuFuncSetAttribute", cu_function, function_attribute, int)                             \
    X(occupancy, "cuOccupancyMaxActiveBlocksPerMultiprocessor", int*, cu_function, int, std::size_t)                  \
    X(launch, "cuLaunchKernel", cu_function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,    \
      stream_t, void**, void**)                                                                                       \
    X(launch_cooperative, "cuLaunchCooperativeKernel", cu_function, unsigned, unsigned, unsigned, unsigned, unsigned, \
      unsigned, unsigned, stream_t, void**)                                                                           \
    X(memory_info, "cuMemGetInfo_v2", std::size_t*, std::size_t*)                                                     \
    X(allocate, "cuMemAlloc_v2", cu_pointer*, std::size_t)                                                            \
    X(free, "cuMemFree_v2", cu_pointer)                                                                               \
    X(host_allocate, "cuMemHostAlloc", void**, std::size_t, unsigned)                                                 \
    X(host_free, "cuMemFreeHost", void*)                                                                              \
    X(host_device_pointer, "cuMemHostGetDevicePointer_v2", cu_pointer*, void*, unsigned)                              \
    X(copy_to_device, "cuMemcpyHtoDAsync_v2", cu_pointer, const void*, std::size_t, stream_t)                         \
    X(copy_to_host, "cuMemcpyDtoHAsync_v2", void*, cu_pointer, std::size_t, stream_t)                                 \
    X(copy_on_device, "cuMemcpyDtoDAsync_v2", cu_pointer, cu_pointer, std::size_t, stream_t)                          \
    X(can_access_peer, "cuDeviceCanAccessPeer", int*, cu_device, cu_device)                                           \
    X(p2p_attribute, "cuDeviceGetP2PAttribute", int*, enum p2p_attribute, cu_device, cu_device)                       \
    X(enable_peer_access, "cuCtxEnablePeerAccess", cu_context, unsigned)                                              \
    X(copy_to_peer, "cuMemcpyPeerAsync", cu_pointer, cu_context, cu_pointer, cu_context, std::size_t, stream_t)       \
    X(copy_2d, "cuMemcpy2DAsync_v2", const cu_copy_2d*, stream_t)                                                     \
    X(fill_bytes, "cuMemsetD8Async", cu_pointer, unsigned char, std::size_t, stream_t)                                \
    X(fill_words, "cuMemsetD32Async", cu_pointer, unsigned, std::size_t, stream_t)                                    \
    X(stream_create, "cuStreamCreate", stream_t*, unsigned)                                                           \
    X(stream_destroy, "cuStreamDestroy_v2", stream_t)                                                                 \
    X(stream_synchronize, "cuStreamSynchronize", stream_t)                                                            \
    X(stream_query, "cuStreamQuery", stream_t)                                                                        \
    X(stream_wait_event, "cuStreamWaitEvent", stream_t, cu_event, unsigned)                                           \
    X(stream_write_word, "cuStreamWriteValue32_v2", stream_t, cu_pointer, unsigned, unsigned)                         \
    X(event_create, "cuEventCreate", cu_event*, unsigned)                                                             \
    X(event_destroy, "cuEventDestroy_v2", cu_event)                                                                   \
    X(event_record, "cuEventRecord", cu_event, stream_t)                                                              \
    X(event_record_flags, "cuEventRecordWithFlags", cu_event, stream_t, unsigned)                                     \
    X(event_query, "cuEventQuery", cu_event)                                                                          \
    X(event_synchronize, "cuEventSynchronize", cu_event)                                                              \
    X(event_elapsed, "cuEventElapsedTime", float*, cu_event, cu_event)                                                \
    X(stream_begin_capture, "cuStreamBeginCapture_v2", stream_t, capture_mode)                                        \
    X(stream_end_capture, "cuStreamEndCapture", stream_t, cu_graph*)                                                  \
    X(stream_is_capturing, "cuStreamIsCapturing", stream_t, capture_status*)                                          \
    X(thread_capture_mode, "cuThreadExchangeStreamCaptureMode", capture_mode*)                                        \
    X(graph_instantiate, "cuGraphInstantiateWithFlags", cu_graph_exec*, cu_graph, unsigned long long)                 \
    X(graph_launch, "cuGraphLaunch", cu_graph_exec, stream_t)                                                         \
    X(graph_exec_destroy, "cuGraphExecDestroy", cu_graph_exec)                                                        \
    X(graph_destroy, "cuGraphDestroy", cu_graph)
// clang-format on

/// The loaded driver. Immutable after open_driver(); the library stays loaded for the life of the process, as
/// the driver's own exit handlers demand.
struct driver_api {
#define EPJIT_DRIVER_MEMBER(member, symbol, ...) cu_result (*member)(__VA_ARGS__) = nullptr;
    EPJIT_DRIVER_FUNCTIONS(EPJIT_DRIVER_MEMBER)
#undef EPJIT_DRIVER_MEMBER
    /// "cuLaunchKernelEx", which drivers of CUDA 11.8 brought; null before.
    cu_result (*launch_with)(const cu_launch_config*, cu_function, void**, void**) = nullptr;

    /// "cuStreamGetCaptureInfo" as CUDA 10.1 brought it: the status, and a number of its own for each capture; may be
    /// null.
    cu_result (*capture_info)(stream_t, capture_status*, std::uint64_t*) = nullptr;

    std::string path;  ///< what was opened
    int version = 0;   ///< 13000 for CUDA 13.0
    int num_devices = 0;

    /// @throws cuda_error with the call, the code's name and text, and `what` (values; may be empty).
    void check(cu_result result, const char* call, const char* what = "") const {
        if (result != cu_success) {
            fail(result, call, what);
        }
    }
    [[noreturn]] void fail(cu_result result, const char* call, const std::string& what) const;
    /// "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory".
    [[nodiscard]] std::string text(cu_result result) const;
};

/// Opens `library`, else libcuda.so.1, and initialises it. @throws library_error that lists every place tried
/// with the reason (also when the library is there and no GPU is), cuda_error when initialisation fails
/// otherwise.
std::shared_ptr<const driver_api> open_driver(const std::string& library);

/// The places open_driver tries, in order.
std::vector<std::string> driver_candidates(const std::string& library);

}  // namespace epjit::host
