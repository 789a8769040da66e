// SPDX-License-Identifier: Apache-2.0
// Both sources of a plan, byte for byte: what a rank keeps of the same routing is the same, whether counts or ids
// travelled.
#include "host/ranks/plan.hpp"
#include "tests/gpu/cases.hpp"
#include "tests/multi_gpu/jobs.hpp"
#include "tests/multi_gpu/pool.hpp"
#include "tools/run/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <random>
#include <utility>

namespace epjit::tests {
namespace {

using tools::reference::problem;

constexpr int num_shapes = 8;
constexpr int cases_of_shape = 12;

/// Every table of a plan by name, what its layout leaves unspecified left out.
using tables = std::vector<std::pair<std::string, std::vector<std::uint8_t>>>;

template <class T>
void add(tables& to, const char* name, const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data());
    to.emplace_back(name, std::vector<std::uint8_t>(bytes, bytes + values.size() * sizeof(T)));
}

tables read_tables(const problem& job, const exchange_config& config, tools::memory_space& memory, const plan& made,
                   int rank) {
    memory.synchronize();
    const auto& p = static_cast<const host::rank_plan&>(made.state());
    const auto topk = static_cast<std::size_t>(job.topk);
    const auto pairs = static_cast<std::size_t>(p.num_tokens) * topk;
    const auto ranks = static_cast<std::size_t>(job.ranks);
    const std::size_t slots = job.slot_expert.size();
    tables t;
    add(t, "entries", memory.fetch(p.entries, pairs));
    add(t, "entry_slots", memory.fetch(p.entry_slots, pairs));
    add(t, "positions", memory.fetch(p.positions, pairs));
    add(t, "slot_offsets", memory.fetch(p.slot_offsets, slots + ranks));
    add(t, "rank_rows", memory.fetch(p.rank_rows, ranks));
    add(t, "slot_counts", memory.fetch(p.slot_counts, slots));
    const std::vector<std::int32_t> first = memory.fetch(p.line_first, ranks + 1);
    add(t, "line_first", first);
    const auto line_bytes = static_cast<std::size_t>(templates::line_bytes(job.topk));
    const std::size_t used = 4 + 6 * topk;
    const auto stride = static_cast<std::size_t>(std::max(1, config.max_tokens_per_rank));
    std::vector<std::uint8_t> lines;
    for (std::size_t r = 0; r < ranks; ++r) {
        const auto count = static_cast<std::size_t>(first[r + 1] - first[r]);
        const auto list = memory.fetch(p.lines + r * stride * line_bytes, count * line_bytes);
        for (std::size_t i = 0; i < count; ++i) {
            const auto line = list.begin() + static_cast<std::ptrdiff_t>(i * line_bytes);
            lines.insert(lines.end(), line, line + static_cast<std::ptrdiff_t>(used));
        }
    }
    add(t, "lines", lines);
    if (p.exact) {
        add(t, "host counts", std::vector<std::int32_t>(p.host_counts(), p.host_counts() + slots + 4 * ranks));
    }
    const plan_status s = p.status();
    add(t, "status", std::vector<std::uint64_t>{s.bad_ids, s.duplicate_ids, s.excess_ids, s.dropped_rows});
    add(t, "rank", std::vector<int>{rank});
    return t;
}

std::string difference(const tables& a, const tables& b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
        const auto& x = a[i].second;
        const auto& y = b[i].second;
        if (x != y) {
            const auto at = std::mismatch(x.begin(), x.end(), y.begin(), y.end()).first - x.begin();
            return fmt::format("{} differ at byte {} of {} and {}", a[i].first, at, x.size(), y.size());
        }
    }
    return {};
}

}  // namespace

void plan_sources_job(rank_world& world, const job_settings& settings, job_report& report) {
    std::mt19937_64 random(settings.seed);
    std::vector<shape> shapes = draw_shapes(random, num_shapes);
    const std::unique_ptr<tools::memory_space> space = world.make_memory();
    arena pieces(*space);
    constexpr std::array<std::int32_t, 5> bounds{1, 8, 128, 200, 900};
    for (int i = 0; i < num_shapes; ++i) {
        shape& s = shapes[static_cast<std::size_t>(i)];
        s.ranks = world.ranks();
        problem call = draw_job(s, random);
        exchange_config config = tools::config_of(call, settings.exchange);
        config.max_tokens_per_rank = bounds[static_cast<std::size_t>(i) % bounds.size()];
        config.ll_max_tokens_per_rank = std::min(config.max_tokens_per_rank, 128);
        exchange ex = world.make_exchange(config);
        ex.prepare();
        for (int c = 0; c < cases_of_shape; ++c) {
            run_style style;
            draw_call(call, random, {200'000, config.max_tokens_per_rank}, style);
            call.overflow = overflow::drop;
            std::optional<tables> expected;
            for (const plan_source source : {plan_source::counts, plan_source::gathered, plan_source::automatic}) {
                tables seen;
                tools::layer_options options;
                options.iters = 1 + c % 3;
                options.source = source;
                options.after_plan = [&](plan& made) { seen = read_tables(call, config, *space, made, world.rank()); };
                pooled_space memory(*space, pieces);
                tools::layer layer(ex, memory, call, options);
                layer.upload();
                layer.make_plan();
                if (!expected) {
                    expected = std::move(seen);
                } else if (const std::string wrong = difference(*expected, seen); !wrong.empty()) {
                    report.fail(fmt::format("rank {}, seed {}, shape {}, case {}, {}: plans from counts and '{}': {}",
                                            world.rank(), settings.seed, i, c, call.text, name(source), wrong));
                }
                ++report.counts[fmt::format("plans {}", name(source))];
            }
            space->synchronize();
            pieces.reset();
        }
        world.barrier();  // nobody's exchange goes while a peer still works
    }
}

}  // namespace epjit::tests
