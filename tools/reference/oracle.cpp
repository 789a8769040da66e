// SPDX-License-Identifier: Apache-2.0
#include "tools/reference/oracle.hpp"

#include "tools/reference/expert.hpp"
#include "tools/reference/numbers.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <tuple>

namespace epjit::tools::reference {
namespace {

constexpr std::int64_t unbounded = std::numeric_limits<std::int32_t>::max();

std::int64_t id_at(const problem& p, const rank_input& in, std::int64_t index) {
    std::uint64_t raw = 0;
    const auto width = static_cast<std::size_t>(size_of(p.ids));
    std::memcpy(&raw, in.routing.data() + index * static_cast<std::int64_t>(width), width);
    switch (p.ids) {
        case id_type::i16: return static_cast<std::int16_t>(raw);
        case id_type::i32:
        case id_type::u32: return static_cast<std::int32_t>(raw);  // u32: ids above 2^31 are as bad as negative ones
        case id_type::i64: break;
    }
    return static_cast<std::int64_t>(raw);
}

}  // namespace

oracle::oracle(const problem& p) : p_(p), copies_(static_cast<std::size_t>(p.experts)) {
    for (std::int32_t rank = 0; rank < p.ranks; ++rank) {
        slot_rank_.insert(slot_rank_.end(), static_cast<std::size_t>(p.rank_slots[static_cast<std::size_t>(rank)]),
                          rank);
    }
    for (std::size_t slot = 0; slot < p.slot_expert.size(); ++slot) {
        copies_[static_cast<std::size_t>(p.slot_expert[slot])].push_back(static_cast<std::int32_t>(slot));
    }
    for (std::int32_t source = 0; source < p.ranks; ++source) {
        for (std::int32_t token = 0; token < p.inputs[static_cast<std::size_t>(source)].tokens; ++token) {
            choose(source, token);
        }
    }
    std::sort(all_.begin(), all_.end(), [](const assignment& a, const assignment& b) {
        return std::tie(a.slot, a.source, a.token) < std::tie(b.slot, b.source, b.token);
    });
    place();
    tokens_.resize(static_cast<std::size_t>(p.ranks));
    for (std::size_t source = 0; source < tokens_.size(); ++source) {
        tokens_[source].resize(static_cast<std::size_t>(p.inputs[source].tokens));
    }
    for (std::size_t i = 0; i < all_.size(); ++i) {
        if (all_[i].row >= 0) {
            tokens_[static_cast<std::size_t>(all_[i].source)][static_cast<std::size_t>(all_[i].token)].push_back(
                static_cast<std::int32_t>(i));
        }
    }
}

void oracle::choose(std::int32_t source, std::int32_t token) {
    const rank_input& in = p_.inputs[static_cast<std::size_t>(source)];
    std::set<std::int32_t> taken;
    const auto take = [&](std::int32_t expert, std::int32_t slot, std::int32_t column) {
        if (slot < 0) {
            const auto& copies = copies_[static_cast<std::size_t>(expert)];
            slot = copies[static_cast<std::size_t>(source + token) % copies.size()];
        }
        const auto at = static_cast<std::size_t>(token * p_.weight_columns() + column);
        all_.push_back({slot, slot_rank_[static_cast<std::size_t>(slot)], source, token, column,
                        at < in.weights.size() ? in.weights[at] : 1.0f});
    };
    if (p_.form == routing_form::sparse) {
        for (std::int32_t expert = 0; expert < p_.experts; ++expert) {
            const auto at = static_cast<std::size_t>(static_cast<std::int64_t>(token) * p_.experts + expert);
            if (in.routing[at] != std::byte{0}) {
                if (taken.size() < static_cast<std::size_t>(p_.topk)) {
                    taken.insert(expert);
                    take(expert, -1, expert);
                } else {
                    ++excess_ids;
                }
            }
        }
        return;
    }
    for (std::int32_t k = 0; k < p_.topk; ++k) {
        const std::int64_t id = id_at(p_, in, static_cast<std::int64_t>(token) * p_.topk + k);
        const bool slots = p_.form == routing_form::slots;
        if (id == -1) {
            continue;
        }
        if (id < 0 || id >= static_cast<std::int64_t>(slots ? p_.slot_expert.size() : copies_.size())) {
            ++bad_ids;
            continue;
        }
        const std::int32_t expert =
            slots ? p_.slot_expert[static_cast<std::size_t>(id)] : static_cast<std::int32_t>(id);
        if (!taken.insert(static_cast<std::int32_t>(id)).second) {
            ++duplicate_ids;
            continue;
        }
        take(expert, slots ? static_cast<std::int32_t>(id) : -1, k);
    }
}

void oracle::place() {
    ranks_.resize(static_cast<std::size_t>(p_.ranks));
    for (std::int32_t rank = 0; rank < p_.ranks; ++rank) {
        expected_rank& e = ranks_[static_cast<std::size_t>(rank)];
        const std::int32_t first = p_.first_slot(rank);
        const auto slots = static_cast<std::size_t>(p_.rank_slots[static_cast<std::size_t>(rank)]);
        const bool bounded = p_.mode == mode::fixed || p_.layout == layout::masked;
        const std::int64_t capacity = bounded ? p_.inputs[static_cast<std::size_t>(rank)].capacity : unbounded;
        std::map<std::int64_t, std::vector<std::int32_t>> rows;
        std::map<std::pair<std::int32_t, std::int32_t>, std::vector<std::int32_t>> by_token;
        std::vector<std::vector<std::int32_t>> by_slot(slots);
        for (std::size_t i = 0; i < all_.size(); ++i) {
            if (all_[i].rank == rank) {
                by_slot[static_cast<std::size_t>(all_[i].slot - first)].push_back(static_cast<std::int32_t>(i));
                by_token[{all_[i].source, all_[i].token}].push_back(static_cast<std::int32_t>(i));
            }
        }
        e.counts.assign(slots, 0);
        e.offsets.assign(slots + 1, 0);
        const auto put = [&](std::int32_t i, std::int64_t row) {
            assignment& a = all_[static_cast<std::size_t>(i)];
            a.row = row;
            rows[row].push_back(i);
            ++e.counts[static_cast<std::size_t>(a.slot - first)];
        };
        std::int64_t end = 0;
        if (p_.layout == layout::flat) {
            for (const auto& [key, list] : by_token) {
                if (end >= capacity) {
                    ++dropped_rows;
                    continue;
                }
                for (const std::int32_t i : list) {
                    put(i, end);
                }
                ++end;
            }
        } else if (p_.layout == layout::masked) {
            for (std::size_t slot = 0; slot < slots; ++slot) {
                e.offsets[slot] = static_cast<std::int32_t>(end);
                for (std::size_t n = 0; n < by_slot[slot].size(); ++n) {
                    if (static_cast<std::int64_t>(n) < capacity) {
                        put(by_slot[slot][n], end + static_cast<std::int64_t>(n));
                    } else {
                        ++dropped_rows;
                    }
                }
                end += capacity;
            }
        } else {
            for (std::size_t slot = 0; slot < slots; ++slot) {
                e.offsets[slot] = static_cast<std::int32_t>(std::min(end, capacity));
                for (const std::int32_t i : by_slot[slot]) {
                    if (end < capacity) {
                        put(i, end);
                    } else {
                        ++dropped_rows;
                    }
                    ++end;
                }
                while (end % p_.alignment != 0) {
                    ++end;
                }
            }
            end = std::min(end, capacity);
        }
        e.offsets[slots] = e.num_rows = static_cast<std::int32_t>(end);
        e.extent = p_.mode == mode::fixed && p_.layout != layout::masked ? capacity : end;
        e.rows.resize(static_cast<std::size_t>(e.extent));
        for (auto& [row, list] : rows) {
            e.rows[static_cast<std::size_t>(row)] = std::move(list);
        }
    }
}

void oracle::dispatched_row(const assignment& a, bytes& elements, bytes& scales) const {
    const rank_input& in = p_.inputs[static_cast<std::size_t>(a.source)];
    const std::int64_t first = a.token * p_.input_stride;
    elements.assign(static_cast<std::size_t>(p_.hidden * size_of(p_.dispatch)), std::byte{0});
    const bool scaled = p_.dispatch == dtype::fp8_e4m3 && p_.scales != scale_type::none;
    scales.assign(scaled ? static_cast<std::size_t>(p_.groups() * size_of(p_.scales)) : 0, std::byte{0});
    if (p_.input == p_.dispatch && !p_.weigh_input) {
        std::copy_n(in.input.begin() + first * size_of(p_.input), elements.size(), elements.begin());
        if (scaled) {
            std::copy_n(in.input_scales.begin() + a.token * static_cast<std::int64_t>(scales.size()), scales.size(),
                        scales.begin());
        }
        return;
    }
    std::vector<float> values(static_cast<std::size_t>(p_.hidden));
    for (std::int64_t h = 0; h < p_.hidden; ++h) {
        const float x = decode(p_.input, load_bits(p_.input, in.input.data(), first + h));
        values[static_cast<std::size_t>(h)] = p_.weigh_input ? x * a.weight : x;
    }
    if (p_.input == p_.dispatch) {
        for (std::int64_t h = 0; h < p_.hidden; ++h) {
            store_bits(p_.dispatch, elements.data(), h, encode(p_.dispatch, values[static_cast<std::size_t>(h)]));
        }
        return;
    }
    for (std::int64_t g = 0; g < p_.groups(); ++g) {
        const std::int64_t begin = g * 128;
        const auto count = static_cast<std::size_t>(std::min<std::int64_t>(128, p_.hidden - begin));
        quantise_group({values.data() + begin, count}, p_.scales, elements.data() + begin,
                       scales.data() + g * size_of(p_.scales));
    }
}

void oracle::expert_row(const assignment& a, std::vector<std::uint32_t>& bits) const {
    bytes elements;
    bytes scales;
    dispatched_row(a, elements, scales);
    std::vector<float> values(static_cast<std::size_t>(p_.hidden));
    for (std::int64_t h = 0; h < p_.hidden; ++h) {
        const float v = decode(p_.dispatch, load_bits(p_.dispatch, elements.data(), h));
        values[static_cast<std::size_t>(h)] = scales.empty() ? v : v * decode_scale(p_.scales, scales.data(), h / 128);
    }
    bits.resize(values.size());
    apply_expert(p_, p_.slot_expert[static_cast<std::size_t>(a.slot)], values, bits);
}

void oracle::combined_row(std::int32_t source, std::int32_t token, std::vector<std::uint32_t>& bits) const {
    const auto hidden = static_cast<std::size_t>(p_.hidden);
    const auto rounded = [&](float f) { return decode(p_.combine, encode(p_.combine, f)); };
    const auto& list = of_token(source, token);
    std::vector<float> total(hidden, 0.0f);
    std::vector<std::uint32_t> produced;
    std::map<std::int32_t, std::map<std::int32_t, std::vector<float>>> partials;  // host, rank
    for (const std::int32_t i : list) {
        const assignment& a = all_[static_cast<std::size_t>(i)];
        expert_row(a, produced);
        const std::int32_t host =
            p_.reduction == reduction::per_host ? p_.rank_hosts[static_cast<std::size_t>(a.rank)] : 0;
        std::vector<float>* sum = &total;
        if (p_.reduction != reduction::per_row) {
            sum = &partials[host][a.rank];
            sum->resize(hidden, 0.0f);
        }
        const float weight = p_.weigh_combine ? a.weight : 1.0f;
        for (std::size_t h = 0; h < hidden; ++h) {
            (*sum)[h] = std::fma(weight, decode(p_.combine, produced[h]), (*sum)[h]);
        }
    }
    for (const auto& [host, by_rank] : partials) {
        std::vector<float> host_sum(hidden, 0.0f);
        for (const auto& [rank, partial] : by_rank) {
            for (std::size_t h = 0; h < hidden; ++h) {
                (p_.reduction == reduction::per_host ? host_sum : total)[h] += rounded(partial[h]);
            }
        }
        for (std::size_t h = 0; h < hidden && p_.reduction == reduction::per_host; ++h) {
            total[h] += rounded(host_sum[h]);
        }
    }
    bits.resize(hidden);
    for (std::size_t h = 0; h < hidden; ++h) {
        bits[h] = encode(p_.combine, total[h]);
    }
}

std::vector<float> oracle::weight_gradients(std::int32_t source, std::int32_t token) const {
    std::vector<float> out(static_cast<std::size_t>(p_.weight_columns()), 0.0f);
    const rank_input& owner = p_.inputs[static_cast<std::size_t>(source)];
    std::vector<std::uint32_t> produced;
    for (const std::int32_t i : of_token(source, token)) {
        const assignment& a = all_[static_cast<std::size_t>(i)];
        float& gradient = out[static_cast<std::size_t>(a.column)];
        const auto& given = p_.inputs[static_cast<std::size_t>(a.rank)].row_gradients;
        if (!given.empty()) {
            gradient = given[static_cast<std::size_t>(a.row)];
            continue;
        }
        expert_row(a, produced);
        float lanes[32] = {};
        for (std::int64_t h = 0; h < p_.hidden; ++h) {
            const float g = decode(p_.combine, load_bits(p_.combine, owner.gradient.data(),
                                                         static_cast<std::int64_t>(token) * p_.hidden + h));
            float& lane = lanes[h / 8 % 32];
            lane = std::fma(g, decode(p_.combine, produced[static_cast<std::size_t>(h)]), lane);
        }
        for (const int distance : {16, 8, 4, 2, 1}) {
            for (int lane = 0; lane + distance < 32; ++lane) {
                lanes[lane] = lanes[lane] + lanes[lane + distance];
            }
        }
        gradient = lanes[0];
    }
    return out;
}

std::vector<std::int32_t> needed_rows(problem p) {
    p.mode = mode::exact;
    const bool masked = p.layout == layout::masked;
    if (masked) {
        p.layout = layout::expert_major;
    }
    const oracle o(p);
    std::vector<std::int32_t> needed;
    for (std::int32_t rank = 0; rank < p.ranks; ++rank) {
        const auto& counts = o.rank(rank).counts;
        needed.push_back(!masked          ? o.rank(rank).num_rows
                         : counts.empty() ? 0
                                          : *std::max_element(counts.begin(), counts.end()));
    }
    return needed;
}

}  // namespace epjit::tools::reference
