// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"
#include "host/nccl/api.hpp"
#include "host/nccl/communicator.hpp"
#include "jit/core/library_search.hpp"

#include <fmt/format.h>

#include <dlfcn.h>

namespace epjit::host {
namespace {

constexpr int oldest_version = 21800;
constexpr int first_with_windows = 22703;
constexpr int first_with_known_prefix = 22803;
constexpr int first_with_getters = 22902;

const char* name_of(nccl_result result) {
    switch (result) {
        case nccl_success: return "ncclSuccess";
        case nccl_unhandled_cuda_error: return "ncclUnhandledCudaError";
        case nccl_system_error: return "ncclSystemError";
        case nccl_internal_error: return "ncclInternalError";
        case nccl_invalid_argument: return "ncclInvalidArgument";
        case nccl_invalid_usage: return "ncclInvalidUsage";
        case nccl_remote_error: return "ncclRemoteError";
        case nccl_in_progress: return "ncclInProgress";
        default: return "unknown NCCL error";
    }
}

const char* remedy_of(nccl_result result) {
    switch (result) {
        case nccl_unhandled_cuda_error:
        case nccl_system_error:
        case nccl_internal_error: return "run with NCCL_DEBUG=WARN to see what NCCL met";
        case nccl_remote_error: return "look at the other ranks: one of them failed or the network did";
        case nccl_invalid_usage:
            return "run with NCCL_DEBUG=WARN; often two ranks use one GPU, which NCCL allows only with different "
                   "NCCL_HOSTID";
        default: return "";
    }
}

/// Empty, or what a usable library would have and this one has not.
std::string load_symbols(void* handle, nccl_api& api) {
    std::string missing;
#define EPJIT_NCCL_LOOKUP(member, symbol, ...) \
    api.member = reinterpret_cast<nccl_result (*)(__VA_ARGS__)>(dlsym(handle, symbol));
#define EPJIT_NCCL_NEED(member, symbol, ...)               \
    EPJIT_NCCL_LOOKUP(member, symbol, __VA_ARGS__)         \
    if (api.member == nullptr) {                           \
        missing += missing.empty() ? symbol : ", " symbol; \
    }
    EPJIT_NCCL_FUNCTIONS(EPJIT_NCCL_NEED)
    EPJIT_NCCL_OPTIONAL_FUNCTIONS(EPJIT_NCCL_LOOKUP)
#undef EPJIT_NCCL_NEED
#undef EPJIT_NCCL_LOOKUP
    api.error_string = reinterpret_cast<const char* (*)(nccl_result)>(dlsym(handle, "ncclGetErrorString"));
    api.last_error = reinterpret_cast<const char* (*)(nccl_comm)>(dlsym(handle, "ncclGetLastError"));
    return missing;
}

/// Empty on success, else why not.
std::string try_open(const std::string& place, nccl_api& api) {
    void* handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        return jit::loader_error();
    }
    const auto get_version = reinterpret_cast<nccl_result (*)(int*)>(dlsym(handle, "ncclGetVersion"));
    if (get_version == nullptr || get_version(&api.version) != nccl_success) {
        dlclose(handle);
        return "ncclGetVersion is missing or failed: not an NCCL library";
    }
    if (api.version < oldest_version) {
        return fmt::format("is NCCL {}; 2.18 or newer is needed", nccl_version_text(api.version));
    }
    if (const std::string missing = load_symbols(handle, api); !missing.empty()) {
        return fmt::format("NCCL {} without {}", nccl_version_text(api.version), missing);
    }
    api.path = jit::loaded_path(handle, place);
    if (api.path.empty()) {
        api.path = place;
    }
    return {};
}

}  // namespace

std::string nccl_version_text(int version) {
    return version < 10000 ? fmt::format("{}.{}.{}", version / 1000, version % 1000 / 100, version % 100)
                           : fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

std::string nccl_api::version_text() const {
    return nccl_version_text(version);
}

std::string nccl_api::text(nccl_result result) const {
    const char* description = error_string != nullptr ? error_string(result) : nullptr;
    return fmt::format("{} ({}): {}", name_of(result), result, description != nullptr ? description : "no description");
}

void nccl_api::fail(nccl_result result, const char* call, const std::string& what) const {
    // NCCL keeps one text for the process, whichever communicator it came from.
    const char* last = last_error != nullptr ? last_error(nullptr) : nullptr;
    throw nccl_error(fmt::format("{}{}{} failed with {}{}{} (NCCL {})", call, what.empty() ? "" : " ", what,
                                 text(result), last != nullptr && *last != '\0' ? "; last error: " : "",
                                 last != nullptr ? last : "", version_text()),
                     result, remedy_of(result));
}

std::shared_ptr<const nccl_api> open_nccl(const std::string& library) {
    std::vector<std::string> tried;
    for (const std::string& place : nccl_places(library, tried)) {
        auto api = std::make_shared<nccl_api>();
        const std::string why = try_open(place, *api);
        if (why.empty()) {
            api->tried = std::move(tried);
            api->tried.push_back(fmt::format("{}: NCCL {}", place, api->version_text()));
            return api;
        }
        tried.push_back(why.starts_with(place) ? why : fmt::format("{}: {}", place, why));
    }
    throw library_error(fmt::format("NCCL was not found; tried\n  {}", fmt::join(tried, "\n  ")),
                        library.empty() ? "install libnccl2 or `pip install nvidia-nccl-cu12` (or -cu13), or name the "
                                          "file in EPJIT_NCCL_LIBRARY; host and loopback need no NCCL"
                                        : "correct or unset EPJIT_NCCL_LIBRARY; host and loopback need no NCCL");
}

std::string no_windows_reason(const nccl_api& api) {
    const std::string version = api.version_text();
    if (api.window_register == nullptr || api.window_deregister == nullptr || api.memory_allocate == nullptr ||
        api.memory_free == nullptr) {
        return api.version < first_with_windows
                   ? fmt::format("NCCL {} has no symmetric windows (they came with 2.27.3; 2.28.3 is needed)", version)
                   : fmt::format("this build of NCCL {} lacks ncclCommWindowRegister or ncclMemAlloc", version);
    }
    if (api.version < first_with_known_prefix) {
        return fmt::format("NCCL {} has windows, but peer pointers can be learned from 2.28.3 on", version);
    }
    if (api.version >= 22900 && api.peer_pointer == nullptr) {
        return api.version < first_with_getters
                   ? fmt::format(
                         "NCCL {} has no ncclGetPeerDevicePointer (it came with 2.29.2), and its windows are "
                         "read only in 2.28",
                         version)
                   : fmt::format("this build of NCCL {} lacks ncclGetPeerDevicePointer", version);
    }
    return {};
}

}  // namespace epjit::host
