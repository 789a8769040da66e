// SPDX-License-Identifier: Apache-2.0
#include "host/report/report.hpp"

#include "epjit/error.hpp"
#include "host/nccl/communicator.hpp"
#include "host/runtime/runtime_state.hpp"

#include <utility>

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

}  // namespace

nccl_report probe_nccl(const std::string& library) {
    nccl_report report;
    try {
        const std::shared_ptr<const nccl_api> api = open_nccl(library);
        report.found = true;
        report.path = api->path;
        report.version = api->version;
        report.tried = api->tried;
        report.no_windows = no_windows_reason(*api);
    } catch (const error& problem) {
        report.problem = problem.message();
        report.remedy = problem.remedy();
    }
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
    const auto demand = [&](const readiness_record* record, const char* where) {
        for (blocker& b : blockers_of(record != nullptr ? *record : readiness_record{where, {}, {}})) {
            report.blockers.push_back(std::move(b));
        }
    };
    const auto seen = [&](bool loopback) -> const readiness_record* {
        for (const readiness_record& r : machine.exchanges) {
            if ((r.where == name(exchange_kind::loopback)) == loopback) {
                return &r;
            }
        }
        return nullptr;
    };
    demand(seen(true), "loopback");
    if (machine.driver.gpus.size() > 1) {
        demand(seen(false), "real ranks");
    }
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
