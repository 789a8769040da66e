// SPDX-License-Identifier: Apache-2.0
// The host exchange against the reference, over random cases, and the proof that the check notices what is wrong.
#include "epjit/epjit.hpp"
#include "host/cpu/plan.hpp"
#include "tests/host/cases.hpp"
#include "tools/run/layer.hpp"
#include "tools/run/memory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <utility>

namespace epjit {
namespace {

namespace ref = tools::reference;

runtime make_runtime() {
    runtime_options options;
    options.cache_path = "";
    return runtime(options);
}

ref::observation run_case(runtime& rt, const ref::problem& p, const tools::layer_options& options = {}) {
    communicator comm = communicator::host(rt, p.ranks);
    exchange_config config = tools::config_of(p, exchange_kind::host, 2);
    config.window_rows = options.into_window ? tools::window_rows_for(p) : 0;
    exchange ex(comm, config);
    const auto memory = tools::make_memory_space(comm);
    return tools::run_problem(ex, *memory, p, options);
}

TEST(host_property, equals_the_reference_bit_for_bit) {
    runtime rt = make_runtime();
    const std::uint64_t base = tests::suite_seed();
    const int cases = tests::suite_cases(560);
    std::map<std::string_view, int> layouts;
    std::uint64_t rows = 0;
    std::uint64_t dropped = 0;
    std::uint64_t bad = 0;
    std::uint64_t duplicates = 0;
    std::uint64_t excess = 0;
    for (int i = 0; i < cases; ++i) {
        ref::problem p = tests::make_case(base + static_cast<std::uint64_t>(i));
        SCOPED_TRACE(p.text);
        tools::layer_options options;
        options.into_window = i % 4 == 3;
        p.dispatch_stride = options.into_window ? p.hidden : p.dispatch_stride;
        options.iters = 1 + i % 3;
        options.halves = i % 2 == 1;
        options.lane = i % 5 == 0 ? 1 : 0;
        const ref::observation seen = run_case(rt, p, options);
        const ref::oracle oracle(p);
        const ref::report report = ref::check_all(oracle, seen);
        ASSERT_TRUE(report.ok()) << report.first_mismatch << " (" << report.mismatched_rows << " of "
                                 << report.checked_rows << " rows)";
        EXPECT_EQ(report.max_error, 0);
        rows += report.checked_rows;
        dropped += oracle.dropped_rows;
        bad += oracle.bad_ids;
        duplicates += oracle.duplicate_ids;
        excess += oracle.excess_ids;
        ++layouts[name(p.layout)];
    }
    if (cases >= 500) {
        // The generator reached what the cases are for.
        EXPECT_EQ(layouts.size(), 3u);
        EXPECT_GT(rows, 10'000u);
        EXPECT_GT(dropped, 0u);
        EXPECT_GT(bad, 0u);
        EXPECT_GT(duplicates, 0u);
        EXPECT_GT(excess, 0u);
    }
    std::printf("%d cases, %llu rows, %llu dropped, %llu bad and %llu duplicate ids, %llu excess\n", cases,
                static_cast<unsigned long long>(rows), static_cast<unsigned long long>(dropped),
                static_cast<unsigned long long>(bad), static_cast<unsigned long long>(duplicates),
                static_cast<unsigned long long>(excess));
}

TEST(host_property, every_kind_of_wrong_result_is_noticed) {
    runtime rt = make_runtime();
    const std::uint64_t base = tests::suite_seed() ^ 0x5eed;
    std::map<tests::mutation, int> noticed;
    for (std::uint64_t i = 0; i < 70; ++i) {
        const ref::problem p = tests::make_case(base + i);
        SCOPED_TRACE(p.text);
        const ref::observation seen = run_case(rt, p);
        const ref::oracle oracle(p);
        for (const tests::mutation m : tests::mutations) {
            ref::observation spoilt = seen;
            if (!tests::mutate(m, oracle, spoilt, base + i)) {
                continue;
            }
            const ref::report report = ref::check_all(oracle, spoilt);
            EXPECT_FALSE(report.ok()) << tests::name(m) << " was not noticed";
            EXPECT_FALSE(report.first_mismatch.empty());
            ++noticed[m];
        }
    }
    for (const tests::mutation m : tests::mutations) {
        EXPECT_GE(noticed[m], 4) << tests::name(m);
    }
}

/// Ways to spoil a plan; none leads out of bounds.
enum class plan_fault { swap_experts, swap_ranks, shift_offset, forget_row };

bool spoil(plan_fault fault, host::cpu::cpu_plan& p, std::mt19937_64& draw) {
    std::vector<std::size_t> used;
    for (std::size_t i = 0; i < p.entries.size(); ++i) {
        if (p.entries[i].row >= 0) {
            used.push_back(i);
        }
    }
    const std::size_t topk =
        p.first_token.back() > 0 ? p.entries.size() / static_cast<std::size_t>(p.first_token.back()) : 1;
    if (fault == plan_fault::shift_offset) {
        for (std::size_t slot = 0; slot < p.slot_counts.size(); ++slot) {
            const auto rank = static_cast<std::size_t>(
                std::upper_bound(p.rank_first.begin(), p.rank_first.end(), static_cast<std::int32_t>(slot)) -
                p.rank_first.begin() - 1);
            if (p.slot_counts[slot] > 1) {
                ++p.slot_offsets[slot + rank];
                return true;
            }
        }
        return false;
    }
    for (int tries = 0; tries < 300 && !used.empty(); ++tries) {
        const std::size_t i = used[draw() % used.size()];
        const std::size_t j = used[draw() % used.size()];
        host::cpu::plan_entry& a = p.entries[i];
        host::cpu::plan_entry& b = p.entries[j];
        if (fault == plan_fault::forget_row) {
            a.row = -1;
            return true;
        }
        const bool same_rank = a.rank == b.rank;
        if (i / topk == j / topk || p.entry_slots[i] == p.entry_slots[j] ||
            same_rank != (fault == plan_fault::swap_experts)) {
            continue;
        }
        std::swap(a.row, b.row);
        std::swap(a.rank, b.rank);
        return true;
    }
    return false;
}

TEST(host_property, a_spoilt_plan_makes_the_check_fail) {
    runtime rt = make_runtime();
    const std::uint64_t base = tests::suite_seed() ^ 0xfa017;
    std::map<plan_fault, int> noticed;
    for (std::uint64_t i = 0; i < 120; ++i) {
        ref::problem p = tests::make_case(base + i);
        if (p.layout == layout::flat) {
            continue;  // entries of a rank share a row there; results are spoilt above
        }
        SCOPED_TRACE(p.text);
        const auto fault = static_cast<plan_fault>(i % 4);
        std::mt19937_64 draw(base + i);
        bool spoilt = false;
        tools::layer_options options;
        options.after_plan = [&](plan& made) {
            spoilt = spoil(fault, dynamic_cast<host::cpu::cpu_plan&>(made.state()), draw);
        };
        const ref::observation seen = run_case(rt, p, options);
        if (!spoilt) {
            continue;
        }
        const ref::report report = ref::check_all(ref::oracle(p), seen);
        EXPECT_FALSE(report.ok()) << "fault " << static_cast<int>(fault);
        ++noticed[fault];
    }
    EXPECT_EQ(noticed.size(), 4u);
    for (const auto& [fault, count] : noticed) {
        EXPECT_GE(count, 4) << static_cast<int>(fault);
    }
}

TEST(host_property, the_same_inputs_give_the_same_bytes_twice) {
    runtime rt = make_runtime();
    const ref::problem p = tests::make_case(tests::suite_seed() ^ 77);
    const ref::observation a = run_case(rt, p);
    const ref::observation b = run_case(rt, p);
    for (std::size_t rank = 0; rank < a.ranks.size(); ++rank) {
        EXPECT_EQ(a.ranks[rank].result, b.ranks[rank].result);
        EXPECT_EQ(a.ranks[rank].rows, b.ranks[rank].rows);
    }
}

}  // namespace
}  // namespace epjit
