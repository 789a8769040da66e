// SPDX-License-Identifier: Apache-2.0
#include "host/runtime/settings.hpp"

#include "epjit/cache/store.hpp"
#include "epjit/error.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>

namespace epjit::host {
namespace {

const char* environment(const char* variable) {
    const char* value = std::getenv(variable);
    return value != nullptr && *value != '\0' ? value : nullptr;
}

std::string text(const char* option, const char* variable) {
    if (option != nullptr) {
        return option;
    }
    const char* value = environment(variable);
    return value != nullptr ? value : "";
}

std::int64_t number(std::int64_t option, const char* variable, std::int64_t otherwise, std::int64_t least,
                    std::int64_t most) {
    std::int64_t value = option;
    if (option < 0) {
        const char* given = environment(variable);
        if (given == nullptr) {
            return otherwise;
        }
        const std::string_view view(given);
        const auto [end, code] = std::from_chars(view.data(), view.data() + view.size(), value);
        if (code != std::errc{} || end != view.data() + view.size()) {
            throw config_error(fmt::format("{} is '{}', which is not a whole number", variable, view),
                               fmt::format("set it to a number from {} to {}, or unset it", least, most));
        }
    }
    if (value < least || value > most) {
        throw config_error(fmt::format("{}{} is {}, outside {} to {}", option < 0 ? "" : "the option for ", variable,
                                       value, least, most),
                           fmt::format("set it to a number from {} to {}, or leave it unset", least, most));
    }
    return value;
}

log_level read_level(int option) {
    if (option >= 0) {
        if (option > static_cast<int>(log_level::debug)) {
            throw config_error(fmt::format("runtime_options::log_level is {}, outside 0 to 3", option),
                               "use 0 (error), 1 (warn), 2 (info) or 3 (debug)");
        }
        return static_cast<log_level>(option);
    }
    const char* value = environment("EPJIT_LOG");
    if (value == nullptr) {
        return log_level::warn;
    }
    constexpr std::string_view names[] = {"error", "warn", "info", "debug"};
    for (unsigned char i = 0; i < 4; ++i) {
        if (names[i] == value) {
            return static_cast<log_level>(i);
        }
    }
    throw config_error(fmt::format("EPJIT_LOG is '{}'", value), "set it to error, warn, info or debug, or unset it");
}

exchange_kind read_exchange(const char* option) {
    const std::string value = text(option, "EPJIT_EXCHANGE");
    if (value.empty()) {
        return exchange_kind::automatic;
    }
    const auto kind = parse<exchange_kind>(value);
    if (!kind) {
        throw config_error(
            fmt::format("{} is '{}'", option != nullptr ? "runtime_options::exchange" : "EPJIT_EXCHANGE", value),
            "use auto, host, loopback, lsa, sendrecv, dense or hybrid");
    }
    return *kind;
}

}  // namespace

settings read_settings(const runtime_options& options) {
    if (options.version != 1) {
        throw config_error(fmt::format("runtime_options::version is {}, this library knows 1", options.version),
                           "build against the headers of the library that is loaded");
    }
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    constexpr std::int64_t day_ms = 86'400'000;
    settings s;
    // An empty option turns the disk off; an empty variable counts as not set.
    s.cache_disabled = options.cache_path != nullptr && *options.cache_path == '\0';
    if (!s.cache_disabled) {
        s.cache_layers =
            cache::default_layers(options.cache_path != nullptr ? options.cache_path : environment("EPJIT_CACHE_PATH"));
    }
    s.cache_max_bytes = static_cast<std::uint64_t>(
        number(options.cache_max_bytes, "EPJIT_CACHE_MAX_BYTES", std::int64_t{2} << 30, 0, most));
    s.cache_max_files =
        static_cast<std::uint64_t>(number(options.cache_max_files, "EPJIT_CACHE_MAX_FILES", 20'000, 0, most));
    using std::chrono::milliseconds;
    s.lock_timeout = milliseconds(number(options.lock_timeout_ms, "EPJIT_LOCK_TIMEOUT_MS", 30'000, 0, day_ms));
    s.compile_timeout = milliseconds(number(options.compile_timeout_ms, "EPJIT_COMPILE_TIMEOUT_MS", 60'000, 1, day_ms));
    s.wait_timeout = milliseconds(number(options.wait_timeout_ms, "EPJIT_WAIT_TIMEOUT_MS", 30'000, 1, day_ms));
    s.first_wait_timeout =
        milliseconds(number(options.first_wait_timeout_ms, "EPJIT_FIRST_WAIT_TIMEOUT_MS", 300'000, 1, day_ms));
    s.offline = number(options.offline, "EPJIT_OFFLINE", 0, 0, 1) != 0;
    s.template_dir = text(options.template_dir, "EPJIT_TEMPLATE_DIR");
    s.nvrtc_library = text(options.nvrtc_library, "EPJIT_NVRTC_LIBRARY");
    s.nccl_library = text(options.nccl_library, "EPJIT_NCCL_LIBRARY");
    s.nccl_blocking = number(-1, "EPJIT_NCCL_BLOCKING", 1, 0, 1) != 0;
    s.cuda_library = text(options.cuda_library, "EPJIT_CUDA_LIBRARY");
    s.profile = text(options.profile, "EPJIT_PROFILE");
    s.exchange = read_exchange(options.exchange);
    s.log = logger{options.log, options.log_user, read_level(options.log_level)};
    return s;
}

}  // namespace epjit::host
