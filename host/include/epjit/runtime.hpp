// SPDX-License-Identifier: Apache-2.0
// The root object: options, loaders, cache and counters. No mutable global state: two runtimes are independent.
#pragma once

#include "epjit/export.hpp"
#include "epjit/log.hpp"
#include "epjit/types.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace epjit {

namespace host {
struct runtime_state;
}

/// Options of a runtime. Null strings and negative numbers mean: take the environment variable named beside the
/// field, else its default. The environment is read once, at construction.
struct runtime_options {
    std::uint32_t version = 1;                ///< of this struct
    const char* cache_path = nullptr;         ///< EPJIT_CACHE_PATH; "" disables the disk
    std::int64_t cache_max_bytes = -1;        ///< EPJIT_CACHE_MAX_BYTES, 2 GiB
    std::int64_t cache_max_files = -1;        ///< EPJIT_CACHE_MAX_FILES, 20,000
    std::int64_t lock_timeout_ms = -1;        ///< EPJIT_LOCK_TIMEOUT_MS, 30,000
    std::int64_t compile_timeout_ms = -1;     ///< EPJIT_COMPILE_TIMEOUT_MS, 60,000
    std::int64_t wait_timeout_ms = -1;        ///< EPJIT_WAIT_TIMEOUT_MS, 30,000
    std::int64_t first_wait_timeout_ms = -1;  ///< EPJIT_FIRST_WAIT_TIMEOUT_MS, 300,000
    int offline = -1;                         ///< EPJIT_OFFLINE
    const char* template_dir = nullptr;       ///< EPJIT_TEMPLATE_DIR
    const char* nvrtc_library = nullptr;      ///< EPJIT_NVRTC_LIBRARY
    const char* nccl_library = nullptr;       ///< EPJIT_NCCL_LIBRARY
    const char* cuda_library = nullptr;       ///< EPJIT_CUDA_LIBRARY
    const char* profile = nullptr;            ///< EPJIT_PROFILE
    const char* exchange = nullptr;           ///< EPJIT_EXCHANGE
    log_callback log = nullptr;               ///< null: stderr
    void* log_user = nullptr;
    int log_level = -1;  ///< EPJIT_LOG, warn
};

/// Outcomes since construction; contract 3's counters stand still on the hot path.
struct counters {
    std::uint64_t allocations = 0;  ///< device and pinned allocations made by the library
    std::uint64_t compiles = 0;
    std::uint64_t cache_memory_hits = 0;
    std::uint64_t cache_disk_hits = 0;
    std::uint64_t modules_loaded = 0;
    std::uint64_t uploads = 0;     ///< copies of static tables and resident tensors to where ranks use them
    std::uint64_t host_waits = 0;  ///< bounded polls of a pinned counter
    std::uint64_t launches = 0;
};

/// Called once for each kernel that was launched.
using launch_visitor = void (*)(void* user, std::string_view kernel, std::uint64_t launches);

class EPJIT_API runtime {
   public:
    /// Opens nothing yet: libraries are loaded when first needed. @throws config_error on bad values.
    explicit runtime(const runtime_options& options = {});
    ~runtime();
    runtime(runtime&&) noexcept;
    runtime& operator=(runtime&&) noexcept;

    [[nodiscard]] epjit::counters counters() const noexcept;
    void visit_launches(launch_visitor visitor, void* user) const;
    /// The library's version, "0.1.0".
    static std::string_view version() noexcept;

    [[nodiscard]] host::runtime_state& state() const noexcept { return *state_; }

   private:
    std::shared_ptr<host::runtime_state> state_;
    friend class communicator;
};

}  // namespace epjit
