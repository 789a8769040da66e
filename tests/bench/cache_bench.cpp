// SPDX-License-Identifier: Apache-2.0
// Lookup in memory (goal: at most 100 ns, no allocation), a disk hit to checked bytes (goal: at most 200 us for a 50 KB
// cubin), and publication. TMPDIR chooses the file system.
#include "tests/cache/counted_new.hpp"
#include "tests/cache/support.hpp"

#include <benchmark/benchmark.h>

namespace epjit::cache::test {
namespace {

constexpr std::size_t cubin_bytes = 50'000;

void memory_lookup(benchmark::State& state) {
    static const temp_dir dir;
    static store cache(options_for(dir / "memory"));
    static const auto wanted = [] {
        fake_compiler compiler;
        auto all = jobs(200);
        cache.get(all, &compiler, 1);
        return all;
    }();
    const jit::digest compiler = compiler_a().id;
    std::size_t at = 0;
    const std::uint64_t before = allocations();
    for (auto _ : state) {
        benchmark::DoNotOptimize(cache.peek(wanted[at].key, &compiler));
        at = at + 1 == wanted.size() ? 0 : at + 1;
    }
    if (state.threads() == 1) {
        state.counters["allocations"] = static_cast<double>(allocations() - before);
    }
}
BENCHMARK(memory_lookup);
BENCHMARK(memory_lookup)->Threads(2);

/// A new store for each hit would measure its construction: one store, one unread key an iteration.
void disk_hit(benchmark::State& state) {
    const temp_dir dir;
    constexpr int keys = 500;
    const auto wanted = jobs(keys);
    {
        store cache(options_for(dir / "cache"));
        for (const auto& each : wanted) {
            cache.publish(make_artifact(each, compiler_a(), cubin_bytes));
        }
    }
    const jit::digest compiler = compiler_a().id;
    auto cache = std::make_unique<store>(options_for(dir / "cache"));
    int at = 0;
    for (auto _ : state) {
        if (at == keys) {
            state.PauseTiming();
            cache = std::make_unique<store>(options_for(dir / "cache"));
            at = 0;
            state.ResumeTiming();
        }
        benchmark::DoNotOptimize(cache->find(wanted[static_cast<std::size_t>(at++)].key, &compiler));
    }
    state.counters["hits"] = static_cast<double>(cache->counters().disk_hits);
}
BENCHMARK(disk_hit)->Unit(benchmark::kMicrosecond);

void publication(benchmark::State& state) {
    const temp_dir dir;
    store cache(options_for(dir / "cache"));
    int at = 0;
    for (auto _ : state) {
        if (!cache.publish(make_artifact(job(at++ % 500), compiler_a(), cubin_bytes))) {
            state.SkipWithError("not stored");
            break;
        }
    }
}
BENCHMARK(publication)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace epjit::cache::test

BENCHMARK_MAIN();
