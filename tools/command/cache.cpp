// SPDX-License-Identifier: Apache-2.0
#include "tools/command/context.hpp"
#include "tools/command/table.hpp"
#include "tools/command/values.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <ctime>
#include <unistd.h>

namespace epjit::tools {
namespace {

using json = nlohmann::ordered_json;

std::uint64_t total_bytes(const std::vector<cache::entry_info>& entries) {
    std::uint64_t bytes = 0;
    for (const auto& e : entries) {
        bytes += e.bytes;
    }
    return bytes;
}

const std::string& written_or_throw(const cache::store& store) {
    if (store.written_layer().empty()) {
        throw command_error(exit_missing, error_kind::cache, "no cache directory can be written",
                            "set HOME, XDG_CACHE_HOME or EPJIT_CACHE_PATH to a directory you own, or give --cache-dir");
    }
    return store.written_layer();
}

/// Where the entries are, for people.
std::string place(const context& ctx) {
    const auto layers = ctx.store_options(true).layers;
    return layers.empty() ? "no directory" : fmt::format("{}", fmt::join(layers, ", "));
}

int list(context& ctx) {
    const auto store = open_strict_store(ctx, false);
    auto entries = store->list();
    if (ctx.json) {
        auto array = json::array();
        for (const auto& e : entries) {
            array.push_back({{"key", e.key.hex()},
                             {"path", e.path},
                             {"kernels", e.kernels},
                             {"arch", e.arch},
                             {"bytes", e.bytes},
                             {"last_used", e.last_used}});
        }
        print_json({{"entries", std::move(array)}, {"bytes", total_bytes(entries)}});
        return exit_done;
    }
    std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.spec < b.spec; });
    table t({{"key"}, {"size", true}, {"used"}, {"compiler"}, {"variant"}});
    const auto now = static_cast<std::int64_t>(std::time(nullptr));
    for (const auto& e : entries) {
        t.add({e.key.hex().substr(0, 12), bytes_text(e.bytes), age_text(e.last_used, now), e.compiler_description,
               e.spec});
    }
    print(fmt::format("{}{}{} {}, {} in {}\n", entries.empty() ? "" : t.text(), entries.empty() ? "" : "\n",
                      entries.size(), entries.size() == 1 ? "entry" : "entries", bytes_text(total_bytes(entries)),
                      place(ctx)));
    return exit_done;
}

int verify(context& ctx) {
    const auto store = open_strict_store(ctx, false);
    const auto result = store->verify();
    if (ctx.json) {
        print_json({{"entries", result.entries}, {"bad", result.bad}});
    } else {
        for (const std::string& path : result.bad_paths) {
            print(fmt::format("bad: {}\n", path));
        }
        print(fmt::format("{} {}, {} bad in {}\n", result.entries, result.entries == 1 ? "entry" : "entries",
                          result.bad, place(ctx)));
        if (result.bad > 0) {
            print("a bad entry is never used: the next run that needs it sets it aside and compiles it again\n");
        }
    }
    return result.bad == 0 ? exit_done : exit_check_failed;
}

int prune(context& ctx) {
    std::optional<std::uint64_t> most;
    if (const auto text = ctx.call.value("--max-bytes")) {
        most = byte_count(*text);
        if (!most) {
            refuse_value("--max-bytes", "a number of bytes such as 500000000, 500M or 2G", *text);
        }
    }
    const auto store = open_strict_store(ctx, false);
    written_or_throw(*store);
    const std::uint64_t evicted = store->prune(most);
    std::vector<cache::entry_info> left = store->list();
    std::erase_if(left, [](const auto& e) { return e.layer != 0; });
    if (ctx.json) {
        print_json({{"evicted", evicted}, {"entries", left.size()}, {"bytes", total_bytes(left)}});
    } else {
        print(fmt::format("{} evicted; {} left, {} in {}\n", evicted, left.size(), bytes_text(total_bytes(left)),
                          store->written_layer()));
    }
    return exit_done;
}

int path(context& ctx) {
    const auto store = open_strict_store(ctx, false);
    const auto layers = ctx.store_options(true).layers;
    // A directory that is not there yet will be made by the first warm.
    const std::string written =
        !store->written_layer().empty() || layers.empty() || ::access(layers[0].c_str(), F_OK) == 0
            ? written_or_throw(*store)
            : layers[0];
    if (ctx.json) {
        print_json({{"path", written}, {"layers", layers}});
    } else {
        print(written + "\n");
    }
    return exit_done;
}

int export_pack(context& ctx, const std::string& file) {
    const auto store = open_strict_store(ctx, false);
    jit::digest digest;
    const std::uint64_t entries = store->export_to(file, &digest);
    if (ctx.json) {
        print_json({{"exported", entries}, {"file", file}, {"digest", digest.hex()}});
    } else {
        print(fmt::format("{} entries exported to {}\ndigest {} (give it to import as --digest)\n", entries, file,
                          digest.hex()));
    }
    return exit_done;
}

int import_pack(context& ctx, const std::string& file) {
    std::optional<jit::digest> expected;
    if (const auto text = ctx.call.value("--digest")) {
        expected = jit::digest::from_hex(*text);
        if (!expected) {
            refuse_value("--digest", "32 hex digits, as export prints them", *text);
        }
    }
    if (::access(file.c_str(), R_OK) != 0) {
        throw config_error(fmt::format("cannot read {}: {}", file, std::strerror(errno)),
                           "give the file that `epjit cache export` wrote");
    }
    const auto store = open_strict_store(ctx, true);
    written_or_throw(*store);
    std::uint64_t entries = 0;
    try {
        entries = store->import_from(file, expected ? &*expected : nullptr);
    } catch (const cache_error& e) {  // a damaged or foreign file is bad input
        throw command_error(exit_usage, error_kind::cache, e.message(), e.remedy());
    }
    if (ctx.json) {
        print_json({{"imported", entries}, {"file", file}});
    } else {
        print(fmt::format("{} entries imported into {}\n", entries, store->written_layer()));
    }
    return exit_done;
}

}  // namespace

int cache_command(context& ctx) {
    const std::string& action = ctx.call.arguments[0];
    const bool takes_file = action == "export" || action == "import";
    if (takes_file != (ctx.call.arguments.size() == 2)) {
        throw config_error(takes_file ? fmt::format("epjit cache {} needs a FILE", action)
                                      : fmt::format("epjit cache {} does not expect the argument \"{}\"", action,
                                                    ctx.call.arguments[1]),
                           "see `epjit cache --help`");
    }
    if (ctx.call.has("--max-bytes") && action != "prune") {
        throw config_error(fmt::format("--max-bytes belongs to epjit cache prune, not to {}", action));
    }
    if (ctx.call.has("--digest") && action != "import") {
        throw config_error(fmt::format("--digest belongs to epjit cache import, not to {}", action));
    }
    if (takes_file) {
        return action == "export" ? export_pack(ctx, ctx.call.arguments[1]) : import_pack(ctx, ctx.call.arguments[1]);
    }
    if (action == "list") {
        return list(ctx);
    }
    if (action == "verify") {
        return verify(ctx);
    }
    if (action == "prune") {
        return prune(ctx);
    }
    if (action == "path") {
        return path(ctx);
    }
    throw config_error(
        fmt::format("epjit cache: expected list, verify, prune, path, export or import, found \"{}\"", action),
        "see `epjit cache --help`");
}

}  // namespace epjit::tools
