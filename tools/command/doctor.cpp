// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/api.hpp"
#include "host/report/report.hpp"
#include "host/runtime/runtime_state.hpp"
#include "tools/command/context.hpp"
#include "tools/command/values.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <cstring>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace epjit::tools {
namespace {

using json = nlohmann::ordered_json;

/// Nothing but this command's own ranks is waited for, and someone sits before it.
constexpr std::int64_t first_wait_ms = 30'000;

/// A layer of the cache as a person should see it.
struct layer_report {
    std::string path;
    bool written = false;  ///< the first; the others are only read
    bool usable = false;
    std::uint64_t entries = 0, bad = 0, bytes = 0, free_bytes = 0;
    std::string problem, remedy;
};

/// The nearest directory above `path` that exists.
std::string existing_parent(std::string path) {
    struct stat info {};
    while (path.size() > 1 && ::stat(path.c_str(), &info) != 0) {
        const std::size_t slash = path.find_last_of('/');
        path = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
    }
    return path;
}

layer_report look_at_layer(const context& ctx, const std::string& path, bool written) {
    layer_report report;
    report.path = path;
    report.written = written;
    cache::store_options options = ctx.store_options(true);
    options.layers = {path};
    options.strict = true;
    options.create = false;
    try {
        const cache::store store(options);
        const auto found = store.verify();
        report.entries = found.entries;
        report.bad = found.bad;
        for (const auto& e : store.list()) {
            report.bytes += e.bytes;
        }
        report.usable = true;
        const std::string parent = existing_parent(path);
        if (written && ::access(parent.c_str(), W_OK | X_OK) != 0) {
            report.usable = false;
            report.problem = fmt::format("{} cannot be written: {}", parent, std::strerror(errno));
            report.remedy = fmt::format("chown it to you, or set EPJIT_CACHE_PATH to a directory of yours");
        }
        struct statvfs space {};
        if (::statvfs(parent.c_str(), &space) == 0) {
            report.free_bytes = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
        }
        if (report.bad > 0) {
            report.problem = fmt::format("{} bad entries", report.bad);
            report.remedy = "nothing has to be done: a bad entry is set aside and compiled again when it is needed";
        }
    } catch (const error& e) {
        report.problem = e.message();
        report.remedy = e.remedy();
    }
    return report;
}

std::vector<layer_report> look_at_layers(const context& ctx) {
    std::vector<layer_report> reports;
    for (const std::string& path : ctx.store_options(true).layers) {
        reports.push_back(look_at_layer(ctx, path, reports.empty()));
    }
    return reports;
}

std::string cuda_version(int version) {
    return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

json to_json(const host::machine_report& m, const jit::nvrtc_report& nvrtc, const std::vector<layer_report>& layers) {
    json gpus = json::array();
    for (const host::gpu_info& g : m.driver.gpus) {
        gpus.push_back({{"index", g.index},
                        {"name", g.name},
                        {"arch", host::device_arch(g.compute_major, g.compute_minor).text()},
                        {"sms", g.num_sms},
                        {"memory_bytes", g.memory_bytes}});
    }
    json cache = json::array();
    for (const layer_report& l : layers) {
        cache.push_back({{"path", l.path},
                         {"written", l.written},
                         {"usable", l.usable},
                         {"entries", l.entries},
                         {"bad", l.bad},
                         {"bytes", l.bytes},
                         {"free_bytes", l.free_bytes},
                         {"problem", l.problem},
                         {"remedy", l.remedy}});
    }
    json blockers = json::array();
    for (const host::blocker& b : m.readiness.blockers) {
        blockers.push_back({{"id", b.id}, {"where", b.where}, {"why", b.why}});
    }
    json exchanges = json::array();
    for (const host::readiness_record& r : m.exchanges) {
        exchanges.push_back({{"exchange", r.where},
                             {"ready", r.seen.ready()},
                             {"captured", r.seen.captured},
                             {"instantiated", r.seen.instantiated},
                             {"replayed", r.seen.replayed},
                             {"verified", r.seen.verified},
                             {"failure_stage", name(r.seen.failed_at)},
                             {"failure", r.failure}});
    }
    return {{"version", runtime::version()},
            {"driver",
             {{"found", m.driver.found},
              {"path", m.driver.path},
              {"version", m.driver.found ? cuda_version(m.driver.version) : ""},
              {"problem", m.driver.problem},
              {"remedy", m.driver.remedy}}},
            {"gpus", std::move(gpus)},
            {"nvrtc",
             {{"found", m.nvrtc.found},
              {"path", nvrtc.path},
              {"description", m.nvrtc.description},
              {"builtins", nvrtc.builtins_path},
              {"targets", m.nvrtc.targets},
              {"tried", nvrtc.tried},
              {"problem", m.nvrtc.problem},
              {"remedy", m.nvrtc.remedy}}},
            {"nccl",
             {{"found", m.nccl.found},
              {"path", m.nccl.path},
              {"version", m.nccl.found ? host::nccl_version_text(m.nccl.version) : ""},
              {"windows", m.nccl.found && m.nccl.no_windows.empty()},
              {"no_windows", m.nccl.no_windows},
              {"tried", m.nccl.tried},
              {"problem", m.nccl.problem},
              {"remedy", m.nccl.remedy}}},
            {"cache", std::move(cache)},
            {"exchanges", std::move(exchanges)},
            {"ready", m.readiness.ready},
            {"blockers", std::move(blockers)}};
}

std::string line(bool good, std::string_view what, std::string_view text) {
    return fmt::format("{:5}  {:8} {}\n", good ? "ok" : "--", what, text);
}

std::string detail(std::string_view label, std::string_view text) {
    std::string result;
    bool first = true;
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = std::min(text.find('\n', begin), text.size());
        if (end > begin) {
            result += first ? fmt::format("{:16}{}: {}\n", "", label, text.substr(begin, end - begin))
                            : fmt::format("{:16}{}\n", "", text.substr(begin, end - begin));
            first = false;
        }
        begin = end + 1;
    }
    return result;
}

std::string driver_text(const host::driver_report& d) {
    if (!d.found) {
        return line(false, "driver", "not found: no GPU can be used, exchange `host` runs on the CPU") +
               detail("why", d.problem) + detail("remedy", d.remedy);
    }
    std::string text = line(true, "driver", fmt::format("CUDA {}, {}", cuda_version(d.version), d.path));
    for (const host::gpu_info& g : d.gpus) {
        text +=
            line(true, fmt::format("GPU {}", g.index),
                 fmt::format("{}, {}, {} SMs, {}", g.name, host::device_arch(g.compute_major, g.compute_minor).text(),
                             g.num_sms, bytes_text(g.memory_bytes)));
    }
    return d.gpus.empty() ? text + line(false, "GPUs", "the driver shows none") : text;
}

std::string nvrtc_text(const host::nvrtc_report& n, const jit::nvrtc_report& where) {
    if (!n.found) {
        return line(false, "NVRTC", "not found: only kernels that are in the cache can run") +
               detail("why", n.problem) + detail("remedy", n.remedy);
    }
    std::string targets;
    for (const std::string& t : n.targets) {
        targets += (targets.empty() ? "" : " ") + t;
    }
    return line(true, "NVRTC", fmt::format("{}, {}", n.description, where.path)) + detail("targets", targets) +
           (where.builtins_path.empty()
                ? detail("problem", "libnvrtc-builtins was not found beside it: compiles will fail")
                : "");
}

std::string nccl_text(const host::nccl_report& n) {
    if (!n.found) {
        return line(false, "NCCL", "not found: rows cannot travel between GPUs") + detail("why", n.problem) +
               detail("remedy", n.remedy);
    }
    return line(true, "NCCL", fmt::format("{}, {}", host::nccl_version_text(n.version), n.path)) +
           (n.no_windows.empty() ? detail("exchanges", "lsa, sendrecv, dense, hybrid")
                                 : detail("exchanges", "sendrecv, dense") + detail("no lsa", n.no_windows));
}

std::string cache_text(const std::vector<layer_report>& layers) {
    if (layers.empty()) {
        return line(false, "cache", "no directory: every run compiles again") +
               detail("remedy", "set HOME, XDG_CACHE_HOME or EPJIT_CACHE_PATH");
    }
    std::string text;
    for (const layer_report& l : layers) {
        text += line(l.usable, "cache",
                     l.usable ? fmt::format("{} ({}): {} entries, {}, {} free", l.path, l.written ? "written" : "read",
                                            l.entries, bytes_text(l.bytes), bytes_text(l.free_bytes))
                              : fmt::format("{} is not used", l.path));
        text += detail("why", l.problem) + detail("remedy", l.remedy);
    }
    return text;
}

}  // namespace

int doctor_command(context& ctx) {
    runtime_options options = ctx.runtime_options();
    if (std::getenv("EPJIT_FIRST_WAIT_TIMEOUT_MS") == nullptr) {
        options.first_wait_timeout_ms = first_wait_ms;
    }
    runtime rt(options);
    host::machine_report machine = host::probe_machine(rt.state());
    machine.exchanges = host::probe_exchanges(rt, machine);
    machine.readiness = host::assess_readiness(machine);
    jit::nvrtc_report nvrtc;
    if (machine.nvrtc.found) {
        nvrtc = jit::probe_nvrtc({ctx.env.nvrtc_library, ctx.log});
    }
    const std::vector<layer_report> layers = look_at_layers(ctx);
    const bool cached =
        std::any_of(layers.begin(), layers.end(), [](const auto& l) { return l.usable && l.entries > 0; });
    if (ctx.json) {
        print_json(to_json(machine, nvrtc, layers));
    } else {
        std::string text = fmt::format("epjit {}\n\n", runtime::version());
        text += driver_text(machine.driver) + nvrtc_text(machine.nvrtc, nvrtc) + nccl_text(machine.nccl) +
                cache_text(layers);
        for (const host::readiness_record& r : machine.exchanges) {
            text += line(r.seen.ready(), "graphs",
                         r.seen.ready()
                             ? fmt::format("{}: captured, replayed with new data, equal to the CPU's result", r.where)
                             : fmt::format("{}: {} failed", r.where, name(r.seen.failed_at))) +
                    detail("why", r.failure);
        }
        text += machine.readiness.ready ? "\nready: a captured, replayed and verified run was seen on this machine\n"
                                        : "\nnot ready for captured steps:\n";
        for (const host::blocker& b : machine.readiness.blockers) {
            text += fmt::format("  {:22} {:10} {}\n", b.id, b.where, b.why.substr(0, b.why.find('\n')));
        }
        text += fmt::format("\nworks here: {}{}\n", machine.nvrtc.found ? "epjit warm, " : "",
                            machine.driver.found && (machine.nvrtc.found || cached)
                                ? "epjit run --exchange loopback, epjit run --exchange host"
                                : "epjit run --exchange host");
        print(text);
    }
    return exit_done;
}

}  // namespace epjit::tools
