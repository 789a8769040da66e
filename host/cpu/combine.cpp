// SPDX-License-Identifier: Apache-2.0
#include "host/cpu/exchange.hpp"
#include "host/cpu/parallel.hpp"
#include "host/cpu/rows.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace epjit::host::cpu {
namespace {

/// Consecutive entries of a token that one rank holds.
struct rank_run {
    std::int32_t host;
    std::uint16_t first;
    std::uint16_t last;
};

struct combine_job {
    const cpu_plan& plan;
    const resolved_config& config;
    std::span<const combine_args> ranks;
    const row_operations& rows;
    reduction order;
    std::int64_t weight_columns;
    std::int64_t hidden;
};

/// Adds the token's rows of entries [first, last) to `acc`; on flat they are one row.
void add_entries(const combine_job& job, const plan_entry* entries, int first, int last, const float* weights,
                 float* acc) {
    for (int i = first; i < last; ++i) {
        if (entries[i].row < 0) {
            continue;
        }
        const float weight = weights != nullptr ? weights[entries[i].column] : 1.0f;
        job.rows.accumulate(acc, row_of(job.ranks[entries[i].rank].rows, entries[i].row), weight, job.hidden);
        if (job.plan.options.layout == layout::flat) {
            return;
        }
    }
}

void combine_token(const combine_job& job, int owner, std::int64_t token, const worker_rows& buffers) {
    const std::int64_t topk = job.config.config.topk;
    const plan_entry* entries = &job.plan.entries[(job.plan.first_token[owner] + token) * topk];
    const combine_args& mine = job.ranks[owner];
    const float* weights = mine.weights != nullptr ? mine.weights + token * job.weight_columns : nullptr;
    int count = 0;
    while (count < topk && entries[count].rank != no_rank) {
        ++count;
    }
    const auto clear = [&](float* row) { std::fill_n(row, job.hidden, 0.0f); };
    float* sum = buffers.a;
    float* partial = buffers.b;
    float* host_sum = buffers.c;
    clear(sum);
    if (job.order == reduction::per_row) {
        add_entries(job, entries, 0, count, weights, sum);
        job.rows.store(row_of(mine.output, token), sum, job.hidden);
        return;
    }
    rank_run runs[templates::max_topk];
    int num_runs = 0;
    for (int i = 0; i < count; ++i) {
        if (i > 0 && entries[i].rank == entries[i - 1].rank) {
            runs[num_runs - 1].last = static_cast<std::uint16_t>(i + 1);
            continue;
        }
        const std::int32_t host = job.order == reduction::per_host ? job.config.rank_hosts[entries[i].rank] : 0;
        runs[num_runs++] = {host, static_cast<std::uint16_t>(i), static_cast<std::uint16_t>(i + 1)};
    }
    if (job.order == reduction::per_host) {
        std::sort(runs, runs + num_runs, [](const auto& x, const auto& y) {
            return x.host < y.host || (x.host == y.host && x.first < y.first);
        });
    }
    for (int i = 0; i < num_runs;) {
        const bool by_host = job.order == reduction::per_host;
        if (by_host) {
            clear(host_sum);
        }
        const std::int32_t host = runs[i].host;
        for (; i < num_runs && runs[i].host == host; ++i) {
            clear(partial);
            add_entries(job, entries, runs[i].first, runs[i].last, weights, partial);
            job.rows.add_rounded(by_host ? host_sum : sum, partial, job.hidden);
        }
        if (by_host) {
            job.rows.add_rounded(sum, host_sum, job.hidden);
        }
    }
    job.rows.store(row_of(mine.output, token), sum, job.hidden);
}

}  // namespace

void combine_rows(const cpu_plan& p, const resolved_config& config, std::span<const combine_args> ranks,
                  const combine_options& options, const scratch_rows& scratch) {
    const exchange_config& c = config.config;
    const combine_job job{p,
                          config,
                          ranks,
                          operations_of(c.combine_type),
                          options.reduction,
                          c.routing == routing_form::sparse ? c.num_experts : c.topk,
                          c.hidden};
    const std::int64_t tokens = p.first_token[config.num_ranks];
    const std::int64_t bytes = tokens * (c.topk + 1) * c.hidden * size_of(c.combine_type);
    parallel_for(tokens, bytes, [&](int worker, std::int64_t begin, std::int64_t end) {
        token_cursor cursor(p, begin);
        for (std::int64_t global = begin; global < end; ++global) {
            const int rank = cursor.at(global);
            combine_token(job, rank, global - p.first_token[rank], scratch.of(worker));
        }
    });
}

void collect_weight_gradients(const cpu_plan& p, const resolved_config& config,
                              std::span<const weight_gradient_args> ranks) {
    const exchange_config& c = config.config;
    const std::int64_t columns = c.routing == routing_form::sparse ? c.num_experts : c.topk;
    const row_operations& rows = operations_of(c.combine_type);
    const std::int64_t tokens = p.first_token[config.num_ranks];
    const std::int64_t bytes = tokens * c.topk * c.hidden * size_of(c.combine_type);
    parallel_for(tokens, bytes, [&](int, std::int64_t begin, std::int64_t end) {
        token_cursor cursor(p, begin);
        for (std::int64_t global = begin; global < end; ++global) {
            const int owner = cursor.at(global);
            const std::int64_t token = global - p.first_token[owner];
            float* out = ranks[owner].output + token * columns;
            std::fill_n(out, columns, 0.0f);
            const plan_entry* entries = &p.entries[global * c.topk];
            for (std::int32_t i = 0; i < c.topk && entries[i].rank != no_rank; ++i) {
                if (entries[i].row < 0) {
                    continue;
                }
                const weight_gradient_args& holder = ranks[entries[i].rank];
                out[entries[i].column] =
                    holder.row_gradients != nullptr
                        ? holder.row_gradients[entries[i].row]
                        : rows.dot(row_of(ranks[owner].gradient, token), row_of(holder.rows, entries[i].row), c.hidden);
            }
        }
    });
}

}  // namespace epjit::host::cpu
