// SPDX-License-Identifier: Apache-2.0
#include "host/cpu/exchange.hpp"
#include "host/cpu/parallel.hpp"
#include "host/cpu/rows.hpp"

#include <algorithm>
#include <cstring>

namespace epjit::host::cpu {
namespace {

constexpr std::int64_t scale_group = 128;

/// What one dispatch knows beside its arguments.
struct dispatch_job {
    const cpu_plan& plan;
    const resolved_config& config;
    std::span<const dispatch_args> ranks;
    dispatch_options options;
    scratch_rows scratch;
    bool flat = false;
    bool quantises = false;
    std::int64_t row_bytes = 0;    ///< of an output row
    std::int64_t scale_bytes = 0;  ///< of an output row's scales
    std::int64_t weight_columns = 0;
};

void clear_rows(const dispatch_job& job, int rank, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        std::memset(row_of(job.ranks[rank].output, row), 0, static_cast<std::size_t>(job.row_bytes));
        if (job.scale_bytes != 0 && job.ranks[rank].output.scales != nullptr) {
            std::memset(scales_of(job.ranks[rank].output, row, job.config.config.scales), 0,
                        static_cast<std::size_t>(job.scale_bytes));
        }
    }
}

/// Metadata of every row says "nobody" until a row is written; padding and tail are cleared where asked.
void prepare_rank(const dispatch_job& job, int rank) {
    const dispatch_args& out = job.ranks[rank];
    const cpu_plan& p = job.plan;
    const std::int64_t extent = p.extent(rank);
    const std::int64_t topk = job.config.config.topk;
    if (out.row_source != nullptr) {
        std::fill_n(out.row_source, 2 * extent, -1);
    }
    if (out.row_weights != nullptr) {
        std::fill_n(out.row_weights, extent, 0.0f);
    }
    if (job.flat && out.local_ids != nullptr) {
        std::fill_n(out.local_ids, extent * topk, -1);
    }
    if (job.flat && out.local_weights != nullptr) {
        std::fill_n(out.local_weights, extent * topk, 0.0f);
    }
    const plan_view view = p.view(rank);
    if (!job.flat) {
        const bool padded = p.options.layout == layout::expert_major && job.options.zero_padding;
        if (padded || job.options.zero_tail) {
            for (std::int32_t slot = 0; slot < view.num_slots; ++slot) {
                clear_rows(job, rank, view.offsets[slot] + view.counts[slot], view.offsets[slot + 1]);
            }
        }
    }
    if (job.options.zero_tail) {
        clear_rows(job, rank, *view.num_rows, extent);
    }
}

/// The bytes of one token's row as they travel, when they do not depend on the entry: the input itself, or
/// its quantised form in the worker's buffer.
struct token_row {
    const std::byte* data = nullptr;
    const std::byte* scales = nullptr;
};

token_row prepare_token(const dispatch_job& job, int rank, std::int64_t token, const worker_rows& buffers) {
    const tensor_view& input = job.ranks[rank].input;
    const exchange_config& config = job.config.config;
    const std::byte* row = row_of(input, token);
    if (!job.quantises) {
        return {row, input.scales != nullptr ? scales_of(input, token, config.scales) : nullptr};
    }
    operations_of(config.input_type).load_scaled(buffers.a, row, 1.0f, config.hidden);
    quantise(reinterpret_cast<std::uint8_t*>(buffers.b), buffers.c, config.scales, buffers.a, config.hidden);
    return {reinterpret_cast<const std::byte*>(buffers.b), reinterpret_cast<const std::byte*>(buffers.c)};
}

void write_row(const dispatch_job& job, int rank, std::int64_t token, const plan_entry& entry, const token_row& source,
               const worker_rows& buffers, float weight) {
    const exchange_config& config = job.config.config;
    const tensor_view& output = job.ranks[entry.rank].output;
    std::byte* row = row_of(output, entry.row);
    std::byte* scales =
        job.scale_bytes != 0 && output.scales != nullptr ? scales_of(output, entry.row, config.scales) : nullptr;
    if (!job.options.weigh_input) {
        std::memcpy(row, source.data, static_cast<std::size_t>(job.row_bytes));
        if (scales != nullptr && source.scales != nullptr) {
            std::memcpy(scales, source.scales, static_cast<std::size_t>(job.scale_bytes));
        }
        return;
    }
    operations_of(config.input_type)
        .load_scaled(buffers.a, row_of(job.ranks[rank].input, token), weight, config.hidden);
    if (job.quantises) {
        quantise(reinterpret_cast<std::uint8_t*>(row), scales, config.scales, buffers.a, config.hidden);
    } else {
        operations_of(config.dispatch_type).store(row, buffers.a, config.hidden);
    }
}

void write_token(const dispatch_job& job, int rank, std::int64_t token, const worker_rows& buffers) {
    const cpu_plan& p = job.plan;
    const std::int64_t topk = job.config.config.topk;
    const std::int64_t global = p.first_token[rank] + token;
    const plan_entry* entries = &p.entries[global * topk];
    const std::uint16_t* slots = &p.entry_slots[global * topk];
    const float* weights = job.ranks[rank].weights;
    token_row source;
    std::int64_t place = 0;  // flat: how many local ids the row has so far
    for (std::int64_t i = 0; i < topk && entries[i].rank != no_rank; ++i) {
        const plan_entry& entry = entries[i];
        const bool first = !job.flat || i == 0 || entries[i - 1].rank != entry.rank;
        place = first ? 0 : place + 1;
        if (entry.row < 0) {
            continue;
        }
        const dispatch_args& out = job.ranks[entry.rank];
        const float weight = weights != nullptr ? weights[token * job.weight_columns + entry.column] : 1.0f;
        if (first) {
            if (source.data == nullptr && !job.options.weigh_input) {
                source = prepare_token(job, rank, token, buffers);
            }
            write_row(job, rank, token, entry, source, buffers, weight);
            if (out.row_source != nullptr) {
                out.row_source[2 * std::int64_t{entry.row}] = rank;
                out.row_source[2 * std::int64_t{entry.row} + 1] = static_cast<std::int32_t>(token);
            }
            if (!job.flat && out.row_weights != nullptr) {
                out.row_weights[entry.row] = weight;
            }
        }
        if (job.flat && out.local_ids != nullptr) {
            out.local_ids[entry.row * topk + place] = slots[i] - p.rank_first[entry.rank];
        }
        if (job.flat && out.local_weights != nullptr) {
            out.local_weights[entry.row * topk + place] = weight;
        }
    }
}

}  // namespace

void dispatch_rows(const cpu_plan& p, const resolved_config& config, std::span<const dispatch_args> ranks,
                   const dispatch_options& options, const scratch_rows& scratch) {
    const exchange_config& c = config.config;
    const bool scaled = c.dispatch_type == dtype::fp8_e4m3 && c.scales != scale_type::none;
    const dispatch_job job{
        .plan = p,
        .config = config,
        .ranks = ranks,
        .options = options,
        .scratch = scratch,
        .flat = p.options.layout == layout::flat,
        .quantises = c.dispatch_type == dtype::fp8_e4m3 && c.input_type != dtype::fp8_e4m3,
        .row_bytes = c.hidden * size_of(c.dispatch_type),
        .scale_bytes = scaled ? (c.hidden + scale_group - 1) / scale_group * size_of(c.scales) : 0,
        .weight_columns = c.routing == routing_form::sparse ? c.num_experts : c.topk,
    };
    for (int rank = 0; rank < config.num_ranks; ++rank) {
        prepare_rank(job, rank);
    }
    const std::int64_t tokens = p.first_token[config.num_ranks];
    parallel_for(tokens, tokens * c.topk * job.row_bytes, [&](int worker, std::int64_t begin, std::int64_t end) {
        token_cursor cursor(p, begin);
        for (std::int64_t global = begin; global < end; ++global) {
            const int rank = cursor.at(global);
            write_token(job, rank, global - p.first_token[rank], scratch.of(worker));
        }
    });
}

}  // namespace epjit::host::cpu
