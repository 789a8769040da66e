// SPDX-License-Identifier: Apache-2.0
#include "tools/run/routing.hpp"

#include "epjit/error.hpp"
#include "tools/reference/numbers.hpp"
#include "tools/run/npy.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

namespace epjit::tools {
namespace {

/// Uniform in [0,1), the same on every platform (the standard's distributions are not).
double unit(std::mt19937_64& draw) {
    return static_cast<double>(draw() >> 11) * 0x1p-53;
}
std::size_t below(std::mt19937_64& draw, std::size_t bound) {
    return static_cast<std::size_t>(unit(draw) * static_cast<double>(bound));
}

/// Different streams for each rank, token order within it.
std::mt19937_64 stream_of(std::uint64_t seed, std::uint64_t what, std::int32_t rank) {
    std::seed_seq sequence{seed, seed >> 32, what, static_cast<std::uint64_t>(rank)};
    return std::mt19937_64(sequence);
}

/// The experts that a rank's tokens may choose, and how popular each is.
struct chooser {
    std::vector<std::int32_t> pool;
    std::vector<double> sums;  ///< running sums of popularity; empty: all alike

    [[nodiscard]] std::int32_t draw(std::mt19937_64& random) const {
        if (sums.empty()) {
            return pool[below(random, pool.size())];
        }
        const double at = unit(random) * sums.back();
        const auto found = std::upper_bound(sums.begin(), sums.end(), at);
        return pool[std::min(static_cast<std::size_t>(found - sums.begin()), pool.size() - 1)];
    }
};

/// K distinct experts of the pool; all of it, then others, when it holds fewer.
void choose_row(const chooser& from, std::int32_t topk, std::int32_t experts, std::mt19937_64& random,
                std::vector<std::int32_t>& row) {
    row.clear();
    const auto has = [&](std::int32_t e) { return std::find(row.begin(), row.end(), e) != row.end(); };
    const auto wanted = static_cast<std::size_t>(topk);
    if (from.pool.size() <= wanted) {
        row = from.pool;
    }
    // Popular experts repeat; after enough tries the next free one is taken.
    for (int tries = 0; row.size() < std::min(wanted, from.pool.size()); ++tries) {
        std::int32_t e = from.draw(random);
        for (std::size_t i = 0; tries > 64 * topk && has(e); ++i) {
            e = from.pool[i];
        }
        if (!has(e)) {
            row.push_back(e);
        }
    }
    while (row.size() < wanted) {
        const auto e = static_cast<std::int32_t>(below(random, static_cast<std::size_t>(experts)));
        if (!has(e)) {
            row.push_back(e);
        }
    }
}

std::vector<std::int32_t> experts_of_ranks(const reference::problem& p, std::int32_t first, std::int32_t count) {
    std::vector<std::int32_t> pool;
    for (std::int32_t i = 0; i < count; ++i) {
        const std::int32_t rank = (first + i) % p.ranks;
        const std::int32_t slot = p.first_slot(rank);
        for (std::int32_t s = 0; s < p.rank_slots[static_cast<std::size_t>(rank)]; ++s) {
            pool.push_back(p.slot_expert[static_cast<std::size_t>(slot + s)]);
        }
    }
    std::sort(pool.begin(), pool.end());
    pool.erase(std::unique(pool.begin(), pool.end()), pool.end());
    return pool;
}

/// Weights of a row: positive, summing to about 1, as a softmax leaves them.
void draw_weights(reference::rank_input& in, std::int32_t topk, std::mt19937_64& random) {
    in.weights.resize(static_cast<std::size_t>(in.tokens) * static_cast<std::size_t>(topk));
    for (std::size_t row = 0; row < static_cast<std::size_t>(in.tokens); ++row) {
        const auto begin = in.weights.begin() + static_cast<std::ptrdiff_t>(row * static_cast<std::size_t>(topk));
        std::generate(begin, begin + topk, [&] { return static_cast<float>(std::exp(2 * unit(random))); });
        const float sum = std::accumulate(begin, begin + topk, 0.0f);
        std::for_each(begin, begin + topk, [&](float& w) { w /= sum; });
    }
}

void store_id(reference::problem& p, reference::rank_input& in, std::int64_t at, std::int64_t id) {
    const auto width = static_cast<std::size_t>(size_of(p.ids));
    std::memcpy(in.routing.data() + at * static_cast<std::int64_t>(width), &id, width);
}

}  // namespace

void generate_routing(reference::problem& p, const std::string& name, std::uint64_t seed) {
    std::string kind = name;
    std::replace(kind.begin(), kind.end(), '_', '-');
    if (kind != "uniform" && kind != "zipf" && kind != "grouped" && kind != "one-rank") {
        throw config_error(fmt::format("unknown routing '{}'", name),
                           "use uniform, zipf, grouped, one-rank, or a file whose name ends in .npy");
    }
    std::vector<chooser> choosers(1);
    choosers[0].pool.resize(static_cast<std::size_t>(p.experts));
    std::iota(choosers[0].pool.begin(), choosers[0].pool.end(), 0);
    if (kind == "zipf") {
        double sum = 0;
        for (std::int32_t e = 0; e < p.experts; ++e) {
            choosers[0].sums.push_back(sum += 1.0 / (1.0 + e));
        }
    } else if (kind == "one-rank") {
        choosers[0].pool = experts_of_ranks(p, 0, 1);
    } else if (kind == "grouped") {
        choosers.resize(static_cast<std::size_t>(p.ranks));
        for (std::int32_t first = 0; first < p.ranks; ++first) {
            choosers[static_cast<std::size_t>(first)].pool = experts_of_ranks(p, first, (p.ranks + 1) / 2);
        }
    }
    std::vector<std::int32_t> row;
    for (std::int32_t rank = 0; rank < p.ranks; ++rank) {
        reference::rank_input& in = p.inputs[static_cast<std::size_t>(rank)];
        auto random = stream_of(seed, 1, rank);
        in.routing.resize(static_cast<std::size_t>(static_cast<std::int64_t>(in.tokens) * p.topk * size_of(p.ids)));
        for (std::int64_t token = 0; token < in.tokens; ++token) {
            choose_row(choosers[below(random, choosers.size())], p.topk, p.experts, random, row);
            for (std::int64_t k = 0; k < p.topk; ++k) {
                store_id(p, in, token * p.topk + k, row[static_cast<std::size_t>(k)]);
            }
        }
        draw_weights(in, p.topk, random);
    }
}

void read_routing(reference::problem& p, const std::string& path, std::uint64_t seed) {
    const id_array ids = read_ids_npy(path);
    const bool by_rank = ids.shape.size() == 3;
    const std::int64_t tokens = ids.shape[by_rank ? 1 : 0];
    if (ids.shape.back() != p.topk) {
        throw config_error(
            fmt::format("{}: has K = {} experts per token, the model has {}", path, ids.shape.back(), p.topk),
            "give a file of the model's K, with -1 where a token has fewer");
    }
    if (by_rank && ids.shape[0] != p.ranks) {
        throw config_error(fmt::format("{}: has R = {} ranks, the run has {}", path, ids.shape[0], p.ranks),
                           fmt::format("use --ranks {}", ids.shape[0]));
    }
    p.ids = ids.type;
    const std::int64_t rank_bytes = tokens * p.topk * size_of(ids.type);
    for (std::int32_t rank = 0; rank < p.ranks; ++rank) {
        reference::rank_input& in = p.inputs[static_cast<std::size_t>(rank)];
        in.tokens = static_cast<std::int32_t>(tokens);
        const auto begin = ids.data.begin() + (by_rank ? rank * rank_bytes : 0);
        in.routing.assign(begin, begin + rank_bytes);
        auto random = stream_of(seed, 1, rank);
        draw_weights(in, p.topk, random);
    }
}

void generate_inputs(reference::problem& p, std::uint64_t seed) {
    for (std::int32_t rank = 0; rank < p.ranks; ++rank) {
        reference::rank_input& in = p.inputs[static_cast<std::size_t>(rank)];
        auto random = stream_of(seed, 2, rank);
        const std::int64_t elements = in.tokens * p.input_stride;
        in.input.resize(static_cast<std::size_t>(elements * size_of(p.input)));
        for (std::int64_t i = 0; i < elements; ++i) {
            // The sum of two uniforms, -2 to 2: most values small, none special.
            const std::uint64_t bits = random();
            const auto value = static_cast<float>(static_cast<double>(bits >> 40) * 0x1p-23 +
                                                  static_cast<double>(bits & 0xffffff) * 0x1p-23 - 2.0);
            reference::store_bits(p.input, in.input.data(), i, reference::encode(p.input, value));
        }
    }
}

}  // namespace epjit::tools
