// SPDX-License-Identifier: Apache-2.0
#include "jit/nvrtc/library.hpp"

#include "epjit/error.hpp"
#include "jit/core/library_search.hpp"
#include "jit/nvrtc/elf.hpp"

#include <fmt/format.h>

#include <dlfcn.h>
#include <filesystem>

namespace epjit::jit::nvrtc {
namespace {

namespace fs = std::filesystem;

constexpr const char* remedy =
    "install the CUDA toolkit or `pip install nvidia-cuda-nvrtc`, or name the file in EPJIT_NVRTC_LIBRARY; "
    "with a warm "
    "cache NVRTC is not needed";

template <class Function>
void take(void* handle, const char* symbol, Function*& to) {
    to = reinterpret_cast<Function*>(dlsym(handle, symbol));
}

/// Empty, or the name of a symbol that is needed and not there.
std::string load_symbols(void* handle, api& calls) {
    std::string missing;
    const auto need = [&](const char* symbol, auto*& to) {
        take(handle, symbol, to);
        if (to == nullptr && missing.empty()) {
            missing = symbol;
        }
    };
    need("nvrtcGetErrorString", calls.get_error_string);
    need("nvrtcVersion", calls.version);
    need("nvrtcCreateProgram", calls.create_program);
    need("nvrtcDestroyProgram", calls.destroy_program);
    need("nvrtcCompileProgram", calls.compile_program);
    need("nvrtcGetProgramLogSize", calls.get_log_size);
    need("nvrtcGetProgramLog", calls.get_log);
    need("nvrtcAddNameExpression", calls.add_name_expression);
    need("nvrtcGetLoweredName", calls.get_lowered_name);
    need("nvrtcGetCUBINSize", calls.get_cubin_size);
    need("nvrtcGetCUBIN", calls.get_cubin);
    take(handle, "nvrtcGetNumSupportedArchs", calls.get_num_supported_archs);
    take(handle, "nvrtcGetSupportedArchs", calls.get_supported_archs);
    take(handle, "nvrtcSetFlowCallback", calls.set_flow_callback);
    return missing;
}

/// NVRTC opens its builtins by soname at the first compile, which fails in a wheel that is not on the
/// loader's path, and could find another build's. Loading the one that lies beside it first settles both: the
/// loader reuses it by soname.
std::string load_builtins(const library& lib) {
    const fs::path folder = fs::path(lib.path).parent_path();
    const std::string soname = fmt::format("libnvrtc-builtins.so.{}.{}", lib.major, lib.minor);
    for (const std::string& place : {(folder / soname).string(), (folder / "libnvrtc-builtins.so").string(), soname}) {
        if (void* handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) {
            return loaded_path(handle, place);
        }
    }
    return {};
}

compiler_identity identify(const library& lib, const std::string& self) {
    const std::string builtins = lib.builtins_path.empty() ? std::string() : file_identity(lib.builtins_path);
    compiler_identity id;
    id.id = field_hasher().add("nvrtc").add(self).add(builtins).finish();
    // The build-id tells patch releases apart, which nvrtcVersion does not.
    id.description = fmt::format("NVRTC {}.{} ({})", lib.major, lib.minor, self.substr(0, self.find(':') + 13));
    return id;
}

/// Empty on success, else why not.
std::string try_open(const std::string& place, library& lib) {
    void* handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        return loader_error();
    }
    if (const std::string missing = load_symbols(handle, lib.calls); !missing.empty()) {
        dlclose(handle);
        return fmt::format("has no {} (NVRTC 11.1 or newer is needed)", missing);
    }
    if (lib.calls.version(&lib.major, &lib.minor) != success) {
        return "nvrtcVersion failed";
    }
    lib.path = loaded_path(handle, place);
    const std::string self = file_identity(lib.path);
    if (self.empty()) {
        return "its file cannot be read to tell which build it is";
    }
    lib.builtins_path = load_builtins(lib);
    lib.identity = identify(lib, self);
    return {};
}

}  // namespace

library open_library(const nvrtc_options& options) {
    library lib;
    std::vector<std::string> tried;
    for (const std::string& place : search_places(options.library, tried)) {
        const std::string why = try_open(place, lib);
        if (why.empty()) {
            lib.tried = std::move(tried);
            return lib;
        }
        tried.push_back(why.starts_with(place) ? why : fmt::format("{}: {}", place, why));
    }
    throw library_error(fmt::format("NVRTC was not found; tried\n  {}\n", fmt::join(tried, "\n  ")), remedy);
}

}  // namespace epjit::jit::nvrtc

namespace epjit::jit {

nvrtc_report probe_nvrtc(const nvrtc_options& options) {
    const nvrtc::library lib = nvrtc::open_library(options);
    return {lib.path, fmt::format("{}.{}", lib.major, lib.minor), lib.builtins_path, lib.identity.description,
            lib.tried};
}

}  // namespace epjit::jit
