// SPDX-License-Identifier: Apache-2.0
#include "tests/host/cases.hpp"

#include "tools/reference/expert.hpp"
#include "tools/reference/numbers.hpp"
#include "tools/reference/oracle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <utility>

namespace epjit::tests {
namespace {

namespace ref = tools::reference;
using ref::problem;

/// The standard's distributions differ between libraries; these do not.
class dice {
   public:
    explicit dice(std::uint64_t seed) : engine_(seed * 0x9e3779b97f4a7c15ull + 1) {}
    /// lo to hi, both included.
    std::int64_t in(std::int64_t lo, std::int64_t hi) {
        return lo + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(hi - lo + 1));
    }
    bool chance(int percent) { return in(1, 100) <= percent; }
    template <class T, std::size_t N>
    T one_of(const T (&values)[N]) {
        return values[static_cast<std::size_t>(in(0, static_cast<std::int64_t>(N) - 1))];
    }
    double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

   private:
    std::mt19937_64 engine_;
};

void draw_shape(problem& p, dice& d, const case_limits& limits) {
    static constexpr std::int32_t rank_choices[] = {1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 16, 33, 64};
    static constexpr std::int32_t expert_choices[] = {1, 2, 3, 8, 16, 37, 64, 130, 257};
    static constexpr std::int32_t hidden_choices[] = {1,  3,  7,   8,   16,  24,  32,  33,  40, 64,
                                                      72, 96, 100, 128, 130, 256, 264, 384, 520};
    p.ranks = std::min(d.one_of(rank_choices), limits.max_ranks);
    p.experts = d.chance(4) ? static_cast<std::int32_t>(d.in(300, 2048)) : d.one_of(expert_choices);
    p.experts = d.chance(20) ? static_cast<std::int32_t>(d.in(1, 64)) : p.experts;
    p.experts = std::min(p.experts, limits.max_experts);
    p.topk = static_cast<std::int32_t>(d.in(1, std::min(p.experts, d.chance(15) ? 32 : 8)));
    p.hidden = std::min(d.one_of(hidden_choices), limits.max_hidden);
    p.hidden = d.chance(15) ? static_cast<std::int32_t>(d.in(1, limits.max_hidden)) : p.hidden;
}

void draw_types(problem& p, dice& d) {
    static constexpr dtype wide[] = {dtype::bf16, dtype::fp16, dtype::f32};
    static constexpr scale_type scaled[] = {scale_type::f32, scale_type::ue8m0};
    static constexpr scale_type any_scale[] = {scale_type::none, scale_type::f32, scale_type::ue8m0};
    p.input = p.dispatch = d.one_of(wide);
    if (d.chance(30)) {
        p.dispatch = dtype::fp8_e4m3;
        p.scales = d.one_of(scaled);
        if (d.chance(40)) {
            p.input = dtype::fp8_e4m3;
            p.scales = d.one_of(any_scale);
        }
    }
    p.combine = d.one_of(wide);
    const auto stride = [&] { return p.hidden + (d.chance(60) ? 0 : d.in(1, 16)); };
    p.input_stride = stride();
    p.dispatch_stride = stride();
    p.combine_stride = stride();
}

void draw_options(problem& p, dice& d) {
    static constexpr id_type ids[] = {id_type::i16, id_type::i32, id_type::u32, id_type::i64};
    static constexpr layout layouts[] = {layout::expert_major, layout::expert_major, layout::flat, layout::masked};
    static constexpr std::int32_t alignments[] = {1, 1, 2, 4, 8, 16, 128};
    static constexpr reduction reductions[] = {reduction::per_rank, reduction::per_host, reduction::per_row};
    p.ids = d.one_of(ids);
    p.form = d.chance(25) ? routing_form::sparse : d.chance(20) ? routing_form::slots : routing_form::dense;
    p.layout = d.one_of(layouts);
    p.mode = d.chance(50) ? mode::exact : mode::fixed;
    p.alignment = d.one_of(alignments);
    do {
        p.reduction = d.one_of(reductions);
    } while (p.layout == layout::flat && p.reduction == reduction::per_row);
    const bool flat = p.layout == layout::flat;
    p.weigh_combine = d.chance(60);
    p.weigh_input = !p.weigh_combine && !flat && p.input != dtype::fp8_e4m3 && d.chance(50);
    p.zero_padding = d.chance(70);
    p.zero_tail = d.chance(40);
    p.weight_gradients = !flat && d.chance(35);
    p.count_tokens = d.chance(50);
    for (std::int32_t rank = 0; rank < p.ranks; ++rank) {
        p.rank_hosts.push_back(static_cast<std::int32_t>(d.in(0, std::max(1, p.ranks / 2))));
    }
}

/// The default, or replicas in any order with ranks that may hold nothing.
void draw_placement(problem& p, dice& d) {
    if (d.chance(55)) {
        place_by_default(p);
        return;
    }
    p.default_placement = false;
    p.slot_expert.resize(static_cast<std::size_t>(p.experts));
    std::iota(p.slot_expert.begin(), p.slot_expert.end(), 0);
    const std::int64_t copies = d.in(0, std::max(2, p.experts / 4));
    for (std::int64_t i = 0; i < copies; ++i) {
        p.slot_expert.push_back(static_cast<std::int32_t>(d.in(0, p.experts - 1)));
    }
    for (std::size_t i = p.slot_expert.size(); i > 1; --i) {
        std::swap(p.slot_expert[i - 1],
                  p.slot_expert[static_cast<std::size_t>(d.in(0, static_cast<std::int64_t>(i) - 1))]);
    }
    p.rank_slots.assign(static_cast<std::size_t>(p.ranks), 0);
    const std::int64_t used_ranks = d.in(1, p.ranks);
    for (std::size_t slot = 0; slot < p.slot_expert.size(); ++slot) {
        ++p.rank_slots[static_cast<std::size_t>(d.in(0, used_ranks - 1))];
    }
}

void draw_tokens(problem& p, dice& d, const case_limits& limits) {
    p.inputs.resize(static_cast<std::size_t>(p.ranks));
    const std::int64_t budget = std::max<std::int64_t>(1, limits.max_elements / (std::int64_t{p.topk} * p.hidden));
    const std::int64_t most = std::clamp<std::int64_t>(2 * budget / p.ranks, 1, 300);
    const bool all_empty = d.chance(2);
    for (auto& in : p.inputs) {
        in.tokens = all_empty || d.chance(15) ? 0 : static_cast<std::int32_t>(d.in(0, most));
    }
}

/// How tokens choose, and how often an id is spoilt.
struct habits {
    int skew = 0;  ///< 0 uniform, 1 zipf-like, 2 everything to one expert first, 3 the first slots only
    int dropped = 0, bad = 0, duplicate = 0;  ///< percent
    std::int64_t favourite = 0;
};

std::int64_t draw_id(const habits& h, std::int64_t bound, std::int64_t k, dice& d) {
    if (h.skew == 1) {
        return static_cast<std::int64_t>(static_cast<double>(bound) * d.unit() * d.unit() * d.unit());
    }
    if (h.skew == 2 && k == 0) {
        return h.favourite % bound;
    }
    if (h.skew == 3) {
        return d.in(0, std::min<std::int64_t>(bound, 40) - 1);
    }
    return d.in(0, bound - 1);
}

std::int64_t bad_id(const problem& p, std::int64_t bound, dice& d) {
    const std::int64_t candidates[] = {bound,
                                       bound + d.in(0, 100),
                                       -2,
                                       -d.in(2, 100),
                                       p.ids == id_type::i64 ? std::int64_t{1} << 40 : 32767,
                                       p.ids == id_type::i64 ? (std::int64_t{1} << 32) - 1 : -32768};
    return d.one_of(candidates);
}

void draw_dense_row(const problem& p, const habits& h, ref::rank_input& in, std::int64_t token, dice& d) {
    const std::int64_t bound =
        p.form == routing_form::slots ? static_cast<std::int64_t>(p.slot_expert.size()) : p.experts;
    std::vector<std::int64_t> row;
    for (std::int64_t k = 0; k < p.topk; ++k) {
        std::int64_t id = draw_id(h, bound, k, d);
        for (int tries = 0; tries < 50 && std::find(row.begin(), row.end(), id) != row.end(); ++tries) {
            id = d.in(0, bound - 1);
        }
        if (d.chance(h.dropped)) {
            id = -1;
        } else if (d.chance(h.bad)) {
            id = bad_id(p, bound, d);
        } else if (k > 0 && d.chance(h.duplicate)) {
            id = row[static_cast<std::size_t>(d.in(0, k - 1))];
        }
        row.push_back(id);
        const auto width = static_cast<std::size_t>(size_of(p.ids));
        std::memcpy(in.routing.data() + static_cast<std::size_t>(token * p.topk + k) * width, &id, width);
    }
}

void draw_sparse_row(const problem& p, const habits& h, ref::rank_input& in, std::int64_t token, dice& d) {
    const std::int64_t wanted = d.chance(h.dropped) ? d.in(0, p.topk) : d.chance(h.bad) ? p.topk + d.in(1, 3) : p.topk;
    for (std::int64_t k = 0; k < wanted; ++k) {
        const std::int64_t at = token * p.experts + draw_id(h, p.experts, k, d);
        in.routing[static_cast<std::size_t>(at)] = static_cast<std::byte>(d.in(1, 255));
    }
}

void draw_routing(problem& p, dice& d) {
    habits h;
    h.skew = static_cast<int>(d.in(0, 3));
    h.favourite = d.in(0, 10'000);
    h.dropped = d.chance(50) ? 0 : static_cast<int>(d.in(1, 60));
    h.bad = d.chance(60) ? 0 : static_cast<int>(d.in(1, 30));
    h.duplicate = d.chance(60) ? 0 : static_cast<int>(d.in(1, 40));
    const bool sparse = p.form == routing_form::sparse;
    for (auto& in : p.inputs) {
        const std::int64_t width = sparse ? p.experts : p.topk * size_of(p.ids);
        in.routing.assign(static_cast<std::size_t>(in.tokens * width), std::byte{0});
        for (std::int64_t token = 0; token < in.tokens; ++token) {
            sparse ? draw_sparse_row(p, h, in, token, d) : draw_dense_row(p, h, in, token, d);
        }
        in.weights.resize(static_cast<std::size_t>(in.tokens * p.weight_columns()));
        for (float& w : in.weights) {
            w = d.chance(3) ? 0.0f : static_cast<float>((0.05 + d.unit()) * (d.chance(10) ? -1 : 1));
        }
    }
}

float draw_value(dice& d, dtype type, int special) {
    if (d.chance(special)) {
        static constexpr float infinity = std::numeric_limits<float>::infinity();
        // Beyond the range of each type, at its end, denormal, and no number at all. The smallest are kept where a
        // quantiser's scale does not underflow.
        static constexpr float odd[] = {0.0f,  -0.0f,    infinity, -infinity, std::numeric_limits<float>::quiet_NaN(),
                                        6e4f,  -65519.f, 3e38f,    1e-40f,    -3e-8f,
                                        448.f, -465.f,   1e-38f,   6e-8f};
        return d.one_of(odd);
    }
    const double magnitude = type == dtype::fp8_e4m3 ? 16.0 : 2.0;
    return static_cast<float>((2 * d.unit() - 1) * magnitude);
}

void draw_rows(problem& p, dice& d) {
    const int special = d.chance(30) ? static_cast<int>(d.in(1, 20)) : 0;
    for (auto& in : p.inputs) {
        const std::int64_t elements = in.tokens * p.input_stride;
        in.input.resize(static_cast<std::size_t>(elements * size_of(p.input)));
        for (std::int64_t i = 0; i < elements; ++i) {
            ref::store_bits(p.input, in.input.data(), i, ref::encode(p.input, draw_value(d, p.input, special)));
        }
        if (p.input == dtype::fp8_e4m3 && p.scales != scale_type::none) {
            const std::int64_t scales = in.tokens * p.groups();
            in.input_scales.resize(static_cast<std::size_t>(scales * size_of(p.scales)));
            for (std::int64_t i = 0; i < scales; ++i) {
                const auto scale = static_cast<float>(0.01 + d.unit());
                if (p.scales == scale_type::f32) {
                    std::memcpy(in.input_scales.data() + 4 * i, &scale, 4);
                } else {
                    in.input_scales[static_cast<std::size_t>(i)] = static_cast<std::byte>(d.in(110, 135));
                }
            }
        }
        if (p.weight_gradients) {
            in.gradient.resize(static_cast<std::size_t>(std::int64_t{in.tokens} * p.hidden * size_of(p.combine)));
            for (std::int64_t i = 0; i < std::int64_t{in.tokens} * p.hidden; ++i) {
                ref::store_bits(p.combine, in.gradient.data(), i,
                                ref::encode(p.combine, draw_value(d, p.combine, special / 4)));
            }
        }
    }
}

/// Enough, too much, or (with overflow::drop) too little.
void draw_capacities(problem& p, dice& d) {
    const std::vector<std::int32_t> needed = ref::needed_rows(p);
    const bool cut = d.chance(45);
    p.overflow = cut || d.chance(30) ? overflow::drop : overflow::fail;
    for (std::size_t rank = 0; rank < p.inputs.size(); ++rank) {
        const std::int32_t least = p.rank_slots[rank] > 0 ? 1 : 0;
        std::int64_t capacity = needed[rank] + (d.chance(50) ? 0 : d.in(1, 9));
        if (cut && d.chance(70)) {
            capacity = d.in(0, needed[rank]);
        }
        p.inputs[rank].capacity = std::max(least, static_cast<std::int32_t>(capacity));
    }
}

void draw_row_gradients(problem& p, dice& d) {
    if (!p.weight_gradients || !d.chance(40)) {
        return;
    }
    const ref::oracle o(p);
    std::vector<std::vector<float>> given(p.inputs.size());
    for (std::size_t rank = 0; rank < given.size(); ++rank) {
        given[rank].resize(
            static_cast<std::size_t>(std::max<std::int64_t>(1, o.rank(static_cast<std::int32_t>(rank)).extent)));
        for (float& g : given[rank]) {
            g = static_cast<float>(d.unit() - 0.5);
        }
    }
    for (std::size_t rank = 0; rank < given.size(); ++rank) {
        p.inputs[rank].row_gradients = std::move(given[rank]);
    }
}

}  // namespace

problem make_case(std::uint64_t seed, const case_limits& limits) {
    dice d(seed);
    problem p;
    draw_shape(p, d, limits);
    draw_types(p, d);
    draw_options(p, d);
    draw_placement(p, d);
    draw_tokens(p, d, limits);
    draw_routing(p, d);
    draw_rows(p, d);
    draw_capacities(p, d);
    draw_row_gradients(p, d);
    ref::make_experts(p, seed);
    p.text = fmt::format(
        "case seed {}: R={} E={} S={} K={} H={} {}->{}({})->{} {} ids {} {} {} align {} {} {} hosts {}{}{}{} tokens {}",
        seed, p.ranks, p.experts, p.slot_expert.size(), p.topk, p.hidden, name(p.input), name(p.dispatch),
        name(p.scales), name(p.combine), name(p.form), name(p.ids), name(p.layout), name(p.mode), p.alignment,
        name(p.overflow), name(p.reduction), p.rank_hosts.back(), p.weigh_input ? " weigh-input" : "",
        p.weigh_combine ? " weigh-combine" : "", p.weight_gradients ? " weight-gradients" : "",
        std::accumulate(p.inputs.begin(), p.inputs.end(), 0, [](int n, const auto& in) { return n + in.tokens; }));
    return p;
}

std::uint64_t suite_seed() {
    static const std::uint64_t seed = [] {
        const char* given = std::getenv("EPJIT_TEST_SEED");
        const std::uint64_t value = given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
        std::printf("seed: EPJIT_TEST_SEED=%llu repeats this run\n", static_cast<unsigned long long>(value));
        std::fflush(stdout);
        return value;
    }();
    return seed;
}

int suite_cases(int standard) {
    const char* given = std::getenv("EPJIT_TEST_CASES");
    return given != nullptr ? std::atoi(given) : standard;
}

const char* name(mutation m) {
    switch (m) {
        case mutation::swap_rows: return "swap_rows";
        case mutation::swap_sources: return "swap_sources";
        case mutation::shift_offset: return "shift_offset";
        case mutation::move_count: return "move_count";
        case mutation::swap_results: return "swap_results";
        case mutation::flip_bit: return "flip_bit";
        case mutation::drop_local_id: return "drop_local_id";
        case mutation::miscount_token: return "miscount_token";
    }
    return "?";
}

namespace {

/// Two data rows of one rank whose bytes differ.
bool find_rows(const ref::oracle& o, const ref::observation& seen, dice& d, std::size_t& rank, std::int64_t& a,
               std::int64_t& b, std::int64_t row_bytes) {
    for (int tries = 0; tries < 200; ++tries) {
        rank = static_cast<std::size_t>(d.in(0, static_cast<std::int64_t>(seen.ranks.size()) - 1));
        const auto& rows = o.rank(static_cast<std::int32_t>(rank)).rows;
        if (rows.size() < 2) {
            continue;
        }
        a = d.in(0, static_cast<std::int64_t>(rows.size()) - 1);
        b = d.in(0, static_cast<std::int64_t>(rows.size()) - 1);
        const std::byte* data = seen.ranks[rank].rows.data();
        if (!rows[static_cast<std::size_t>(a)].empty() && !rows[static_cast<std::size_t>(b)].empty() &&
            std::memcmp(data + a * row_bytes, data + b * row_bytes, static_cast<std::size_t>(row_bytes)) != 0) {
            return true;
        }
    }
    return false;
}

bool swap_results(const problem& p, ref::observation& seen, dice& d) {
    const std::int64_t stride = p.combine_stride * size_of(p.combine);
    const auto width = static_cast<std::size_t>(p.hidden * size_of(p.combine));
    for (int tries = 0; tries < 200; ++tries) {
        const auto rank = static_cast<std::size_t>(d.in(0, p.ranks - 1));
        const std::int32_t tokens = p.inputs[rank].tokens;
        if (tokens < 2) {
            continue;
        }
        std::byte* a = seen.ranks[rank].result.data() + d.in(0, tokens - 1) * stride;
        std::byte* b = seen.ranks[rank].result.data() + d.in(0, tokens - 1) * stride;
        if (std::memcmp(a, b, width) != 0) {
            std::swap_ranges(a, a + width, b);
            return true;
        }
    }
    return false;
}

bool shift_list(std::vector<std::int32_t> ref::rank_output::*list, ref::observation& seen, dice& d) {
    const auto rank = static_cast<std::size_t>(d.in(0, static_cast<std::int64_t>(seen.ranks.size()) - 1));
    auto& values = seen.ranks[rank].*list;
    if (values.empty()) {
        return false;
    }
    values[static_cast<std::size_t>(d.in(0, static_cast<std::int64_t>(values.size()) - 1))] += d.chance(50) ? 1 : -1;
    return true;
}

}  // namespace

bool mutate(mutation m, const ref::oracle& o, ref::observation& seen, std::uint64_t seed) {
    dice d(seed);
    const problem& p = o.job();
    std::size_t rank = 0;
    std::int64_t a = 0;
    std::int64_t b = 0;
    const std::int64_t row_bytes = p.dispatch_stride * size_of(p.dispatch);
    const auto width = static_cast<std::size_t>(p.hidden * size_of(p.dispatch));
    switch (m) {
        case mutation::swap_rows: {
            if (!find_rows(o, seen, d, rank, a, b, row_bytes)) {
                return false;
            }
            std::byte* data = seen.ranks[rank].rows.data();
            if (std::memcmp(data + a * row_bytes, data + b * row_bytes, width) == 0) {
                return false;  // they differ between rows only
            }
            std::swap_ranges(data + a * row_bytes, data + a * row_bytes + width, data + b * row_bytes);
            return true;
        }
        case mutation::swap_sources: {
            if (!find_rows(o, seen, d, rank, a, b, row_bytes)) {
                return false;
            }
            auto& source = seen.ranks[rank].row_source;
            const auto at = [&](std::int64_t row) { return source.begin() + 2 * row; };
            if (std::equal(at(a), at(a) + 2, at(b))) {
                return false;
            }
            std::swap_ranges(at(a), at(a) + 2, at(b));
            return true;
        }
        case mutation::shift_offset: return shift_list(&ref::rank_output::offsets, seen, d);
        case mutation::move_count: return shift_list(&ref::rank_output::counts, seen, d);
        case mutation::swap_results: return swap_results(p, seen, d);
        case mutation::flip_bit: {
            rank = static_cast<std::size_t>(d.in(0, p.ranks - 1));
            if (p.inputs[rank].tokens == 0) {
                return false;
            }
            const std::int64_t element = d.in(0, p.inputs[rank].tokens - 1) * p.combine_stride + d.in(0, p.hidden - 1);
            auto& result = seen.ranks[rank].result;
            const std::uint32_t bits = ref::load_bits(p.combine, result.data(), element);
            if (ref::is_nan(p.combine, bits)) {
                return false;
            }
            ref::store_bits(p.combine, result.data(), element, bits ^ 1u);
            return true;
        }
        case mutation::miscount_token: {
            auto& tokens = seen.ranks[static_cast<std::size_t>(d.in(0, p.ranks - 1))].slot_tokens;
            if (tokens.empty()) {
                return false;
            }
            ++tokens[static_cast<std::size_t>(d.in(0, static_cast<std::int64_t>(tokens.size()) - 1))];
            return true;
        }
        case mutation::drop_local_id: {
            rank = static_cast<std::size_t>(d.in(0, p.ranks - 1));
            auto& ids = seen.ranks[rank].local_ids;
            const auto used = std::find_if(ids.begin(), ids.end(), [](std::int32_t id) { return id >= 0; });
            if (used == ids.end()) {
                return false;
            }
            *used = -1;
            return true;
        }
    }
    return false;
}

}  // namespace epjit::tests
