// SPDX-License-Identifier: Apache-2.0
#include "tools/run/dump.hpp"

#include "epjit/error.hpp"
#include "tools/reference/expert.hpp"
#include "tools/reference/numbers.hpp"
#include "tools/run/npy.hpp"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <vector>

namespace epjit::tools {
namespace {

using reference::problem;
using reference::rank_input;
using reference::rank_output;

std::vector<float> decode_rows(dtype type, const reference::bytes& data, std::int64_t rows, std::int64_t stride,
                               std::int64_t columns) {
    std::vector<float> values;
    values.reserve(static_cast<std::size_t>(rows * columns));
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t h = 0; h < columns; ++h) {
            values.push_back(reference::decode(type, reference::load_bits(type, data.data(), row * stride + h)));
        }
    }
    return values;
}

std::vector<std::int64_t> decode_ids(const problem& p, const rank_input& in) {
    std::vector<std::int64_t> ids;
    const auto width = static_cast<std::size_t>(size_of(p.ids));
    for (std::size_t at = 0; at < in.routing.size(); at += width) {
        const auto load = [&]<class Id>(Id id) {
            std::memcpy(&id, in.routing.data() + at, sizeof(id));
            ids.push_back(static_cast<std::int64_t>(id));
        };
        switch (p.ids) {
            case id_type::i16: load(std::int16_t{}); break;
            case id_type::i32:
            case id_type::u32: load(std::int32_t{}); break;  // -1 of unsigned ids reads as -1
            case id_type::i64: load(std::int64_t{}); break;
        }
    }
    return ids;
}

/// The data rows of a rank, one for each expert that wants it.
struct dumped_rows {
    std::vector<float> values;
    std::vector<std::int64_t> experts;
    std::vector<std::int64_t> sources;
};

dumped_rows collect_rows(const problem& p, std::int32_t rank, const rank_output& out) {
    dumped_rows d;
    const auto first = static_cast<std::size_t>(p.first_slot(rank));
    std::vector<float> row_values(static_cast<std::size_t>(p.hidden));
    const auto add = [&](std::int64_t row, std::size_t slot) {
        decode_row(p, out, row, row_values);
        d.values.insert(d.values.end(), row_values.begin(), row_values.end());
        d.experts.push_back(p.slot_expert[first + slot]);
        d.sources.push_back(out.row_source[static_cast<std::size_t>(2 * row)]);
        d.sources.push_back(out.row_source[static_cast<std::size_t>(2 * row + 1)]);
    };
    if (p.layout == layout::flat) {
        for (std::int64_t row = 0; row < out.num_rows; ++row) {
            for (std::int64_t k = 0; k < p.topk; ++k) {
                const std::int32_t local = out.local_ids[static_cast<std::size_t>(row * p.topk + k)];
                if (local >= 0) {
                    add(row, static_cast<std::size_t>(local));
                }
            }
        }
        return d;
    }
    for (std::size_t slot = 0; slot < out.counts.size(); ++slot) {
        for (std::int64_t i = 0; i < out.counts[slot]; ++i) {
            add(out.offsets[slot] + i, slot);
        }
    }
    return d;
}

}  // namespace

void write_dump(const std::string& directory, const problem& p, const reference::observation& seen) {
    std::error_code failure;
    std::filesystem::create_directories(directory, failure);
    if (failure) {
        throw config_error(fmt::format("--dump {}: the directory cannot be made: {}", directory, failure.message()),
                           "name a directory that you can write");
    }
    const auto file = [&](const char* name, std::int32_t rank) {
        return fmt::format("{}/{}.{}.npy", directory, name, rank);
    };
    const std::int64_t hidden = p.hidden;
    for (std::size_t i = 0; i < seen.ranks.size(); ++i) {
        const std::int32_t rank = seen.first_rank + static_cast<std::int32_t>(i);
        const rank_input& in = p.inputs[static_cast<std::size_t>(rank)];
        const rank_output& out = seen.ranks[i];
        const std::array<std::int64_t, 2> tokens_by_hidden{in.tokens, hidden};
        const std::array<std::int64_t, 2> tokens_by_topk{in.tokens, p.topk};
        write_npy(file("x", rank), tokens_by_hidden, decode_rows(p.input, in.input, in.tokens, p.input_stride, hidden));
        write_npy(file("topk_idx", rank), tokens_by_topk, decode_ids(p, in));
        write_npy(file("topk_weights", rank), tokens_by_topk, in.weights);
        const dumped_rows rows = collect_rows(p, rank, out);
        const auto count = static_cast<std::int64_t>(rows.experts.size());
        write_npy(file("rows", rank), std::array<std::int64_t, 2>{count, hidden}, rows.values);
        write_npy(file("row_expert", rank), std::array<std::int64_t, 1>{count}, rows.experts);
        write_npy(file("row_source", rank), std::array<std::int64_t, 2>{count, 2}, rows.sources);
        write_npy(file("out", rank), tokens_by_hidden,
                  decode_rows(p.combine, out.result, in.tokens, p.combine_stride, hidden));
    }
    if (seen.first_rank != 0) {
        return;
    }
    write_npy(directory + "/expert_scale.npy", std::array<std::int64_t, 1>{p.experts}, p.expert_scale);
    write_npy(directory + "/expert_bias.npy", std::array<std::int64_t, 2>{p.experts, hidden}, p.expert_bias);
}

}  // namespace epjit::tools
