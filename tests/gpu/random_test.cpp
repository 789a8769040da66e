// SPDX-License-Identifier: Apache-2.0
// Loopback against the reference, bit for bit, over random cases. EPJIT_GPU_CASES (default 500), EPJIT_GPU_SEED,
// EPJIT_GPU_THREADS and EPJIT_GPU_ONLY=N (that case alone, with more said) steer it. The seed is fresh in each run.
#include "epjit/epjit.hpp"
#include "host/exchange/layouts.hpp"
#include "host/loopback/kernels.hpp"
#include "host/runtime/runtime_state.hpp"
#include "tests/gpu/cases.hpp"
#include "tests/gpu/environment.hpp"
#include "tools/reference/check.hpp"
#include "tools/reference/oracle.hpp"
#include "tools/run/layer.hpp"
#include "tools/run/memory.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <iostream>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace epjit::tests {
namespace {

using tools::reference::problem;

constexpr int pool_size = 40;
constexpr std::int64_t case_budget = 400'000;

jit::target_arch arch_of(runtime& rt) {
    const auto context = rt.state().context(0);
    return host::device_arch(context->compute_major(), context->compute_minor());
}

/// Compiles what the pool needs, all variants side by side.
void warm(runtime& rt, const std::vector<shape>& shapes) {
    std::vector<jit::variant_spec> specs;
    for (const shape& s : shapes) {
        host::resolved_config config;
        config.num_ranks = s.ranks;
        config.placement.num_slots = s.slots;
        config.config.num_experts = s.experts;
        config.config.topk = s.topk;
        config.config.hidden = s.hidden;
        config.config.routing = s.form;
        config.config.input_type = s.input;
        config.config.dispatch_type = s.dispatch;
        config.config.scales = s.scales;
        config.config.combine_type = s.combine;
        for (const jit::variant_spec& spec : host::loopback_specs(config, arch_of(rt))) {
            if (std::find(specs.begin(), specs.end(), spec) == specs.end()) {
                specs.push_back(spec);
            }
        }
    }
    static_cast<void>(rt.state().artifacts(specs));
}

/// Runs one case, `window`: into the output that the exchange lends. Returns what differs, or nothing.
std::string run_case(runtime& rt, problem p, const run_style& style, bool window) {
    communicator comm = communicator::loopback(rt, p.ranks);
    p.dispatch_stride = window ? p.hidden : p.dispatch_stride;
    exchange_config config = tools::config_of(p, exchange_kind::loopback);
    config.window_rows = window ? tools::window_rows_for(p) : 0;
    exchange ex(comm, config);
    const std::unique_ptr<tools::memory_space> memory = tools::make_memory_space(comm);
    tools::layer_options options;
    options.iters = style.iterations;
    options.halves = style.halves;
    options.into_window = window;
    const tools::reference::observation seen = tools::run_problem(ex, *memory, p, options);
    const tools::reference::oracle oracle(p);
    const tools::reference::report report = tools::reference::check_all(oracle, seen);
    return report.ok() ? std::string{}
                       : fmt::format("{} of {} rows differ: {}", report.mismatched_rows, report.checked_rows,
                                     report.first_mismatch);
}

TEST(loopback_random, equals_the_reference_bit_for_bit) {
    EPJIT_NEEDS_GPU();
    runtime& rt = gpu_runtime();
    const std::int64_t cases = number_from("EPJIT_GPU_CASES", 500);
    const std::int64_t only = number_from("EPJIT_GPU_ONLY", -1);
    const auto seed = static_cast<std::uint64_t>(number_from("EPJIT_GPU_SEED", std::random_device{}()));
    RecordProperty("seed", fmt::format("{}", seed));
    const std::int64_t hardware = std::max(1U, std::thread::hardware_concurrency());
    const std::int64_t workers = only >= 0 ? 1 : number_from("EPJIT_GPU_THREADS", std::min<std::int64_t>(8, hardware));
    std::mt19937_64 pool_random(seed);
    const std::vector<shape> shapes = draw_shapes(pool_random, pool_size);
    warm(rt, shapes);
    const auto before = launches_by_kernel(rt);

    std::atomic<std::int64_t> next{std::max<std::int64_t>(0, only)};
    const std::int64_t end = only >= 0 ? only + 1 : cases;
    std::mutex mutex;
    std::vector<std::string> failures;
    const auto work = [&] {
        for (std::int64_t i = next++; i < end; i = next++) {
            std::mt19937_64 random(seed * 1'000'003 + static_cast<std::uint64_t>(i));
            run_style style;
            const problem p =
                draw_case(shapes[static_cast<std::size_t>(i) % shapes.size()], random, case_budget, style);
            if (only >= 0) {
                std::cout << p.text << '\n';
            }
            std::string problem_text;
            try {
                problem_text = run_case(rt, p, style, i % 4 == 3);
            } catch (const std::exception& e) {
                problem_text = e.what();
            }
            if (!problem_text.empty()) {
                const std::lock_guard lock(mutex);
                failures.push_back(fmt::format("case {} (EPJIT_GPU_SEED={} EPJIT_GPU_ONLY={}), {}, {} iterations{}: {}",
                                               i, seed, i, p.text, style.iterations, style.halves ? " in halves" : "",
                                               problem_text));
            }
        }
    };
    std::vector<std::thread> threads;
    for (std::int64_t w = 0; w < workers; ++w) {
        threads.emplace_back(work);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (std::size_t i = 0; i < std::min<std::size_t>(failures.size(), 20); ++i) {
        ADD_FAILURE() << failures[i];
    }
    EXPECT_TRUE(failures.empty()) << failures.size() << " of " << cases << " cases failed";
    if (failures.empty()) {
        for (const auto& [kernel, count] : launches_by_kernel(rt)) {
            const auto was = before.find(kernel);
            for (std::uint64_t n = was != before.end() ? was->second : 0; n < count; ++n) {
                note_pass(kernel);
            }
        }
    }
}

TEST(loopback_random, a_spoiled_count_fails_the_check) {
    EPJIT_NEEDS_GPU();
    runtime& rt = gpu_runtime();
    shape s;
    s.ranks = 4;
    s.experts = s.slots = 16;
    s.topk = 4;
    s.hidden = 128;
    std::mt19937_64 random(7);
    run_style style;
    problem p = draw_case(s, random, case_budget, style);
    communicator comm = communicator::loopback(rt, p.ranks);
    exchange ex(comm, tools::config_of(p, exchange_kind::loopback));
    const auto memory = tools::make_memory_space(comm);
    tools::reference::observation seen = tools::run_problem(ex, *memory, p);
    const tools::reference::oracle oracle(p);
    ASSERT_TRUE(tools::reference::check_all(oracle, seen).ok());
    for (tools::reference::rank_output& out : seen.ranks) {
        if (!out.counts.empty() && out.num_rows > 0) {
            ++out.counts[0];
            break;
        }
    }
    EXPECT_FALSE(tools::reference::check_all(oracle, seen).ok());
}

}  // namespace
}  // namespace epjit::tests
