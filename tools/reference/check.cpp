// SPDX-License-Identifier: Apache-2.0
#include "tools/reference/check.hpp"

#include "tools/reference/numbers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>

namespace epjit::tools::reference {
namespace {

/// Runs `part(rank, what it got)` for every rank seen on a few threads and adds the reports in rank order.
template <class Part>
report for_ranks(const problem& p, const observation& seen, Part part) {
    std::vector<report> reports(seen.ranks.size());
    const auto one = [&](std::size_t i) {
        reports[i] = part(seen.first_rank + static_cast<std::int32_t>(i), seen.ranks[i]);
    };
    const auto workers = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 8);
    const auto work = [&](std::size_t first) {
        for (std::size_t i = first; i < reports.size(); i += workers) {
            one(i);
        }
    };
    // Small jobs are done before a thread would have started.
    const std::int64_t size = static_cast<std::int64_t>(p.max_tokens() * reports.size()) * p.hidden * p.topk;
    if (workers == 1 || reports.size() == 1 || size < (1 << 22)) {
        for (std::size_t i = 0; i < reports.size(); ++i) {
            one(i);
        }
    } else {
        std::vector<std::thread> threads;
        for (std::size_t worker = 0; worker < workers; ++worker) {
            threads.emplace_back(work, worker);
        }
        for (auto& thread : threads) {
            thread.join();
        }
    }
    report total;
    for (const report& r : reports) {
        total.add(r);
    }
    return total;
}

void fail(report& r, std::string words) {
    ++r.mismatched_rows;
    if (r.first_mismatch.empty()) {
        r.first_mismatch = std::move(words);
    }
}

double difference(float a, float b) {
    if (std::isnan(a) && std::isnan(b)) {
        return 0;
    }
    const double d = std::fabs(static_cast<double>(a) - static_cast<double>(b));
    return std::isfinite(d) ? d : std::numeric_limits<double>::max();
}

/// Compares one row's elements; empty when they agree, else words. `nan_equal`: any NaN equals any NaN.
std::string compare_row(report& r, dtype type, const std::byte* seen, std::int64_t first,
                        const std::vector<std::uint32_t>& expected, bool nan_equal) {
    std::string words;
    std::size_t differ = 0;
    std::size_t last = 0;
    for (std::size_t h = 0; h < expected.size(); ++h) {
        const std::uint32_t bits = load_bits(type, seen, first + static_cast<std::int64_t>(h));
        if (bits == expected[h]) {
            continue;
        }
        const float a = decode(type, bits);
        const float b = decode(type, expected[h]);
        if (nan_equal && std::isnan(a) && std::isnan(b)) {
            continue;
        }
        r.max_error = std::max(r.max_error, difference(a, b));
        ++differ;
        last = h;
        if (words.empty()) {
            words = fmt::format("element {} is {} (0x{:x}), expected {} (0x{:x})", h, a, bits, b, expected[h]);
        }
    }
    if (differ > 1) {
        words += fmt::format("; {} elements differ, up to {}", differ, last);
    }
    return words;
}

std::string compare_lists(const char* what, const std::vector<std::int32_t>& seen,
                          const std::vector<std::int32_t>& expected) {
    if (seen.size() != expected.size()) {
        return fmt::format("{} has {} entries, expected {}", what, seen.size(), expected.size());
    }
    for (std::size_t i = 0; i < seen.size(); ++i) {
        if (seen[i] != expected[i]) {
            return fmt::format("{}[{}] is {}, expected {}", what, i, seen[i], expected[i]);
        }
    }
    return {};
}

/// The sums over plans of the tokens that want each slot; empty when right.
std::string compare_tokens(const oracle& o, const rank_output& out) {
    std::vector<std::uint64_t> expected(o.job().slot_expert.size(), 0);
    for (const assignment& a : o.assignments()) {
        expected[static_cast<std::size_t>(a.slot)] += out.plans;
    }
    if (out.slot_tokens.size() != expected.size()) {
        return fmt::format("slot_tokens has {} entries, expected {}", out.slot_tokens.size(), expected.size());
    }
    for (std::size_t slot = 0; slot < expected.size(); ++slot) {
        if (out.slot_tokens[slot] != expected[slot]) {
            return fmt::format("slot_tokens[{}] is {} after {} plans, expected {}", slot, out.slot_tokens[slot],
                               out.plans, expected[slot]);
        }
    }
    return {};
}

/// Metadata of one row; empty when right.
std::string compare_metadata(const oracle& o, const rank_output& out, std::int64_t row,
                             const std::vector<std::int32_t>& wants) {
    const problem& p = o.job();
    const auto at = static_cast<std::size_t>(row);
    const assignment* first = wants.empty() ? nullptr : &o.assignments()[static_cast<std::size_t>(wants.front())];
    if (!out.row_source.empty()) {
        const std::int32_t rank = first != nullptr ? first->source : -1;
        const std::int32_t token = first != nullptr ? first->token : -1;
        if (out.row_source[2 * at] != rank || out.row_source[2 * at + 1] != token) {
            return fmt::format("source is (rank {}, token {}), expected ({}, {})", out.row_source[2 * at],
                               out.row_source[2 * at + 1], rank, token);
        }
    }
    if (!out.row_weights.empty() && p.layout != layout::flat) {
        const float weight = first != nullptr ? first->weight : 0.0f;
        if (!(out.row_weights[at] == weight)) {
            return fmt::format("weight is {}, expected {}", out.row_weights[at], weight);
        }
    }
    const auto topk = static_cast<std::size_t>(p.topk);
    for (std::size_t k = 0; p.layout == layout::flat && k < topk; ++k) {
        const assignment* a = k < wants.size() ? &o.assignments()[static_cast<std::size_t>(wants[k])] : nullptr;
        const std::int32_t id = a != nullptr ? a->slot - p.first_slot(a->rank) : -1;
        const float weight = a != nullptr ? a->weight : 0.0f;
        if (!out.local_ids.empty() && out.local_ids[at * topk + k] != id) {
            return fmt::format("local id {} is {}, expected {}", k, out.local_ids[at * topk + k], id);
        }
        if (!out.local_weights.empty() && !(out.local_weights[at * topk + k] == weight)) {
            return fmt::format("local weight {} is {}, expected {}", k, out.local_weights[at * topk + k], weight);
        }
    }
    return {};
}

/// True when a row without data must be zero: alignment padding, or the tail where that was asked for.
bool must_be_zero(const problem& p, const expected_rank& e, std::int64_t row) {
    const bool padding = p.layout == layout::expert_major && row < e.num_rows;
    return padding ? p.zero_padding : p.zero_tail;
}

report check_rank(const oracle& o, const rank_output& out, std::int32_t rank) {
    const problem& p = o.job();
    const expected_rank& e = o.rank(rank);
    report r;
    if (out.allocated_rows < e.extent) {
        fail(r, fmt::format("rank {}: the output has {} rows, expected {}", rank, out.allocated_rows, e.extent));
        return r;
    }
    bytes elements;
    bytes scales;
    std::vector<std::uint32_t> bits(static_cast<std::size_t>(p.hidden));
    const auto scale_bytes = p.groups() * size_of(p.scales);
    for (std::int64_t row = 0; row < e.extent; ++row) {
        const auto& wants = e.rows[static_cast<std::size_t>(row)];
        std::string words = compare_metadata(o, out, row, wants);
        if (!wants.empty() || must_be_zero(p, e, row)) {
            if (wants.empty()) {
                std::fill(bits.begin(), bits.end(), 0u);
                scales.assign(scales.size(), std::byte{0});
            } else {
                o.dispatched_row(o.assignments()[static_cast<std::size_t>(wants.front())], elements, scales);
                for (std::size_t h = 0; h < bits.size(); ++h) {
                    bits[h] = load_bits(p.dispatch, elements.data(), static_cast<std::int64_t>(h));
                }
            }
            const std::string data = compare_row(r, p.dispatch, out.rows.data(), row * p.dispatch_stride, bits, false);
            if (words.empty()) {
                words = data;
            }
            if (words.empty() && !wants.empty() && !scales.empty() &&
                !std::equal(scales.begin(), scales.end(), out.scales.begin() + row * scale_bytes)) {
                words = "scales differ";
            }
            ++r.checked_rows;
        }
        if (!words.empty()) {
            fail(r, fmt::format("dispatch, rank {}, row {}{}: {}", rank, row,
                                wants.empty() ? " (no data)"
                                              : fmt::format(" (token {} of rank {})",
                                                            o.assignments()[static_cast<std::size_t>(wants[0])].token,
                                                            o.assignments()[static_cast<std::size_t>(wants[0])].source),
                                words));
        }
    }
    return r;
}

}  // namespace

void report::add(const report& other) {
    checked_rows += other.checked_rows;
    mismatched_rows += other.mismatched_rows;
    max_error = std::max(max_error, other.max_error);
    if (first_mismatch.empty()) {
        first_mismatch = other.first_mismatch;
    }
}

report check_plan(const oracle& o, const observation& seen) {
    report r;
    const auto counter = [&](const char* name, std::uint64_t value, std::uint64_t expected) {
        if (value != expected) {
            fail(r, fmt::format("plan: status {} is {}, expected {}", name, value, expected));
        }
    };
    counter("bad_ids", seen.bad_ids, o.bad_ids);
    counter("duplicate_ids", seen.duplicate_ids, o.duplicate_ids);
    counter("excess_ids", seen.excess_ids, o.excess_ids);
    counter("dropped_rows", seen.dropped_rows, o.dropped_rows);
    for (std::size_t i = 0; i < seen.ranks.size(); ++i) {
        const std::int32_t rank = seen.first_rank + static_cast<std::int32_t>(i);
        const rank_output& out = seen.ranks[i];
        const expected_rank& e = o.rank(rank);
        std::string words = compare_lists("counts", out.counts, e.counts);
        if (words.empty()) {
            words = compare_lists("offsets", out.offsets, e.offsets);
        }
        if (words.empty() && out.num_rows != e.num_rows) {
            words = fmt::format("num_rows is {}, expected {}", out.num_rows, e.num_rows);
        }
        if (words.empty() && o.job().count_tokens) {
            words = compare_tokens(o, out);
        }
        if (!words.empty()) {
            fail(r, fmt::format("plan, rank {}: {}", rank, words));
        }
    }
    return r;
}

report check_dispatch(const oracle& o, const observation& seen) {
    return for_ranks(o.job(), seen,
                     [&](std::int32_t rank, const rank_output& out) { return check_rank(o, out, rank); });
}

report check_combine(const oracle& o, const observation& seen) {
    const problem& p = o.job();
    return for_ranks(p, seen, [&](std::int32_t rank, const rank_output& out) {
        report r;
        std::vector<std::uint32_t> bits;
        for (std::int32_t token = 0; token < p.inputs[static_cast<std::size_t>(rank)].tokens; ++token) {
            o.combined_row(rank, token, bits);
            ++r.checked_rows;
            const std::string words =
                compare_row(r, p.combine, out.result.data(), token * p.combine_stride, bits, true);
            if (!words.empty()) {
                fail(r, fmt::format("combine, rank {}, token {}: {}", rank, token, words));
            }
        }
        return r;
    });
}

report check_weight_gradients(const oracle& o, const observation& seen) {
    const problem& p = o.job();
    return for_ranks(p, seen, [&](std::int32_t rank, const rank_output& got) {
        report r;
        const auto& out = got.weight_gradients;
        const auto columns = static_cast<std::size_t>(p.weight_columns());
        for (std::int32_t token = 0; token < p.inputs[static_cast<std::size_t>(rank)].tokens; ++token) {
            const std::vector<float> expected = o.weight_gradients(rank, token);
            ++r.checked_rows;
            for (std::size_t c = 0; c < columns; ++c) {
                const float value = out[static_cast<std::size_t>(token) * columns + c];
                const auto bits = encode(dtype::f32, value);
                if (bits != encode(dtype::f32, expected[c])) {
                    r.max_error = std::max(r.max_error, difference(value, expected[c]));
                    fail(r, fmt::format("weight gradients, rank {}, token {}, column {}: {}, expected {}", rank, token,
                                        c, value, expected[c]));
                    break;
                }
            }
        }
        return r;
    });
}

report check_all(const oracle& o, const observation& seen) {
    report r = check_plan(o, seen);
    r.add(check_dispatch(o, seen));
    r.add(check_combine(o, seen));
    if (o.job().weight_gradients) {
        r.add(check_weight_gradients(o, seen));
    }
    return r;
}

}  // namespace epjit::tools::reference
