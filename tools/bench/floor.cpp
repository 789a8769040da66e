// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/floor.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::tools {
namespace {

/// Goals were set on two H200s joined by NVLink (design.md, section 4).
constexpr double reference_peer_gbps = 391;
constexpr double reference_copy_gbps = 4100;
constexpr double tolerated = 0.95;

/// First expert of each rank and the end: the first E mod R ranks hold one more.
std::vector<std::int32_t> first_experts(std::int32_t experts, std::int32_t ranks) {
    std::vector<std::int32_t> first{0};
    for (std::int32_t r = 0; r < ranks; ++r) {
        first.push_back(first.back() + experts / ranks + (r < experts % ranks ? 1 : 0));
    }
    return first;
}

/// bytes / (GB/s) in microseconds; no rate, no time.
double us_at(double bytes, double gbps) noexcept {
    return gbps > 0 ? bytes / gbps * 1e-3 : 0;
}

}  // namespace

std::vector<rank_rows> count_rows(std::span<const std::vector<std::int64_t>> ids, std::int32_t topk,
                                  std::int32_t experts) {
    const auto ranks = static_cast<std::int32_t>(ids.size());
    const std::vector<std::int32_t> first = first_experts(experts, ranks);
    std::vector<std::int32_t> rank_of(experts);
    for (std::int32_t r = 0; r < ranks; ++r) {
        std::fill(rank_of.begin() + first[r], rank_of.begin() + first[r + 1], r);
    }
    std::vector<rank_rows> rows(ranks);
    std::vector<std::int32_t> wanted;
    for (std::int32_t r = 0; r < ranks; ++r) {
        rows[r].tokens = static_cast<std::int64_t>(ids[r].size()) / topk;
        for (std::int64_t t = 0; t < rows[r].tokens; ++t) {
            const auto row = ids[r].begin() + t * topk;
            wanted.clear();
            for (auto id = row; id != row + topk; ++id) {
                if (*id < 0 || *id >= experts || std::find(row, id, *id) != id) {
                    continue;
                }
                const std::int32_t to = rank_of[*id];
                ++rows[to].placed;
                if (std::find(wanted.begin(), wanted.end(), to) == wanted.end()) {
                    wanted.push_back(to);
                }
            }
            for (const std::int32_t to : wanted) {
                rows[r].own += to == r ? 1 : 0;
                rows[r].leaving += to == r ? 0 : 1;
                rows[to].arriving += to == r ? 0 : 1;
            }
        }
    }
    return rows;
}

std::int64_t output_rows(const rank_rows& rows, layout l) noexcept {
    return l == layout::flat ? rows.own + rows.arriving : rows.placed;
}

std::int64_t row_bytes(std::int32_t hidden, dtype type, scale_type scales) noexcept {
    return hidden * size_of(type) + (hidden + 127) / 128 * size_of(scales);
}

operation_bytes bytes_of(std::span<const rank_rows> rows, layout l, std::int64_t bytes_of_row) noexcept {
    operation_bytes most;
    for (const rank_rows& r : rows) {
        const std::int64_t link = std::max(r.leaving, r.arriving);
        // On flat a row that arrives lies in its place already; elsewhere it is read to be copied to its experts.
        const std::int64_t read = r.tokens + (l == layout::flat ? 0 : r.arriving);
        const std::int64_t local = read + output_rows(r, l);
        most.link = std::max(most.link, static_cast<std::uint64_t>(link * bytes_of_row));
        most.local = std::max(most.local, static_cast<std::uint64_t>(local * bytes_of_row));
    }
    return most;
}

double floor_of(const operation_bytes& bytes, const machine_rates& rates, int phases) noexcept {
    const double us = std::max(us_at(static_cast<double>(bytes.link), rates.peer_gbps),
                               us_at(static_cast<double>(bytes.local), rates.copy_gbps));
    return us < latency_floor_us ? us + phases * rates.t0_us() : us;
}

std::string rates_too_low(const machine_rates& rates) {
    if (rates.peer_gbps < tolerated * reference_peer_gbps) {
        return fmt::format(
            "the copy engine moved {:.0f} GB/s to the peer with both directions busy, {:.0f} are expected",
            rates.peer_gbps, reference_peer_gbps);
    }
    if (rates.copy_gbps < tolerated * reference_copy_gbps) {
        return fmt::format("a local copy read and wrote {:.0f} GB/s, {:.0f} are expected", rates.copy_gbps,
                           reference_copy_gbps);
    }
    return {};
}

double median_of(std::vector<double> values) {
    if (values.empty()) {
        return 0;
    }
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

double slowest_median(std::span<const std::vector<double>> us_of_rank) {
    if (us_of_rank.empty()) {
        return 0;
    }
    std::vector<double> slowest = us_of_rank.front();
    for (const std::vector<double>& us : us_of_rank.subspan(1)) {
        for (std::size_t i = 0; i < slowest.size(); ++i) {
            slowest[i] = std::max(slowest[i], us.at(i));
        }
    }
    return median_of(std::move(slowest));
}

}  // namespace epjit::tools
