// SPDX-License-Identifier: Apache-2.0
// What a cold start costs: whole processes with their children, each on a fresh cache directory, by wait4's CPU time.
#include "epjit/jit/variants.hpp"
#include "tools/bench/suite.hpp"
#include "tools/command/context.hpp"
#include "tools/command/machine.hpp"
#include "tools/worker/subprocess.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <stdlib.h>

namespace epjit::tools {
namespace {

namespace fs = std::filesystem;
using clock = std::chrono::steady_clock;

constexpr double variant_goal_us = 100e3;
constexpr double set_goal_us = 1e6;
constexpr double second_warm_goal_us = 50e3;
constexpr double disk_goal_us = 200;
constexpr double memory_goal_us = 0.1;

/// Beside the user's own cache, never in /tmp when that can be helped: file systems differ.
class scratch_folder {
   public:
    scratch_folder() {
        const char* base = std::getenv("TMPDIR");
        path_ = fmt::format("{}/epjit-bench-XXXXXX", base != nullptr && *base != 0 ? base : "/tmp");
        if (::mkdtemp(path_.data()) == nullptr) {
            throw error(error_kind::cache, fmt::format("cannot make a folder for the benchmark's caches: {}", path_),
                        "set TMPDIR to a directory you can write");
        }
    }
    ~scratch_folder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    scratch_folder(const scratch_folder&) = delete;
    scratch_folder& operator=(const scratch_folder&) = delete;
    [[nodiscard]] std::string fresh() { return fmt::format("{}/{}", path_, ++count_); }

   private:
    std::string path_;
    int count_ = 0;
};

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.empty() ? 0 : values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

struct subject {
    std::string model;
    std::int32_t ranks;
    jit::target_arch arch;
};

process_result warm(const subject& s, const std::string& folder, const std::string& only) {
    std::vector<std::string> arguments{
        "/proc/self/exe",        "warm",   "--json",      "--model",     s.model, "--ranks",
        std::to_string(s.ranks), "--arch", s.arch.text(), "--cache-dir", folder};
    if (!only.empty()) {
        arguments.insert(arguments.end(), {"--only", only});
    }
    process_result result = run_process(arguments, {{"EPJIT_OFFLINE", ""}});
    if (result.status != 0) {
        throw error(error_kind::compile, fmt::format("epjit warm ended with status {}: {}", result.status, result.err));
    }
    return result;
}

bench_row row(std::string name, double us, double goal_us, const std::string& shape) {
    bench_row r;
    r.name = std::move(name);
    r.us = us;
    r.floor_us = goal_us;
    r.shape = shape;
    return r;
}

/// Time of store::find from disk, of each entry by a store that has nothing in memory, and of store::peek.
void measure_hits(const context& ctx, const std::string& folder, const std::vector<jit::digest>& keys,
                  const std::string& shape, bench_report& report) {
    cache::store_options options = ctx.store_options(true);
    options.layers = {folder};
    options.offline = false;
    std::vector<double> disk, memory;
    std::uint64_t bytes = 0;
    for (int repeat = 0; repeat < 20; ++repeat) {
        cache::store store(options);
        for (const jit::digest& key : keys) {
            const auto start = clock::now();
            const auto found = store.find(key, nullptr);
            disk.push_back(std::chrono::duration<double, std::micro>(clock::now() - start).count());
            if (!found || !found->value) {
                throw error(error_kind::cache, fmt::format("entry {} was not found again", key.hex()));
            }
            bytes = std::max<std::uint64_t>(bytes, found->value->cubin.size());
        }
        constexpr int rounds = 1000;
        std::size_t served = 0;
        const auto start = clock::now();
        for (int i = 0; i < rounds; ++i) {
            for (const jit::digest& key : keys) {
                served += store.peek(key, nullptr) != nullptr ? 1 : 0;
            }
        }
        memory.push_back(std::chrono::duration<double, std::micro>(clock::now() - start).count() /
                         static_cast<double>(rounds * keys.size()));
        if (served != rounds * keys.size()) {
            throw error(error_kind::cache, "an entry was not served from memory");
        }
    }
    report.rows.push_back(row("disk hit to checked bytes, wall", median(disk), disk_goal_us, shape));
    report.rows.back().bytes = bytes;
    report.rows.push_back(row("memory hit, wall", median(memory), memory_goal_us, shape));
}

}  // namespace

void jit_suite(const context& ctx, bench_report& report) {
    const jit::model_shape& model = jit::find_model("qwen3-30b-a3b");
    const machine here = look_at_machine(ctx);
    const subject s{model.name, default_ranks, here.archs.empty() ? default_arch : here.archs.front()};
    const jit::template_set templates = open_templates(ctx);
    const auto specs = jit::list_variants({model, {s.ranks}, {s.arch}, jit::variant_set::base});
    const std::string shape = fmt::format("{}, R {}, {}", s.model, s.ranks, s.arch.text());
    scratch_folder scratch;

    std::vector<double> cpu, set_cpu, set_wall, second;
    std::vector<jit::digest> keys;
    for (const jit::variant_spec& spec : specs) {
        keys.push_back(jit::variant_key(spec, templates));
        cpu.push_back(warm(s, scratch.fresh(), jit::describe(spec)).cpu_ms * 1e3);
    }
    std::string folder;
    for (int repeat = 0; repeat < 3; ++repeat) {
        folder = scratch.fresh();
        const process_result result = warm(s, folder, "");
        set_cpu.push_back(result.cpu_ms * 1e3);
        set_wall.push_back(result.wall_ms * 1e3);
    }
    for (int repeat = 0; repeat < 9; ++repeat) {
        second.push_back(warm(s, folder, "").wall_ms * 1e3);
    }
    report.rows.push_back(row("one variant, CPU of the whole process", median(cpu), variant_goal_us, shape));
    report.rows.push_back(row(fmt::format("default set ({} variants), CPU of the whole process", specs.size()),
                              median(set_cpu), set_goal_us, shape));
    report.rows.push_back(row("default set, wall", median(set_wall), set_goal_us, shape));
    report.rows.push_back(row("second warm, wall of the whole process", median(second), second_warm_goal_us, shape));
    measure_hits(ctx, folder, keys, shape, report);
    report.notes.emplace_back("suite jit: the floor column is the goal");
}

}  // namespace epjit::tools
