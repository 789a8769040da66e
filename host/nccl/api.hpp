// SPDX-License-Identifier: Apache-2.0
// The part of NCCL's interface that the library uses, declared here so that a build needs no NCCL header, and the table
// of its entry points, filled at run time from libnccl.so.2. The prototypes are stable since NCCL 2.18; what came later
// is optional, symbol by symbol. Private to host/, tests and tools.
#pragma once

#include "epjit/types.hpp"

#include <climits>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct ncclWindow_vidmem;

namespace epjit::host {

using nccl_result = int;  ///< ncclResult_t, an enum of int size
using nccl_comm = ncclComm*;
using nccl_window = ncclWindow_vidmem*;

inline constexpr nccl_result nccl_success = 0;
inline constexpr nccl_result nccl_unhandled_cuda_error = 1;
inline constexpr nccl_result nccl_system_error = 2;
inline constexpr nccl_result nccl_internal_error = 3;
inline constexpr nccl_result nccl_invalid_argument = 4;
inline constexpr nccl_result nccl_invalid_usage = 5;
inline constexpr nccl_result nccl_remote_error = 6;
inline constexpr nccl_result nccl_in_progress = 7;

/// ncclDataType_t values.
enum class nccl_type : int { int8 = 0, uint8 = 1, int32 = 2, uint64 = 5, f16 = 6, f32 = 7, bf16 = 9 };
/// ncclRedOp_t values.
enum class nccl_reduction : int { sum = 0 };

inline constexpr int nccl_split_nocolor = -1;
inline constexpr int nccl_window_symmetric = 1;  ///< NCCL_WIN_COLL_SYMMETRIC

/// ncclUniqueId: passed by value.
struct nccl_unique_id {
    char internal[128] = {};
};
static_assert(sizeof(nccl_unique_id) == 128);

/// ncclConfig_t as NCCL 2.18 has it. NCCL copies `size` bytes, takes its defaults for fields that came after `version`,
/// and reads INT_MIN or null as "not set".
struct nccl_config {
    std::size_t size = sizeof(nccl_config);
    std::uint32_t magic = 0xcafebeefU;
    std::uint32_t version = 21800;
    std::int32_t blocking = INT_MIN;
    std::int32_t cga_cluster_size = INT_MIN;
    std::int32_t min_ctas = INT_MIN;
    std::int32_t max_ctas = INT_MIN;
    const char* net_name = nullptr;
    std::int32_t split_share = INT_MIN;
    std::int32_t not_set = INT_MIN;  ///< padding in 2.18, traffic class from 2.25
};
static_assert(sizeof(nccl_config) == 48 && offsetof(nccl_config, blocking) == 16 &&
              offsetof(nccl_config, net_name) == 32 && offsetof(nccl_config, split_share) == 40);

// X(member, "symbol", argument types...)
// clang-format off
/// Without these a library is not usable at all.
#define EPJIT_NCCL_FUNCTIONS(X)                                                                                       \
    X(get_version, "ncclGetVersion", int*)                                                                            \
    X(get_unique_id, "ncclGetUniqueId", nccl_unique_id*)                                                              \
    X(comm_init, "ncclCommInitRankConfig", nccl_comm*, int, nccl_unique_id, int, nccl_config*)                        \
    X(comm_finalize, "ncclCommFinalize", nccl_comm)                                                                   \
    X(comm_destroy, "ncclCommDestroy", nccl_comm)                                                                     \
    X(comm_abort, "ncclCommAbort", nccl_comm)                                                                         \
    X(comm_async_error, "ncclCommGetAsyncError", nccl_comm, nccl_result*)                                             \
    X(comm_count, "ncclCommCount", nccl_comm, int*)                                                                   \
    X(comm_rank, "ncclCommUserRank", nccl_comm, int*)                                                                 \
    X(comm_device, "ncclCommCuDevice", nccl_comm, int*)                                                               \
    X(group_start, "ncclGroupStart", void)                                                                            \
    X(group_end, "ncclGroupEnd", void)                                                                                \
    X(send, "ncclSend", const void*, std::size_t, nccl_type, int, nccl_comm, stream_t)                                \
    X(receive, "ncclRecv", void*, std::size_t, nccl_type, int, nccl_comm, stream_t)                                   \
    X(all_gather, "ncclAllGather", const void*, void*, std::size_t, nccl_type, nccl_comm, stream_t)                   \
    X(broadcast, "ncclBroadcast", const void*, void*, std::size_t, nccl_type, int, nccl_comm, stream_t)               \
    X(reduce, "ncclReduce", const void*, void*, std::size_t, nccl_type, nccl_reduction, int, nccl_comm, stream_t)
/// Null where the library has none: 2.18 split, 2.19 memory, 2.27.3 windows, 2.28.7 revoke, 2.29.2 pointer getters.
#define EPJIT_NCCL_OPTIONAL_FUNCTIONS(X)                                                                              \
    X(comm_split, "ncclCommSplit", nccl_comm, int, int, nccl_comm*, nccl_config*)                                     \
    X(comm_revoke, "ncclCommRevoke", nccl_comm, int)                                                                  \
    X(memory_allocate, "ncclMemAlloc", void**, std::size_t)                                                           \
    X(memory_free, "ncclMemFree", void*)                                                                              \
    X(window_register, "ncclCommWindowRegister", nccl_comm, void*, std::size_t, nccl_window*, int)                    \
    X(window_deregister, "ncclCommWindowDeregister", nccl_comm, nccl_window)                                          \
    X(peer_pointer, "ncclGetPeerDevicePointer", nccl_window, std::size_t, int, void**)                                \
    X(lsa_pointer, "ncclGetLsaDevicePointer", nccl_window, std::size_t, int, void**)
// clang-format on

/// A loaded NCCL. Immutable after open_nccl(); the library stays loaded for the life of the process, since NCCL keeps
/// threads and exit handlers of its own.
struct nccl_api {
#define EPJIT_NCCL_MEMBER(member, symbol, ...) nccl_result (*member)(__VA_ARGS__) = nullptr;
    EPJIT_NCCL_FUNCTIONS(EPJIT_NCCL_MEMBER)
    EPJIT_NCCL_OPTIONAL_FUNCTIONS(EPJIT_NCCL_MEMBER)
#undef EPJIT_NCCL_MEMBER
    const char* (*error_string)(nccl_result) = nullptr;
    const char* (*last_error)(nccl_comm) = nullptr;  ///< optional

    std::string path;                ///< of the file that was loaded, links resolved
    int version = 0;                 ///< ncclGetVersion's: 22809 for 2.28.9
    std::vector<std::string> tried;  ///< "place: outcome", in order, the place that was taken last

    /// "2.28.9".
    [[nodiscard]] std::string version_text() const;
    /// "ncclRemoteError (6): remote process exited or there was a network error".
    [[nodiscard]] std::string text(nccl_result result) const;
    /// @throws nccl_error with the call, `what` (values; may be empty), the code's name and text, and NCCL's last
    /// error.
    [[noreturn]] void fail(nccl_result result, const char* call, const std::string& what = {}) const;
};

/// Opens `library`, else the first usable place of nccl_places(). @throws library_error that lists every place tried
/// with the reason, and a library older than 2.18 by its version.
std::shared_ptr<const nccl_api> open_nccl(const std::string& library);

/// "2.28.9" of 22809; 2.8 and older count in hundreds.
std::string nccl_version_text(int version);

/// Where libnccl may lie, in the order of the search: `library` alone; else NCCL_HOME, NCCL_ROOT and NCCL_ROOT_DIR, the
/// folders of LD_LIBRARY_PATH, CUDA_HOME and CUDA_PATH; the Python environment's wheel (EPJIT_PYTHON, VIRTUAL_ENV,
/// CONDA_PREFIX); the soname. Only files that exist, besides `library` and the soname; places without any are told in
/// `tried`.
std::vector<std::string> nccl_places(const std::string& library, std::vector<std::string>& tried);

}  // namespace epjit::host
