// SPDX-License-Identifier: Apache-2.0
// What shows only after many calls: memory that grows, state that one call leaves to the next, graphs and eager calls
// in each other's way.
#include "epjit/error.hpp"
#include "tests/multi_gpu/fixed_layer.hpp"
#include "tests/multi_gpu/jobs.hpp"
#include "tools/run/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

namespace epjit::tests {
namespace {

using tools::reference::problem;

/// Its packets' tags come round again and again, on lines that others have used in between.
constexpr fixed_shape low_latency_shape{
    .hidden = 1024, .experts = 32, .topk = 8, .tokens = 24, .layout = layout::masked, .low_latency = true};

constexpr fixed_shape mixed_shapes[] = {
    {256, 16, 4, 64},
    {7168, 32, 8, 24, dtype::bf16, layout::expert_major, mode::exact, reduction::per_row},
    {128, 8, 2, 200, dtype::f32, layout::masked, mode::fixed, reduction::per_rank},
    {1000, 60, 6, 40, dtype::fp16, layout::expert_major, mode::fixed, reduction::per_rank},
    {136, 17, 1, 1, dtype::bf16, layout::masked, mode::exact, reduction::per_rank},
    // Its kernels fill the GPU: two of them that wait for peers find no room beside each other.
    {256, 16, 4, 1500, dtype::bf16, layout::expert_major, mode::fixed, reduction::per_rank},
    low_latency_shape,
};

exchange_config config_of(const problem& job, const fixed_shape& s, exchange_kind kind) {
    exchange_config config = tools::config_of(job, kind);
    config.ll_max_tokens_per_rank = s.low_latency ? config.max_tokens_per_rank : 0;
    return config;
}

void run_layer(tools::layer& l) {
    l.make_plan();
    l.dispatch();
    l.run_experts();
    l.combine();
}

/// An exchange with a layer on it that is run again and again.
struct fixed_run {
    fixed_run(rank_world& world, const fixed_shape& s, exchange_kind kind, std::uint64_t seed)
        : fixed_run(world, s, kind, seed, world.make_memory()) {}
    /// In `on`, and on its stream.
    fixed_run(rank_world& world, const fixed_shape& s, exchange_kind kind, std::uint64_t seed,
              std::shared_ptr<tools::memory_space> on)
        : job(make_fixed(s, world.ranks(), seed)),
          ex(world.make_exchange(config_of(job, s, kind))),
          memory(std::move(on)),
          layer(ex, *memory, job, options()) {
        ex.prepare();
        layer.upload();
    }
    static tools::layer_options options() {
        tools::layer_options o;
        o.experts_in_place = true;
        o.follows_plan = true;
        o.weights_dispatched = true;
        return o;
    }
    void once() { run_layer(layer); }

    problem job;
    exchange ex;
    std::shared_ptr<tools::memory_space> memory;
    tools::layer layer;
};

/// A rank that comes late now and then, each at times of its own.
class latecomer {
   public:
    latecomer(rank_world& world, std::uint64_t seed)
        : random_(seed + 1'000'003 * (static_cast<std::uint64_t>(world.rank()) + 1)) {}
    void dawdle() {
        if (random_() % 8 == 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(random_() % 200));
        }
    }

   private:
    std::mt19937_64 random_;
};

void expect_equal_memory(rank_world& world, job_report& report, const char* what, std::size_t before) {
    world.barrier();
    const std::size_t after = free_device_memory(world);
    world.barrier();
    if (after != before) {
        report.fail(fmt::format("rank {}: {}: {} bytes of device memory were free before, {} after", world.rank(), what,
                                before, after));
    }
}

std::size_t memory_now(rank_world& world) {
    world.barrier();
    const std::size_t now = free_device_memory(world);
    world.barrier();
    return now;
}

}  // namespace

/// Exchanges on streams of their own, without a word of order between them.
void stress_job(rank_world& world, const job_settings& settings, job_report& report) {
    std::deque<fixed_run> runs;
    for (const fixed_shape& s : mixed_shapes) {
        runs.emplace_back(world, s, settings.exchange, settings.seed + runs.size());
    }
    std::mt19937_64 random(settings.seed);
    latecomer rank(world, settings.seed);
    const std::int64_t warm = std::min<std::int64_t>(settings.iterations / 2, 200);
    std::optional<std::size_t> before;
    for (std::int64_t i = 0; i < settings.iterations; ++i) {
        if (i == warm) {
            before = memory_now(world);
        }
        fixed_run& run = runs[random() % runs.size()];
        rank.dawdle();
        run.once();
        ++report.counts["layers"];
        if (random() % 50 == 0 || i + 1 == settings.iterations) {
            const std::string wrong = compare_with_oracle(run.job, run.layer.finish());
            ++report.counts["checked"];
            if (!wrong.empty()) {
                report.fail(fmt::format("rank {}, iteration {}: {}", world.rank(), i, wrong));
                break;
            }
        }
    }
    for (fixed_run& run : runs) {
        run.memory->synchronize();
    }
    if (before) {
        expect_equal_memory(world, report, "stress", *before);
    }
}

void create_destroy_job(rank_world& world, const job_settings& settings, job_report& report) {
    const std::int64_t cycles = std::min<std::int64_t>(settings.iterations, 100);
    std::optional<std::size_t> before;
    for (std::int64_t i = 0; i < cycles; ++i) {
        if (i == std::min<std::int64_t>(cycles / 2, 5)) {  // what NCCL and the driver keep is there by now
            before = memory_now(world);
        }
        {
            fixed_run run(world, mixed_shapes[0], settings.exchange, settings.seed);
            run.once();
            const std::string wrong = compare_with_oracle(run.job, run.layer.finish());
            if (!wrong.empty()) {
                report.fail(fmt::format("rank {}, cycle {}: {}", world.rank(), i, wrong));
            }
            world.barrier();
        }
        ++report.counts["cycles"];
    }
    if (before) {
        expect_equal_memory(world, report, "creating and destroying", *before);
    }
}

void graph_job(rank_world& world, const job_settings& settings, job_report& report) {
    constexpr int variants = 6;
    constexpr std::int64_t check_each = 25;
    fixed_shape shapes[] = {mixed_shapes[0], mixed_shapes[2], low_latency_shape};
    for (const fixed_shape& s : shapes) {
        fixed_run graphed(world, s, settings.exchange, settings.seed);
        // Another exchange on the same stream: nobody but the caller can order replays on different ones.
        fixed_run eager(world, s, settings.exchange, settings.seed + 1, graphed.memory);
        // On the same exchange as the graph: eager calls and replays take turns on its flags and epochs.
        tools::layer shared(graphed.ex, *graphed.memory, eager.job, fixed_run::options());
        shared.upload();
        std::vector<problem> jobs;
        for (int v = 0; v < variants; ++v) {
            jobs.push_back(make_fixed(s, world.ranks(), settings.seed + 10 + static_cast<std::uint64_t>(v)));
        }
        graphed.once();
        graphed.memory->synchronize();
        graphed.layer.record_graph(1);
        std::mt19937_64 random(settings.seed);
        latecomer rank(world, settings.seed);
        const problem* loaded = &graphed.job;
        for (std::int64_t i = 0; i < settings.iterations; ++i) {
            if (random() % 4 == 0) {
                loaded = &jobs[random() % jobs.size()];
                graphed.layer.upload_again(*loaded);
            }
            rank.dawdle();
            graphed.layer.replay();
            ++report.counts["replays"];
            const bool with_eager = random() % 5 == 0;
            if (with_eager) {
                run_layer(shared);
                rank.dawdle();
                eager.once();
                ++report.counts["eager"];
            }
            if (i % check_each == check_each - 1 || i + 1 == settings.iterations) {
                std::string wrong = compare_with_oracle(*loaded, graphed.layer.finish());
                if (wrong.empty() && with_eager) {
                    wrong = compare_with_oracle(eager.job, shared.finish());
                }
                ++report.counts["checked"];
                if (!wrong.empty()) {
                    report.fail(fmt::format("rank {}, replay {}: {}", world.rank(), i, wrong));
                    break;
                }
            }
        }
        graphed.memory->synchronize();
        world.barrier();
    }
}

void packet_tags_job(rank_world& world, const job_settings& settings, job_report& report) {
    // A tag of a byte comes round after 128 steps, of which a layer takes one or more.
    const std::int64_t gaps = std::min<std::int64_t>(settings.iterations, 132);
    fixed_run many(world, low_latency_shape, settings.exchange, settings.seed);
    const problem other = make_fixed(low_latency_shape, world.ranks(), settings.seed + 1);
    fixed_shape one_token = low_latency_shape;
    one_token.tokens = 1;
    const problem little = make_fixed(one_token, world.ranks(), settings.seed + 2);
    tools::layer few(many.ex, *many.memory, little, fixed_run::options());
    few.upload();
    const problem* loaded = &many.job;
    for (std::int64_t gap = 0; gap < gaps; ++gap) {
        for (std::int64_t i = 0; i < gap; ++i) {
            run_layer(few);
            if (i % 16 == 15) {
                many.memory->synchronize();  // ranks that share a GPU share its queue of launches
            }
        }
        // By now the other ranks wait for packets of this one, and look at those of the last time.
        const auto come_late = [&] {
            if (gap % world.ranks() == world.rank()) {
                many.memory->synchronize();
                std::this_thread::sleep_for(std::chrono::microseconds(100));
            }
        };
        loaded = loaded == &other ? &many.job : &other;
        many.layer.upload_again(*loaded);
        many.layer.make_plan();
        come_late();
        many.layer.dispatch();
        many.layer.run_experts();
        come_late();
        many.layer.combine();
        const std::string wrong = compare_with_oracle(*loaded, many.layer.finish());
        ++report.counts["checked"];
        if (!wrong.empty()) {
            report.fail(fmt::format("rank {}, {} layers of few tokens in between: {}", world.rank(), gap, wrong));
            break;
        }
    }
}

void overflow_job(rank_world& world, const job_settings& settings, job_report& report) {
    fixed_run run(world, mixed_shapes[0], settings.exchange, settings.seed);
    run.once();
    const std::string wrong = compare_with_oracle(run.job, run.layer.finish());
    if (!wrong.empty()) {
        report.fail(wrong);
    }
    // Too little room on the last rank only: all ranks hear of it.
    problem tight = make_fixed(mixed_shapes[0], world.ranks(), settings.seed + 1);
    tight.inputs.back().capacity = 1;
    tools::layer l(run.ex, *run.memory, tight, fixed_run::options());
    l.upload();
    try {
        for (int i = 0; i < 2; ++i) {
            run_layer(l);
            run.memory->synchronize();
        }
        report.fail(fmt::format("rank {}: rows over the capacity of another rank were not reported", world.rank()));
    } catch (const capacity_error& e) {
        ++report.counts["capacity errors"];
        if (e.remedy().find("capacity") == std::string::npos) {
            report.fail(fmt::format("rank {}: no remedy in: {}", world.rank(), e.what()));
        }
    }
    world.barrier();
}

void hot_path_job(rank_world& world, const job_settings& settings, job_report& report) {
    constexpr int repeats = 20;
    for (const mode m : {mode::fixed, mode::exact}) {
        fixed_shape s = mixed_shapes[0];
        s.mode = m;
        fixed_run run(world, s, settings.exchange, settings.seed);
        run.once();
        run.once();
        run.memory->synchronize();
        world.barrier();
        const counters before = world.rt().counters();
        for (int i = 0; i < repeats; ++i) {
            run.once();
        }
        run.memory->synchronize();
        world.barrier();  // threads share a runtime: its counters are read when all are done
        const counters after = world.rt().counters();
        world.barrier();
        const std::string wrong = compare_with_oracle(run.job, run.layer.finish());
        if (!wrong.empty()) {
            report.fail(wrong);
        }
        const auto expect = [&](const char* what, std::uint64_t was, std::uint64_t is, std::uint64_t more = 0) {
            if (is != was + more) {
                report.fail(fmt::format("rank {}, {}: {} rose from {} to {} in {} layers, {} were expected",
                                        world.rank(), name(m), what, was, is, repeats, more));
            }
        };
        expect("allocations", before.allocations, after.allocations);
        expect("compiles", before.compiles, after.compiles);
        expect("hits in memory", before.cache_memory_hits, after.cache_memory_hits);
        expect("hits on disk", before.cache_disk_hits, after.cache_disk_hits);
        expect("modules loaded", before.modules_loaded, after.modules_loaded);
        expect("uploads", before.uploads, after.uploads);
        if (m == mode::fixed) {
            expect("host waits", before.host_waits, after.host_waits);
        } else if (after.host_waits < before.host_waits + (world.on_gpu() ? repeats : 0)) {
            report.fail("exact plans were made without a wait for their counts");
        }
        report.counts["layers"] += repeats;
        world.barrier();
    }
}

}  // namespace epjit::tests
