// SPDX-License-Identifier: Apache-2.0
#include "host/runtime/runtime_state.hpp"

#include "cache/nearest.hpp"
#include "epjit/error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

namespace epjit::host {

jit::target_arch device_arch(int compute_major, int compute_minor) noexcept {
    jit::target_arch arch;
    arch.number = static_cast<std::uint16_t>(compute_major * 10 + compute_minor);
    arch.suffix = compute_major >= 9 ? 'a' : '\0';
    return arch;
}

loaded_kernel loaded_variant::find(std::string_view name) const noexcept {
    for (const loaded_kernel& kernel : kernels_) {
        if (kernel.info->name == name) {
            return kernel;
        }
    }
    return {};
}

loaded_kernel loaded_variant::get(std::string_view name) const {
    const loaded_kernel kernel = find(name);
    if (!kernel) {
        throw error(error_kind::internal, fmt::format("variant '{}' has no kernel '{}'", artifact_->spec, name));
    }
    return kernel;
}

const jit::template_set& runtime_state::templates() {
    const std::lock_guard lock(mutex_);
    if (!templates_) {
        templates_ = options.template_dir.empty() ? jit::template_set::embedded()
                                                  : jit::template_set::from_directory(options.template_dir);
    }
    return *templates_;
}

cache::store& runtime_state::store() {
    const std::lock_guard lock(mutex_);
    if (store_ == nullptr) {
        cache::store_options wanted;
        wanted.layers = options.cache_layers;
        wanted.max_bytes = options.cache_max_bytes;
        wanted.max_files = options.cache_max_files;
        wanted.lock_timeout = options.lock_timeout;
        wanted.compile_timeout = options.compile_timeout;
        wanted.offline = options.offline;
        wanted.strict = options.strict_cache;
        wanted.log = options.log;
        if (options.cache_disabled) {
            wanted.log.level = log_level::error;  // who turned the disk off need not hear that it is off
        }
        store_ = std::make_unique<cache::store>(wanted);
        opened_store_.store(store_.get(), std::memory_order_release);
    }
    return *store_;
}

std::shared_ptr<jit::compiler> runtime_state::compiler() {
    if (options.offline) {
        return nullptr;
    }
    const jit::template_set& set = templates();
    const std::lock_guard lock(mutex_);
    if (compiler_ == nullptr && compiler_failure_ == nullptr) {
        try {
            compiler_ = jit::open_nvrtc({options.nvrtc_library, options.log}, set);
        } catch (const library_error& failure) {
            // Not fatal: with a warm cache nothing needs compiling. It is reported when something does.
            compiler_failure_ = std::current_exception();
            options.log.write(log_level::info, fmt::format("going on without NVRTC: {}", failure.message()));
        }
    }
    return compiler_;
}

std::exception_ptr runtime_state::compiler_failure() {
    compiler();
    const std::lock_guard lock(mutex_);
    return compiler_failure_;
}

std::shared_ptr<const driver_api> runtime_state::driver() {
    const std::lock_guard lock(mutex_);
    if (driver_ == nullptr) {
        driver_ = open_driver(options.cuda_library);
    }
    return driver_;
}

std::shared_ptr<const nccl_api> runtime_state::nccl() {
    const std::lock_guard lock(mutex_);
    if (nccl_ == nullptr) {
        nccl_ = open_nccl(options.nccl_library);
    }
    return nccl_;
}

std::shared_ptr<const jit::profile> runtime_state::profile() {
    const std::lock_guard lock(mutex_);
    if (profile_ == nullptr && !options.profile.empty()) {
        profile_ = std::make_shared<const jit::profile>(jit::load_profile(options.profile));
    }
    return profile_;
}

shared_context runtime_state::context(int device) {
    std::shared_ptr<const driver_api> api = driver();
    const std::lock_guard lock(mutex_);
    shared_context& context = contexts_[device];
    if (context == nullptr) {
        try {
            context = device_context::retain(std::move(api), device);
        } catch (...) {
            contexts_.erase(device);
            throw;
        }
    }
    return context;
}

std::vector<std::shared_ptr<const jit::artifact>> runtime_state::artifacts(std::span<const jit::variant_spec> specs) {
    const jit::template_set& set = templates();
    std::vector<jit::compile_job> jobs;
    jobs.reserve(specs.size());
    for (const jit::variant_spec& spec : specs) {
        jobs.push_back({spec, jit::variant_key(spec, set)});
    }
    const std::shared_ptr<jit::compiler> with = compiler();
    const int parallelism = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    const std::vector<cache::served> served = store().get(jobs, with.get(), parallelism);
    std::vector<std::shared_ptr<const jit::artifact>> values;
    values.reserve(served.size());
    for (std::size_t i = 0; i < served.size(); ++i) {
        if (served[i].failure == nullptr && served[i].value != nullptr) {
            values.push_back(served[i].value);
        } else if (with == nullptr) {
            fail_miss(specs[i], jobs[i].key, served[i].failure);
        } else {
            std::rethrow_exception(served[i].failure);
        }
    }
    return values;
}

void runtime_state::fail_miss(const jit::variant_spec& spec, const jit::digest& key, const std::exception_ptr& why) {
    const std::string wanted = jit::describe(spec);
    const std::string edited = templates().directory();
    const std::string nearest = cache::detail::nearest_difference(wanted, store().list()) +
                                (edited.empty() ? "" : fmt::format("; EPJIT_TEMPLATE_DIR is {}", edited));
    if (options.offline) {
        throw offline_miss_error(
            fmt::format("offline, and no cache layer holds {} ({}); {}", key.hex(), wanted, nearest),
            "warm the cache with 'epjit warm' for this model and arch, or unset EPJIT_OFFLINE");
    }
    std::string reason = "NVRTC is not available";
    try {
        if (const std::exception_ptr failure = compiler_failure()) {
            std::rethrow_exception(failure);
        }
        if (why != nullptr) {
            std::rethrow_exception(why);
        }
    } catch (const error& failure) {
        reason = failure.message();
    }
    throw library_error(fmt::format("no cache layer holds {} ({}), and it cannot be compiled: {}; {}", key.hex(),
                                    wanted, reason, nearest),
                        "install NVRTC or set EPJIT_NVRTC_LIBRARY, or warm the cache elsewhere with 'epjit warm'");
}

std::shared_ptr<const loaded_variant> runtime_state::load_one(const shared_context& context,
                                                              const jit::variant_spec& spec,
                                                              std::shared_ptr<const jit::artifact> artifact) {
    gpu_module module;
    try {
        module = gpu_module(context, artifact->cubin);
    } catch (const cuda_error& rejected) {
        const std::shared_ptr<jit::compiler> with = compiler();
        if (!image_rejected(rejected.code()) || with == nullptr) {
            throw;
        }
        log().write(log_level::warn,
                    fmt::format("the driver rejected the cached kernels of '{}', compiling them anew: {}",
                                artifact->spec, rejected.message()));
        auto fresh = std::make_shared<jit::artifact>(with->compile({spec, artifact->key}, options.compile_timeout));
        recompiles_.fetch_add(1, std::memory_order_relaxed);
        module = gpu_module(context, fresh->cubin);
        store().publish(*fresh);
        artifact = std::move(fresh);
    }
    modules_loaded.fetch_add(1, std::memory_order_relaxed);
    auto loaded = std::make_shared<loaded_variant>(std::move(artifact), std::move(module));
    for (const jit::kernel_info& info : loaded->artifact_->kernels) {
        loaded->kernels_.push_back({loaded->module_.function(info.lowered.c_str()), &launches_of(info.name), &info});
    }
    return loaded;
}

std::vector<std::shared_ptr<const loaded_variant>> runtime_state::load(const shared_context& context,
                                                                       std::span<const jit::variant_spec> specs) {
    const std::vector<std::shared_ptr<const jit::artifact>> values = artifacts(specs);
    std::vector<std::shared_ptr<const loaded_variant>> variants;
    variants.reserve(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::pair where{context.get(), values[i]->key};
        std::shared_ptr<const loaded_variant> found;
        {
            const std::lock_guard lock(mutex_);
            if (const auto at = loaded_.find(where); at != loaded_.end()) {
                found = at->second;
            }
        }
        if (found == nullptr) {
            found = load_one(context, specs[i], values[i]);
            const std::lock_guard lock(mutex_);
            found = loaded_.emplace(where, std::move(found)).first->second;
        }
        variants.push_back(std::move(found));
    }
    return variants;
}

launch_counter& runtime_state::launches_of(std::string_view kernel) {
    const std::lock_guard lock(mutex_);
    for (launch_counter& counter : launch_counters_) {
        if (counter.kernel == kernel) {
            return counter;
        }
    }
    launch_counter& counter = launch_counters_.emplace_back();
    counter.kernel = kernel;
    return counter;
}

void runtime_state::visit_launches(launch_visitor visitor, void* user) const {
    std::vector<std::pair<std::string, std::uint64_t>> seen;
    {
        const std::lock_guard lock(mutex_);
        for (const launch_counter& counter : launch_counters_) {
            if (const std::uint64_t n = counter.launches.load(std::memory_order_relaxed); n != 0) {
                seen.emplace_back(counter.kernel, n);
            }
        }
    }
    std::sort(seen.begin(), seen.end());
    for (const auto& [kernel, n] : seen) {
        visitor(user, kernel, n);
    }
}

epjit::counters runtime_state::counters() const noexcept {
    epjit::counters c;
    c.allocations = allocations.load(std::memory_order_relaxed);
    c.uploads = uploads.load(std::memory_order_relaxed);
    c.host_waits = host_waits.load(std::memory_order_relaxed);
    c.modules_loaded = modules_loaded.load(std::memory_order_relaxed);
    c.launches = launches.load(std::memory_order_relaxed);
    c.compiles = recompiles_.load(std::memory_order_relaxed);
    if (const cache::store* s = opened_store_.load(std::memory_order_acquire)) {
        c.compiles += s->counters().compiles.load(std::memory_order_relaxed);
        c.cache_memory_hits = s->counters().memory_hits.load(std::memory_order_relaxed);
        c.cache_disk_hits = s->counters().disk_hits.load(std::memory_order_relaxed);
    }
    return c;
}

}  // namespace epjit::host
