// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/cases.hpp"

#include "tools/reference/expert.hpp"
#include "tools/reference/numbers.hpp"
#include "tools/reference/oracle.hpp"
#include "tools/run/routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace epjit::tests {
namespace {

using tools::reference::problem;
using tools::reference::rank_input;
using generator = std::mt19937_64;

std::int32_t between(generator& random, std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random);
}

bool chance(generator& random, double p) {
    return std::bernoulli_distribution(p)(random);
}

template <class T>
T pick(generator& random, std::initializer_list<T> values) {
    return *(values.begin() + between(random, 0, static_cast<std::int32_t>(values.size()) - 1));
}

void draw_types(shape& s, generator& random, int index) {
    constexpr dtype wide[] = {dtype::bf16, dtype::fp16, dtype::f32};
    s.combine = wide[index % 3];
    s.input = s.dispatch = index % 5 == 0 ? wide[between(random, 0, 2)] : s.combine;
    if (index % 4 == 3) {
        s.dispatch = dtype::fp8_e4m3;
        s.scales = chance(random, 0.5) ? scale_type::f32 : scale_type::ue8m0;
        if (chance(random, 0.4)) {
            s.input = dtype::fp8_e4m3;
            if (chance(random, 0.4)) {
                s.scales = scale_type::none;  // opaque rows
            }
        }
    }
}

/// Slots by rank, some ranks empty, the order of experts shuffled.
void place_at_random(problem& p, std::int32_t slots, generator& random) {
    p.default_placement = false;
    p.slot_expert.resize(slots);
    for (std::int32_t s = 0; s < slots; ++s) {
        p.slot_expert[s] = s < p.experts ? s : between(random, 0, p.experts - 1);
    }
    std::shuffle(p.slot_expert.begin(), p.slot_expert.end(), random);
    p.rank_slots.assign(p.ranks, 0);
    const bool skip_first = p.ranks > 2 && chance(random, 0.3);
    for (std::int32_t s = 0; s < slots; ++s) {
        ++p.rank_slots[between(random, skip_first ? 1 : 0, p.ranks - 1)];
    }
}

/// Ids of one rank, K a token, before they are written in their width.
std::vector<std::int64_t> draw_ids(const problem& p, std::int32_t choices, std::int32_t tokens, generator& random) {
    // Skew: all choices alike, a hot few, or (with one expert a token) one that takes all.
    const std::int32_t hot = chance(random, 0.4) ? std::min(choices, p.topk + between(random, 0, 2)) : choices;
    const double dropped = pick(random, {0.0, 0.0, 0.1, 0.9});
    const double bad = pick(random, {0.0, 0.0, 0.05});
    const double duplicate = pick(random, {0.0, 0.0, 0.1});
    const std::int32_t offset = between(random, 0, choices - hot);
    std::vector<std::int64_t> ids;
    std::vector<std::int32_t> pool(hot);
    std::iota(pool.begin(), pool.end(), offset);
    for (std::int32_t t = 0; t < tokens; ++t) {
        for (std::int32_t k = 0; k < p.topk; ++k) {
            std::swap(pool[k], pool[between(random, k, hot - 1)]);
            std::int64_t id = pool[k];
            if (chance(random, dropped)) {
                id = -1;
            } else if (chance(random, bad)) {
                id = pick<std::int64_t>(random, {choices, choices + 1, 32767, -2});
            } else if (k > 0 && chance(random, duplicate)) {
                id = ids[ids.size() - static_cast<std::size_t>(between(random, 1, k))];
            }
            ids.push_back(id);
        }
    }
    return ids;
}

template <class T>
void append_as(tools::reference::bytes& out, std::int64_t id) {
    const T value = static_cast<T>(id);
    const std::size_t at = out.size();
    out.resize(at + sizeof value);
    std::memcpy(out.data() + at, &value, sizeof value);
}

void write_ids(const problem& p, rank_input& in, const std::vector<std::int64_t>& ids) {
    for (const std::int64_t id : ids) {
        switch (p.ids) {
            case id_type::i16: append_as<std::int16_t>(in.routing, id); break;
            case id_type::i32: append_as<std::int32_t>(in.routing, id); break;
            case id_type::u32:
                // Below -1 an unsigned id is merely large.
                append_as<std::uint32_t>(in.routing, id);
                break;
            case id_type::i64: append_as<std::int64_t>(in.routing, id); break;
        }
    }
}

void write_map(const problem& p, rank_input& in, const std::vector<std::int64_t>& ids, generator& random) {
    in.routing.assign(static_cast<std::size_t>(in.tokens) * static_cast<std::size_t>(p.experts), std::byte{0});
    for (std::size_t i = 0; i < ids.size(); ++i) {
        const std::size_t token = i / static_cast<std::size_t>(p.topk);
        if (ids[i] >= 0 && ids[i] < p.experts) {
            in.routing[token * static_cast<std::size_t>(p.experts) + static_cast<std::size_t>(ids[i])] =
                static_cast<std::byte>(between(random, 1, 255));
        }
    }
    if (in.tokens > 0 && chance(random, 0.2)) {  // one row with every expert
        std::fill_n(in.routing.begin(), p.experts, std::byte{1});
    }
}

void draw_weights(const problem& p, rank_input& in, generator& random) {
    std::normal_distribution<float> normal;
    in.weights.resize(static_cast<std::size_t>(in.tokens) * static_cast<std::size_t>(p.weight_columns()));
    for (float& w : in.weights) {
        w = chance(random, 0.05) ? 0.0F : normal(random);
    }
}

/// Scales of rows that are fp8 already.
void draw_input_scales(problem& p, generator& random) {
    if (p.input != dtype::fp8_e4m3 || p.scales == scale_type::none) {
        return;
    }
    for (rank_input& in : p.inputs) {
        for (std::int64_t i = 0; i < in.tokens * p.groups(); ++i) {
            if (p.scales == scale_type::f32) {
                const float scale =
                    std::ldexp(1.0F + static_cast<float>(between(random, 0, 127)) / 128.0F, between(random, -6, 3));
                const std::size_t at = in.input_scales.size();
                in.input_scales.resize(at + sizeof scale);
                std::memcpy(in.input_scales.data() + at, &scale, sizeof scale);
            } else {
                in.input_scales.push_back(static_cast<std::byte>(between(random, 120, 130)));
            }
        }
    }
}

std::int64_t most_rows(const problem& p, std::int32_t rank) {
    if (p.layout == layout::masked) {
        return std::int64_t{p.rank_slots[rank]} * p.inputs[rank].capacity;
    }
    std::int64_t tokens = 0;
    for (const rank_input& in : p.inputs) {
        tokens += in.tokens;
    }
    return std::max<std::int64_t>(p.inputs[rank].capacity,
                                  tokens * p.topk + std::int64_t{p.rank_slots[rank]} * p.alignment);
}

void draw_gradients(problem& p, generator& random) {
    p.weight_gradients = p.layout != layout::flat && chance(random, 0.4);
    if (!p.weight_gradients) {
        return;
    }
    const bool per_row = chance(random, 0.5);
    std::normal_distribution<float> normal;
    for (std::int32_t r = 0; r < p.ranks; ++r) {
        rank_input& in = p.inputs[r];
        if (per_row) {
            // At least one, so that every rank is seen to bring per-row gradients.
            in.row_gradients.resize(static_cast<std::size_t>(std::max<std::int64_t>(1, most_rows(p, r))));
            std::generate(in.row_gradients.begin(), in.row_gradients.end(), [&] { return normal(random); });
            continue;
        }
        const std::int64_t elements = std::int64_t{in.tokens} * p.hidden;
        in.gradient.resize(static_cast<std::size_t>(elements * size_of(p.combine)));
        for (std::int64_t i = 0; i < elements; ++i) {
            tools::reference::store_bits(p.combine, in.gradient.data(), i,
                                         tools::reference::encode(p.combine, normal(random)));
        }
    }
}

void draw_capacities(problem& p, generator& random) {
    const bool bounded = p.mode == mode::fixed || p.layout == layout::masked;
    const bool too_small = bounded && chance(random, 0.3);
    p.overflow = too_small || chance(random, 0.5) ? overflow::drop : overflow::fail;
    const std::vector<std::int32_t> needed = tools::reference::needed_rows(p);
    for (std::int32_t r = 0; r < p.ranks; ++r) {
        std::int32_t capacity = needed[r] + between(random, 0, 17);
        if (too_small) {
            capacity = static_cast<std::int32_t>(needed[r] * (0.3 + 0.7 * chance(random, 0.5)));
        }
        p.inputs[r].capacity = std::max(1, capacity);
    }
}

}  // namespace

std::vector<shape> draw_shapes(std::mt19937_64& random, int count) {
    constexpr std::int32_t ranks[] = {1, 4, 1, 8, 5, 1, 2, 16, 1, 7, 64, 3};
    constexpr std::int32_t hidden[] = {128, 7168, 64, 1, 136, 2880, 100, 512, 7, 2048, 24, 1024, 130, 36};
    constexpr std::int32_t topk[] = {8, 1, 4, 2, 32, 6, 3, 10, 5, 16};
    std::vector<shape> shapes;
    for (int i = 0; i < count; ++i) {
        shape s;
        s.ranks = ranks[i % std::size(ranks)];
        s.hidden = hidden[i % std::size(hidden)];
        s.topk = topk[i % std::size(topk)];
        s.experts = std::max(s.topk, pick(random, {1, 8, 17, 60, 64, 128, 160, 256, 384}));
        if (i % 13 == 12) {
            s.experts = 2048;
        }
        s.slots = s.experts + (i % 3 == 2 ? between(random, 0, 2 * s.ranks) : 0);
        s.form = i % 4 == 2 ? routing_form::sparse : i % 7 == 6 ? routing_form::slots : routing_form::dense;
        draw_types(s, random, i);
        shapes.push_back(s);
    }
    return shapes;
}

problem draw_job(const shape& s, std::mt19937_64& random) {
    problem p;
    p.ranks = s.ranks;
    p.experts = s.experts;
    p.topk = s.topk;
    p.hidden = s.hidden;
    p.input = s.input;
    p.dispatch = s.dispatch;
    p.combine = s.combine;
    p.scales = s.scales;
    p.form = s.form;
    if (s.slots == s.experts && chance(random, 0.6)) {
        tools::reference::place_by_default(p);
    } else {
        place_at_random(p, s.slots, random);
    }
    const std::int32_t hosts = between(random, 1, std::min(4, s.ranks));
    for (std::int32_t r = 0; r < s.ranks; ++r) {
        p.rank_hosts.push_back(between(random, 0, hosts - 1));
    }
    tools::reference::make_experts(p, random());
    return p;
}

void draw_call(problem& p, std::mt19937_64& random, const call_limits& limits, run_style& style) {
    p.ids = pick(random, {id_type::i16, id_type::i32, id_type::u32, id_type::i64});
    p.layout = pick(random, {layout::expert_major, layout::expert_major, layout::flat, layout::masked});
    p.mode = chance(random, 0.5) ? mode::exact : mode::fixed;
    p.alignment = p.layout == layout::expert_major ? pick(random, {1, 1, 2, 8, 16, 128}) : 1;
    p.reduction = p.layout == layout::flat
                      ? pick(random, {reduction::per_rank, reduction::per_host})
                      : pick(random, {reduction::per_rank, reduction::per_host, reduction::per_row});
    p.count_tokens = chance(random, 0.5);
    const std::int32_t extra = chance(random, 0.3) ? pick(random, {1, 4, 8, 16}) : 0;
    p.input_stride = p.hidden + extra;
    p.dispatch_stride = p.hidden + (chance(random, 0.5) ? extra : 0);
    p.combine_stride = p.hidden + (chance(random, 0.5) ? extra : 0);
    p.weigh_input = p.layout != layout::flat && p.input != dtype::fp8_e4m3 && chance(random, 0.3);
    p.weigh_combine = chance(random, 0.6);
    p.zero_padding = chance(random, 0.7);
    p.zero_tail = chance(random, 0.3);

    const std::int64_t per_token = std::int64_t{p.ranks} * p.topk * p.hidden;
    const auto affordable = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(limits.elements / per_token, 1, pick(random, {40, 300, 3000})));
    const std::int32_t most = std::min(affordable, limits.max_tokens);
    const auto choices = p.form == routing_form::slots ? static_cast<std::int32_t>(p.slot_expert.size()) : p.experts;
    p.inputs.assign(static_cast<std::size_t>(p.ranks), {});
    for (rank_input& in : p.inputs) {
        in.tokens = chance(random, 0.15) ? 0 : between(random, 1, most);
        const std::vector<std::int64_t> ids = draw_ids(p, choices, in.tokens, random);
        p.form == routing_form::sparse ? write_map(p, in, ids, random) : write_ids(p, in, ids);
        draw_weights(p, in, random);
    }
    tools::generate_inputs(p, random());
    draw_input_scales(p, random);
    draw_capacities(p, random);
    draw_gradients(p, random);
    style.iterations = between(random, 1, 3);
    style.halves = chance(random, 0.3);
    p.text = fmt::format("R={} E={} S={} K={} H={} {}->{} ({}) combine {} {} ids {} {} {} align {} {}{}{}{}", p.ranks,
                         p.experts, p.slot_expert.size(), p.topk, p.hidden, name(p.input), name(p.dispatch),
                         name(p.scales), name(p.combine), name(p.form), name(p.ids), name(p.layout), name(p.mode),
                         p.alignment, name(p.reduction), p.overflow == overflow::drop ? " drop" : "",
                         p.weigh_input ? " weigh_input" : "", p.weigh_combine ? " weigh_combine" : "");
}

problem draw_case(const shape& s, std::mt19937_64& random, std::int64_t budget, run_style& style) {
    problem p = draw_job(s, random);
    draw_call(p, random, {budget, std::numeric_limits<std::int32_t>::max()}, style);
    return p;
}

}  // namespace epjit::tests
