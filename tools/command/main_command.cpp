// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"
#include "epjit/runtime.hpp"
#include "tools/command/context.hpp"
#include "tools/command/signals.hpp"
#include "tools/worker/worker.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

namespace epjit::tools {
namespace {

int run_named(context& ctx) {
    const std::string_view name = ctx.call.command->name;
    struct entry {
        std::string_view name;
        int (*run)(context&);
    };
    static constexpr entry table[] = {
        {"warm", warm_command},     {"cache", cache_command},     {"inspect", inspect_command},
        {"models", models_command}, {"doctor", doctor_command},   {"completion", completion_command},
        {"bench", bench_command},   {"explain", explain_command}, {"run", run_command},
        {"tune", tune_command},
    };
    for (const entry& e : table) {
        if (e.name == name) {
            return e.run(ctx);
        }
    }
    throw error(error_kind::internal, fmt::format("`epjit {}` is in the catalogue and has no function", name));
}

int dispatch(context& ctx) {
    if (ctx.call.has("--version")) {
        if (ctx.json) {
            print_json({{"version", runtime::version()}});
        } else {
            print(fmt::format("epjit {}\n", runtime::version()));
        }
        return exit_done;
    }
    if (ctx.call.has("--help")) {
        const std::string text = help_text(ctx.call.command);
        if (ctx.json) {
            print_json({{"help", text}});
        } else {
            print(text);
        }
        return exit_done;
    }
    if (ctx.call.command == nullptr) {
        throw config_error(
            "no command was given; expected one of: warm, run, cache, inspect, models, explain, doctor, "
            "bench, tune, completion",
            "see `epjit --help`");
    }
    const auto required = ctx.call.command->arguments;
    for (std::size_t i = ctx.call.arguments.size(); i < required.size() && required[i].required; ++i) {
        throw config_error(fmt::format("epjit {} needs an argument: {} ({})", ctx.call.command->name, required[i].name,
                                       required[i].help),
                           fmt::format("see `epjit {} --help`", ctx.call.command->name));
    }
    ctx.env = host::read_settings({});
    ctx.log = ctx.env.log;
    ctx.cache_dir = ctx.call.value("--cache-dir");
    if (ctx.cache_dir && ctx.cache_dir->empty()) {
        throw config_error("--cache-dir: expected a directory, found an empty text");
    }
    return run_named(ctx);
}

int report(const std::exception_ptr& failure, bool json) {
    const failure_text text = describe_failure(failure);
    if (text.kind == error_kind::cancelled) {
        std::fputs("epjit: interrupted\n", stderr);
    } else {
        std::fputs(fmt::format("epjit: error: {}\n", text.message).c_str(), stderr);
        if (!text.remedy.empty()) {
            std::fputs(fmt::format("  remedy: {}\n", text.remedy).c_str(), stderr);
        }
    }
    if (json) {
        print_json({{"error", error_json(failure)}});
    }
    try {
        std::rethrow_exception(failure);
    } catch (const command_error& e) {
        return e.status();
    } catch (...) {
        return status_of(text.kind);
    }
}

}  // namespace

std::unique_ptr<cache::store> open_strict_store(const context& ctx, bool create) {
    cache::store_options options = ctx.store_options(true);
    options.create = create;
    try {
        return std::make_unique<cache::store>(options);
    } catch (const cache_error& e) {
        throw command_error(exit_usage, error_kind::cache, e.message(), e.remedy());
    }
}

cache::store_options context::store_options(bool strict) const {
    cache::store_options options;
    if (cache_dir) {
        options.layers = {*cache_dir};
        options.strict = strict;
    } else {
        options.layers = env.cache_layers;
    }
    options.max_bytes = env.cache_max_bytes;
    options.max_files = env.cache_max_files;
    options.lock_timeout = env.lock_timeout;
    options.compile_timeout = env.compile_timeout;
    options.offline = env.offline;
    options.log = log;
    return options;
}

epjit::runtime_options context::runtime_options() const {
    epjit::runtime_options options;
    options.cache_path = cache_dir ? cache_dir->c_str() : nullptr;
    return options;
}

int status_of(error_kind kind) noexcept {
    switch (kind) {
        case error_kind::config: return exit_usage;
        case error_kind::unsupported:
        case error_kind::library:
        case error_kind::offline_miss: return exit_missing;
        case error_kind::cancelled: return exit_interrupted;
        default: return exit_check_failed;
    }
}

failure_text describe_failure(const std::exception_ptr& failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const error& e) {
        return {e.kind(), e.message(), e.remedy()};
    } catch (const std::bad_alloc&) {
        return {error_kind::internal, "out of memory", "free memory, or give a smaller shape"};
    } catch (const std::exception& e) {
        return {error_kind::internal, e.what(), ""};
    } catch (...) {
        return {error_kind::internal, "an unknown exception", ""};
    }
}

nlohmann::ordered_json error_json(const std::exception_ptr& failure) {
    const failure_text text = describe_failure(failure);
    return {{"kind", name(text.kind)}, {"message", text.message}, {"remedy", text.remedy}};
}

int main_command(int argc, char** argv) {
    open_standard_streams();
    if (argc > 1 && std::strcmp(argv[1], worker_argument) == 0) {
        return worker_main(argc, argv);
    }
    install_signal_handlers();
    context ctx;
    for (int i = 1; i < argc; ++i) {  // known before parsing, since bad usage is reported as JSON too
        ctx.json = ctx.json || std::strcmp(argv[i], "--json") == 0;
    }
    try {
        ctx.call = parse(argc, argv);
        return write_status(dispatch(ctx));
    } catch (...) {
        return write_status(report(std::current_exception(), ctx.json));
    }
}

}  // namespace epjit::tools
