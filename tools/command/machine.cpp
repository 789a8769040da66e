// SPDX-License-Identifier: Apache-2.0
#include "tools/command/machine.hpp"

#include "host/dispatcher/tuning.hpp"
#include "host/driver/api.hpp"
#include "tools/command/values.hpp"

#include <algorithm>
#include <array>

namespace epjit::tools {
namespace {

constexpr std::string_view default_model = "qwen3-30b-a3b";

}  // namespace

jit::model_shape model_option(const invocation& call) {
    const auto model = call.value("--model");
    const auto config = call.value("--config");
    if (model && config) {
        throw config_error("--model and --config were both given; expected one of them");
    }
    if (config) {
        return jit::load_model_config(*config);
    }
    const std::string wanted = plain_name(model ? std::string_view(*model) : default_model);
    for (const jit::model_shape& m : jit::builtin_models()) {
        if (plain_name(m.name) == wanted) {
            return m;
        }
    }
    return jit::find_model(*model);  // throws, with near names
}

machine look_at_machine(const context& ctx) {
    machine result;
    try {
        const auto driver = host::open_driver(ctx.env.cuda_library);
        for (int i = 0; i < driver->num_devices; ++i) {
            host::cu_device device = 0;
            int major = 0, minor = 0;
            driver->check(driver->device_get(&device, i), "cuDeviceGet");
            driver->check(driver->device_get_attribute(&major, host::device_attribute::compute_major, device),
                          "cuDeviceGetAttribute");
            driver->check(driver->device_get_attribute(&minor, host::device_attribute::compute_minor, device),
                          "cuDeviceGetAttribute");
            const jit::target_arch arch{static_cast<std::uint16_t>(major * 10 + minor), major >= 9 ? 'a' : char{0}};
            if (std::find(result.archs.begin(), result.archs.end(), arch) == result.archs.end()) {
                result.archs.push_back(arch);
            }
            ++result.num_gpus;
        }
        std::array<char, 256> gpu{};
        driver->check(driver->device_name(gpu.data(), static_cast<int>(gpu.size()) - 1, 0), "cuDeviceGetName");
        result.gpu = gpu.data();
        result.link = host::link_of(*driver, 0);
    } catch (const error& e) {
        result = {};
        result.why_none = e.message();
    }
    return result;
}

std::optional<jit::profile> profile_option(const context& ctx) {
    if (const auto file = ctx.call.value("--profile")) {
        return jit::load_profile(*file);
    }
    return ctx.env.profile.empty() ? std::nullopt : std::optional(jit::load_profile(ctx.env.profile));
}

jit::template_set open_templates(const context& ctx) {
    return ctx.env.template_dir.empty() ? jit::template_set::embedded()
                                        : jit::template_set::from_directory(ctx.env.template_dir);
}

}  // namespace epjit::tools
