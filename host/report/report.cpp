// SPDX-License-Identifier: Apache-2.0
#include "host/report/report.hpp"

#include "epjit/error.hpp"
#include "host/runtime/runtime_state.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>

namespace epjit::host {
namespace {

driver_report probe_driver(runtime_state& state) {
    driver_report report;
    try {
        const std::shared_ptr<const driver_api> api = state.driver();
        report.found = true;
        report.path = api->path;
        report.version = api->version;
        for (int i = 0; i < api->num_devices; ++i) {
            gpu_info gpu;
            gpu.index = i;
            cu_device ordinal = 0;
            api->check(api->device_get(&ordinal, i), "cuDeviceGet");
            char text[256] = {};
            api->check(api->device_name(text, sizeof text - 1, ordinal), "cuDeviceGetName");
            gpu.name = text;
            std::size_t bytes = 0;
            api->check(api->device_total_memory(&bytes, ordinal), "cuDeviceTotalMem");
            gpu.memory_bytes = bytes;
            const auto attribute = [&](device_attribute which) {
                int value = 0;
                api->check(api->device_get_attribute(&value, which, ordinal), "cuDeviceGetAttribute");
                return value;
            };
            gpu.compute_major = attribute(device_attribute::compute_major);
            gpu.compute_minor = attribute(device_attribute::compute_minor);
            gpu.num_sms = attribute(device_attribute::multiprocessors);
            report.gpus.push_back(std::move(gpu));
        }
    } catch (const error& problem) {
        report.problem = problem.message();
        report.remedy = problem.remedy();
    }
    return report;
}

nvrtc_report probe_nvrtc(runtime_state& state) {
    nvrtc_report report;
    try {
        // Offline mode does not open NVRTC; the report still wants to know whether it is there.
        std::shared_ptr<jit::compiler> compiler = state.compiler();
        if (compiler == nullptr) {
            compiler = jit::open_nvrtc({state.options.nvrtc_library, state.options.log}, state.templates());
        }
        report.found = true;
        report.description = compiler->identity().description;
        for (const jit::target_arch& arch : compiler->targets()) {
            report.targets.push_back(arch.text());
        }
    } catch (const error& problem) {
        report.problem = problem.message();
        report.remedy = problem.remedy();
    }
    return report;
}

void add_wheel(std::vector<std::string>& out, const char* variable) {
    const char* root = std::getenv(variable);
    if (root == nullptr || *root == '\0') {
        return;
    }
    namespace fs = std::filesystem;
    std::error_code ignored;
    bool found = false;
    for (fs::directory_iterator at(fs::path(root) / "lib", ignored), end; !ignored && at != end;
         at.increment(ignored)) {
        if (at->path().filename().string().starts_with("python")) {
            out.push_back((at->path() / "site-packages/nvidia/nccl/lib/libnccl.so.2").string());
            found = true;
        }
    }
    if (!found) {
        out.push_back(fmt::format("{}/lib/python*/site-packages/nvidia/nccl/lib/libnccl.so.2", root));
    }
}

}  // namespace

std::vector<std::string> nccl_candidates(const std::string& library) {
    if (!library.empty()) {
        return {library};
    }
    std::vector<std::string> out;
    for (const char* variable : {"NCCL_HOME", "NCCL_ROOT", "NCCL_ROOT_DIR"}) {
        if (const char* root = std::getenv(variable); root != nullptr && *root != '\0') {
            out.push_back(fmt::format("{}/lib/libnccl.so.2", root));
            out.push_back(fmt::format("{}/lib64/libnccl.so.2", root));
        }
    }
    add_wheel(out, "VIRTUAL_ENV");
    add_wheel(out, "CONDA_PREFIX");
    out.emplace_back("libnccl.so.2");
    return out;
}

nccl_report probe_nccl(const std::string& library) {
    nccl_report report;
    for (const std::string& candidate : nccl_candidates(library)) {
        void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle == nullptr) {
            const char* reason = dlerror();
            report.tried.push_back(fmt::format("{}: {}", candidate, reason != nullptr ? reason : "cannot be opened"));
            continue;
        }
        const auto get_version = reinterpret_cast<int (*)(int*)>(dlsym(handle, "ncclGetVersion"));
        int version = 0;
        if (get_version == nullptr || get_version(&version) != 0) {
            report.tried.push_back(fmt::format("{}: opened, but ncclGetVersion is missing or failed", candidate));
            dlclose(handle);
            continue;
        }
        // NCCL starts threads and registers exit handlers: it stays loaded.
        report.tried.push_back(fmt::format("{}: version {}", candidate, version));
        report.found = true;
        report.path = candidate;
        report.version = version;
        return report;
    }
    report.remedy =
        "only exchanges between GPUs need NCCL: install libnccl2 or the nvidia-nccl wheel, or set "
        "EPJIT_NCCL_LIBRARY to its libnccl.so.2";
    return report;
}

readiness_report assess_readiness(const machine_report& machine) {
    readiness_report report;
    if (!machine.driver.found) {
        report.blockers.push_back({"no_driver", "driver", machine.driver.problem});
    } else if (machine.driver.gpus.empty()) {
        report.blockers.push_back({"no_gpu", "driver", "the driver sees no GPU"});
    }
    if (!machine.nvrtc.found) {
        report.blockers.push_back({"no_nvrtc", "jit", "kernels that are not in the cache cannot be compiled"});
    }
    if (!machine.nccl.found) {
        report.blockers.push_back({"no_nccl", "nccl", "rows cannot travel between GPUs"});
    }
    report.blockers.push_back({"real_ranks_not_built", "exchange",
                               "lsa, sendrecv, dense and hybrid are not in this version; loopback and host are"});
    report.blockers.push_back({"capture_not_verified", "graph",
                               "capture, instantiation, replay and a verified result were not seen on this machine"});
    report.ready = report.blockers.empty();
    return report;
}

machine_report probe_machine(runtime_state& state) {
    machine_report report;
    report.driver = probe_driver(state);
    report.nvrtc = probe_nvrtc(state);
    report.nccl = probe_nccl(state.options.nccl_library);
    report.readiness = assess_readiness(report);
    return report;
}

}  // namespace epjit::host
