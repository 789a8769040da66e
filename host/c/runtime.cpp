// SPDX-License-Identifier: Apache-2.0
// Errors, runtimes and model shapes in C.
#include "epjit/epjit.h"
#include "epjit/error.hpp"
#include "epjit/jit/model.hpp"
#include "host/c/enumerations.hpp"
#include "host/c/guard.hpp"
#include "host/c/handles.hpp"
#include "host/c/structs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>

using namespace epjit::host::c;

namespace {

epjit_runtime_options default_options() {
    const epjit::runtime_options d;
    epjit_runtime_options o{};
    o.struct_size = sizeof o;
    o.offline = d.offline;
    o.cache_max_bytes = d.cache_max_bytes;
    o.cache_max_files = d.cache_max_files;
    o.lock_timeout_ms = d.lock_timeout_ms;
    o.compile_timeout_ms = d.compile_timeout_ms;
    o.wait_timeout_ms = d.wait_timeout_ms;
    o.first_wait_timeout_ms = d.first_wait_timeout_ms;
    o.log_level = d.log_level;
    return o;
}

/// Gives a line to a C callback, which wants it to end with a nul. Long lines are cut where memory is short.
void log_line(void* user, epjit::log_level level, std::string_view line) noexcept {
    const auto& target = *static_cast<const log_target*>(user);
    char text[512];
    const auto cut = [&] {
        const std::size_t length = std::min(line.size(), sizeof text - 1);
        std::memcpy(text, line.data(), length);
        text[length] = '\0';
        return text;
    };
    try {
        std::string whole;
        if (line.size() >= sizeof text) {
            whole = line;
        }
        target.callback(target.user, static_cast<epjit_log_level>(level), whole.empty() ? cut() : whole.c_str());
    } catch (const std::bad_alloc&) {
        target.callback(target.user, static_cast<epjit_log_level>(level), cut());
    }
}

epjit::runtime_options to_cpp(const epjit_runtime_options& o, const log_target& log) {
    epjit::runtime_options r;
    r.cache_path = o.cache_path;
    r.cache_max_bytes = o.cache_max_bytes;
    r.cache_max_files = o.cache_max_files;
    r.lock_timeout_ms = o.lock_timeout_ms;
    r.compile_timeout_ms = o.compile_timeout_ms;
    r.wait_timeout_ms = o.wait_timeout_ms;
    r.first_wait_timeout_ms = o.first_wait_timeout_ms;
    r.offline = o.offline;
    r.template_dir = o.template_dir;
    r.nvrtc_library = o.nvrtc_library;
    r.nccl_library = o.nccl_library;
    r.cuda_library = o.cuda_library;
    r.profile = o.profile;
    r.exchange = o.exchange;
    if (log.callback != nullptr) {
        r.log = log_line;
        r.log_user = const_cast<log_target*>(&log);
    }
    r.log_level = o.log_level;
    return r;
}

epjit_model_shape to_c(const epjit::jit::model_shape& m) {
    epjit_model_shape s{};
    s.hidden = m.hidden;
    s.num_experts = m.num_experts;
    s.topk = m.topk;
    s.token_type = static_cast<epjit_dtype>(m.token_type);
    s.fp8_dispatch = m.fp8_dispatch ? 1 : 0;
    s.fp8_scales = static_cast<epjit_scale_type>(m.fp8_scales);
    std::memcpy(s.name, m.name.data(), std::min(m.name.size(), sizeof s.name - 1));
    return s;
}

}  // namespace

const char* epjit_last_error(void) {
    return last_error().text;
}

epjit_status epjit_last_error_detail(epjit_error* out) {
    const epjit_error seen = last_error();  // before a failure of this very call takes its place
    return guarded([&] { write_struct(out, seen); });
}

epjit_status epjit_runtime_options_init(epjit_runtime_options* options, size_t struct_size) {
    return guarded([&] { init_struct(options, struct_size, default_options()); });
}

epjit_status epjit_runtime_create(const epjit_runtime_options* options, epjit_runtime** out) {
    return guarded([&] {
        not_null(out, "out") = nullptr;
        const epjit_runtime_options o =
            options != nullptr ? read_struct(options, default_options()) : default_options();
        auto log = std::make_shared<const log_target>(log_target{o.log, o.log_user});
        epjit::runtime object(to_cpp(o, *log));
        *out = new epjit_runtime{std::move(log), std::move(object)};
    });
}

void epjit_runtime_destroy(epjit_runtime* runtime) {
    delete runtime;
}

epjit_status epjit_runtime_counters(const epjit_runtime* runtime, epjit_counters* out) {
    return guarded([&] {
        const epjit::counters seen = not_null(runtime, "runtime").object.counters();
        epjit_counters c{};
        c.allocations = seen.allocations;
        c.compiles = seen.compiles;
        c.cache_memory_hits = seen.cache_memory_hits;
        c.cache_disk_hits = seen.cache_disk_hits;
        c.modules_loaded = seen.modules_loaded;
        c.uploads = seen.uploads;
        c.host_waits = seen.host_waits;
        c.launches = seen.launches;
        write_struct(out, c);
    });
}

epjit_status epjit_runtime_visit_launches(const epjit_runtime* runtime, epjit_launch_visitor visitor, void* user) {
    struct visit {
        epjit_launch_visitor visitor;
        void* user;
    };
    return guarded([&] {
        not_null(runtime, "runtime");
        if (visitor == nullptr) {
            fail_null("visitor");
        }
        visit v{visitor, user};
        runtime->object.visit_launches(
            [](void* given, std::string_view kernel, std::uint64_t launches) {
                const auto& to = *static_cast<const visit*>(given);
                to.visitor(to.user, std::string(kernel).c_str(), launches);
            },
            &v);
    });
}

int32_t epjit_num_models(void) {
    return static_cast<int32_t>(epjit::jit::builtin_models().size());
}

epjit_status epjit_get_model(int32_t index, epjit_model_shape* out) {
    return guarded([&] {
        const auto models = epjit::jit::builtin_models();
        if (index < 0 || static_cast<std::size_t>(index) >= models.size()) {
            throw epjit::config_error(fmt::format("model {} of {}", index, models.size()),
                                      "pass an index from 0 up, below epjit_num_models()");
        }
        write_struct(out, to_c(models[index]));
    });
}

epjit_status epjit_find_model(const char* name, epjit_model_shape* out) {
    return guarded([&] { write_struct(out, to_c(epjit::jit::find_model(&not_null(name, "name")))); });
}

epjit_status epjit_load_model_config(const char* path, epjit_model_shape* out) {
    return guarded([&] { write_struct(out, to_c(epjit::jit::load_model_config(&not_null(path, "path")))); });
}

epjit_status epjit_parse_model_config(const char* json, const char* origin, epjit_model_shape* out) {
    return guarded([&] {
        write_struct(out, to_c(epjit::jit::parse_model_config(&not_null(json, "json"), &not_null(origin, "origin"))));
    });
}
