// SPDX-License-Identifier: Apache-2.0
// Options of a runtime merged with the environment, once.
#pragma once

#include "epjit/runtime.hpp"
#include "epjit/types.hpp"

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace epjit::host {

struct settings {
    std::vector<std::string> cache_layers;  ///< empty: memory only
    bool cache_disabled = false;            ///< no layers because the caller wants none
    std::uint64_t cache_max_bytes = std::uint64_t{2} << 30;
    std::uint64_t cache_max_files = 20'000;
    std::chrono::milliseconds lock_timeout{30'000};
    std::chrono::milliseconds compile_timeout{60'000};
    std::chrono::milliseconds wait_timeout{30'000};
    std::chrono::milliseconds first_wait_timeout{300'000};
    bool offline = false;
    bool strict_cache = false;  ///< see cache::store_options::strict; set by the command's --cache-dir
    std::string template_dir;   ///< empty: embedded templates
    std::string nvrtc_library;
    std::string nccl_library;
    bool nccl_blocking = true;  ///< data moves on a blocking communicator, whose calls NCCL serves without a thread
    std::string cuda_library;
    std::string profile;
    exchange_kind exchange = exchange_kind::automatic;
    logger log;
};

/// Each field of `options` that is set wins over its environment variable; an empty variable counts as not
/// set.
/// @throws config_error naming the option or variable, its value and what is accepted.
settings read_settings(const runtime_options& options);

}  // namespace epjit::host
