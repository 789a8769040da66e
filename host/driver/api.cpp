// SPDX-License-Identifier: Apache-2.0
#include "host/driver/api.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <dlfcn.h>

namespace epjit::host {
namespace {

const char* remedy_of(cu_result result) {
    switch (result) {
        case cu_out_of_memory: return "free GPU memory, lower max_tokens_per_rank, or pass memory_hooks";
        case cu_no_device: return "check that a GPU is visible (nvidia-smi, CUDA_VISIBLE_DEVICES)";
        case 803:  // CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
            return "the kernel module and libcuda differ: reload the driver or reboot";
        case 700:  // CUDA_ERROR_ILLEGAL_ADDRESS
            return "the context is lost; check that every pointer is device memory of the size the call "
                   "states";
        default: return "";
    }
}

// True when every function was found; otherwise names the first that was not.
bool fill(driver_api& api, void* library, std::string& missing) {
#define EPJIT_DRIVER_LOOKUP(member, symbol, ...)                                       \
    api.member = reinterpret_cast<cu_result (*)(__VA_ARGS__)>(dlsym(library, symbol)); \
    if (api.member == nullptr) {                                                       \
        missing = symbol;                                                              \
        return false;                                                                  \
    }
    EPJIT_DRIVER_FUNCTIONS(EPJIT_DRIVER_LOOKUP)
#undef EPJIT_DRIVER_LOOKUP
    api.launch_with = reinterpret_cast<cu_result (*)(const cu_launch_config*, cu_function, void**, void**)>(
        dlsym(library, "cuLaunchKernelEx"));
    api.capture_info = reinterpret_cast<cu_result (*)(stream_t, capture_status*, std::uint64_t*)>(
        dlsym(library, "cuStreamGetCaptureInfo"));
    return true;
}

}  // namespace

std::string driver_api::text(cu_result result) const {
    const char* name = nullptr;
    const char* description = nullptr;
    if (error_name == nullptr || error_name(result, &name) != cu_success || name == nullptr) {
        name = "unknown CUDA error";
    }
    if (error_string == nullptr || error_string(result, &description) != cu_success || description == nullptr) {
        description = "no description";
    }
    return fmt::format("{} ({}): {}", name, result, description);
}

void driver_api::fail(cu_result result, const char* call, const std::string& what) const {
    throw cuda_error(fmt::format("{}{}{} failed with {}", call, what.empty() ? "" : " ", what, text(result)), result,
                     remedy_of(result));
}

std::vector<std::string> driver_candidates(const std::string& library) {
    if (!library.empty()) {
        return {library};
    }
    return {"libcuda.so.1"};
}

std::shared_ptr<const driver_api> open_driver(const std::string& library) {
    std::string tried;
    for (const std::string& candidate : driver_candidates(library)) {
        void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle == nullptr) {
            const char* reason = dlerror();
            tried += fmt::format("\n  {}: {}", candidate, reason != nullptr ? reason : "cannot be opened");
            continue;
        }
        auto api = std::make_shared<driver_api>();
        api->path = candidate;
        std::string missing;
        if (!fill(*api, handle, missing)) {
            tried += fmt::format("\n  {}: lacks {} (driver too old?)", candidate, missing);
            continue;
        }
        const cu_result initialised = api->init(0);
        if (initialised != cu_success) {
            tried += fmt::format("\n  {}: cuInit: {}", candidate, api->text(initialised));
            continue;
        }
        api->check(api->driver_version(&api->version), "cuDriverGetVersion");
        api->check(api->device_count(&api->num_devices), "cuDeviceGetCount");
        return api;
    }
    throw library_error("no usable CUDA driver; tried:" + tried,
                        library.empty()
                            ? "install the NVIDIA driver, set EPJIT_CUDA_LIBRARY to its libcuda.so.1, or use "
                              "the host exchange, which needs no GPU"
                            : "correct or unset EPJIT_CUDA_LIBRARY, or use the host exchange, which needs no GPU");
}

}  // namespace epjit::host
