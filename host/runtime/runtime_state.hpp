// SPDX-License-Identifier: Apache-2.0
// What a runtime holds: loaders opened when first needed, the cache, contexts, loaded kernels and counters.
// Thread-safe.
#pragma once

#include "epjit/cache/store.hpp"
#include "epjit/jit/compiler.hpp"
#include "epjit/jit/profile.hpp"
#include "epjit/jit/spec.hpp"
#include "epjit/jit/templates.hpp"
#include "host/driver/device.hpp"
#include "host/nccl/api.hpp"
#include "host/runtime/settings.hpp"

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace epjit::host {

/// Launches of all kernels of one name. Lives as long as the runtime, never moves.
struct launch_counter {
    std::string kernel;
    std::atomic<std::uint64_t> launches{0};
};

/// A kernel ready to launch in one context.
struct loaded_kernel {
    cu_function function = nullptr;
    launch_counter* counter = nullptr;
    const jit::kernel_info* info = nullptr;

    [[nodiscard]] explicit operator bool() const noexcept { return function != nullptr; }
};

/// An artifact loaded into a context.
class loaded_variant {
   public:
    loaded_variant(std::shared_ptr<const jit::artifact> artifact, gpu_module module) noexcept
        : artifact_(std::move(artifact)), module_(std::move(module)) {}

    [[nodiscard]] const jit::artifact& artifact() const noexcept { return *artifact_; }
    /// An empty kernel when the artifact has none of that name.
    [[nodiscard]] loaded_kernel find(std::string_view name) const noexcept;
    /// @throws error (internal) when the artifact has none of that name.
    [[nodiscard]] loaded_kernel get(std::string_view name) const;

   private:
    friend struct runtime_state;
    std::shared_ptr<const jit::artifact> artifact_;
    gpu_module module_;
    std::vector<loaded_kernel> kernels_;
};

struct runtime_state {
    explicit runtime_state(settings s) : options(std::move(s)) {}
    runtime_state(const runtime_state&) = delete;
    runtime_state& operator=(const runtime_state&) = delete;

    const settings options;

    [[nodiscard]] const logger& log() const noexcept { return options.log; }
    /// @throws config_error when EPJIT_TEMPLATE_DIR cannot be read.
    const jit::template_set& templates();
    /// @throws cache_error when options.strict_cache and the layer cannot be used.
    cache::store& store();
    /// Null when NVRTC is not there (see compiler_failure()) or in offline mode.
    std::shared_ptr<jit::compiler> compiler();
    /// Why compiler() is null; empty otherwise.
    std::exception_ptr compiler_failure();
    /// @throws library_error; tried anew by each call until it succeeds.
    std::shared_ptr<const driver_api> driver();
    /// @throws library_error; tried anew by each call until it succeeds.
    std::shared_ptr<const nccl_api> nccl();
    /// EPJIT_PROFILE, read once; null where there is none. @throws config_error, unsupported_error: anew by each call.
    std::shared_ptr<const jit::profile> profile();
    /// The primary context of `device`, retained until the runtime and everything made in it are gone.
    /// @throws library_error, config_error, cuda_error.
    shared_context context(int device);

    /// Serves each spec from memory, the cache or the compiler. @throws what the first failing variant gave:
    /// compile_error, offline_miss_error (naming the key, the spec and the nearest entry), library_error (a
    /// miss and no NVRTC), timeout_error.
    std::vector<std::shared_ptr<const jit::artifact>> artifacts(std::span<const jit::variant_spec> specs);
    /// The same, loaded into `context`; each variant is loaded once per context. A driver that rejects a
    /// verified entry gets one recompiled cubin. @throws as artifacts(), and cuda_error.
    std::vector<std::shared_ptr<const loaded_variant>> load(const shared_context& context,
                                                            std::span<const jit::variant_spec> specs);

    launch_counter& launches_of(std::string_view kernel);
    void visit_launches(launch_visitor visitor, void* user) const;
    [[nodiscard]] epjit::counters counters() const noexcept;

    std::atomic<std::uint64_t> allocations{0}, uploads{0}, host_waits{0}, modules_loaded{0}, launches{0};

   private:
    std::shared_ptr<const loaded_variant> load_one(const shared_context& context, const jit::variant_spec& spec,
                                                   std::shared_ptr<const jit::artifact> artifact);
    [[noreturn]] void fail_miss(const jit::variant_spec& spec, const jit::digest& key, const std::exception_ptr& why);

    mutable std::mutex mutex_;
    std::optional<jit::template_set> templates_;
    std::unique_ptr<cache::store> store_;
    std::atomic<const cache::store*> opened_store_{nullptr};  ///< for counters(), which takes no lock
    std::shared_ptr<jit::compiler> compiler_;
    std::exception_ptr compiler_failure_;
    std::shared_ptr<const driver_api> driver_;
    std::shared_ptr<const nccl_api> nccl_;
    std::shared_ptr<const jit::profile> profile_;
    std::map<int, shared_context> contexts_;
    std::map<std::pair<const device_context*, jit::digest>, std::shared_ptr<const loaded_variant>> loaded_;
    std::deque<launch_counter> launch_counters_;
    std::atomic<std::uint64_t> recompiles_{0};
};

/// The target to compile for: architecture-specific ("sm_90a") where there is one.
jit::target_arch device_arch(int compute_major, int compute_minor) noexcept;

}  // namespace epjit::host
