// SPDX-License-Identifier: Apache-2.0
#include "tools/reference/expert.hpp"

#include "tools/reference/numbers.hpp"

#include <cmath>
#include <random>

namespace epjit::tools::reference {

void make_experts(problem& p, std::uint64_t seed) {
    std::mt19937_64 draw(seed ^ 0x6578706572747321ull);
    const auto experts = static_cast<std::size_t>(p.experts);
    const auto hidden = static_cast<std::size_t>(p.hidden);
    p.expert_scale.resize(experts);
    p.expert_bias.resize(experts * hidden);
    for (float& scale : p.expert_scale) {
        const std::uint64_t bits = draw();
        const auto power = static_cast<int>((bits >> 1) % 5) - 2;
        scale = static_cast<float>(std::ldexp((bits & 1) != 0 ? -1.0 : 1.0, power));
    }
    for (float& bias : p.expert_bias) {
        bias = static_cast<float>(static_cast<double>(draw() >> 40) / 0x1p23 - 1.0);
    }
}

namespace {

/// out[h] = round(scale * row[h] + bias[h]): two roundings in fp32, as a kernel without fused multiply-add.
void apply_parameters(dtype type, float scale, const float* bias, std::span<const float> row,
                      std::span<std::uint32_t> out) {
    for (std::size_t h = 0; h < row.size(); ++h) {
        const float product = scale * row[h];
        out[h] = encode(type, product + bias[h]);
    }
}

void apply_slot(const problem& p, const local_experts& experts, std::size_t slot, std::span<const float> row,
                std::span<std::uint32_t> out) {
    apply_parameters(p.combine, experts.scale[slot], experts.bias.data() + slot * static_cast<std::size_t>(p.hidden),
                     row, out);
}

}  // namespace

void apply_expert(const problem& p, std::int32_t expert, std::span<const float> row, std::span<std::uint32_t> out) {
    apply_parameters(p.combine, p.expert_scale[static_cast<std::size_t>(expert)],
                     p.expert_bias.data() + static_cast<std::int64_t>(expert) * p.hidden, row, out);
}

local_experts experts_of(const problem& p, std::int32_t rank) {
    local_experts experts;
    const std::int32_t first = p.first_slot(rank);
    for (std::int32_t slot = 0; slot < p.rank_slots[static_cast<std::size_t>(rank)]; ++slot) {
        const auto expert = static_cast<std::int64_t>(p.slot_expert[static_cast<std::size_t>(first + slot)]);
        experts.scale.push_back(p.expert_scale[static_cast<std::size_t>(expert)]);
        const float* bias = p.expert_bias.data() + expert * p.hidden;
        experts.bias.insert(experts.bias.end(), bias, bias + p.hidden);
    }
    return experts;
}

void decode_row(const problem& p, const rank_output& out, std::int64_t row, std::span<float> values) {
    const std::int64_t first = row * p.dispatch_stride;
    for (std::size_t h = 0; h < values.size(); ++h) {
        values[h] = decode(p.dispatch, load_bits(p.dispatch, out.rows.data(), first + static_cast<std::int64_t>(h)));
    }
    if (p.dispatch == dtype::fp8_e4m3 && p.scales != scale_type::none) {
        for (std::size_t h = 0; h < values.size(); ++h) {
            values[h] *=
                decode_scale(p.scales, out.scales.data(), row * p.groups() + static_cast<std::int64_t>(h / 128));
        }
    }
}

namespace {

void apply_flat(const problem& p, std::int32_t rank, const local_experts& experts, rank_output& out) {
    const auto hidden = static_cast<std::size_t>(p.hidden);
    std::vector<float> values(hidden);
    std::vector<float> sums(hidden);
    std::vector<std::uint32_t> bits(hidden);
    for (std::int64_t row = 0; row < out.num_rows; ++row) {
        decode_row(p, out, row, values);
        sums.assign(hidden, 0.0f);
        for (std::int64_t k = 0; k < p.topk; ++k) {
            const std::int32_t local = out.local_ids[static_cast<std::size_t>(row * p.topk + k)];
            if (local < 0 || local >= p.rank_slots[static_cast<std::size_t>(rank)]) {
                continue;
            }
            apply_slot(p, experts, static_cast<std::size_t>(local), values, bits);
            const float weight = p.weigh_combine ? out.local_weights[static_cast<std::size_t>(row * p.topk + k)] : 1.0f;
            for (std::size_t h = 0; h < hidden; ++h) {
                sums[h] = std::fma(weight, decode(p.combine, bits[h]), sums[h]);
            }
        }
        for (std::size_t h = 0; h < hidden; ++h) {
            store_bits(p.combine, out.expert_rows.data(), row * p.combine_stride + static_cast<std::int64_t>(h),
                       encode(p.combine, sums[h]));
        }
    }
}

}  // namespace

void apply_experts(const problem& p, std::int32_t rank, rank_output& out) {
    apply_experts(p, rank, experts_of(p, rank), out);
}

void apply_experts(const problem& p, std::int32_t rank, const local_experts& experts, rank_output& out) {
    out.expert_rows.assign(static_cast<std::size_t>(out.allocated_rows * p.combine_stride * size_of(p.combine)),
                           std::byte{0xff});
    if (p.layout == layout::flat) {
        apply_flat(p, rank, experts, out);
        return;
    }
    std::vector<float> values(static_cast<std::size_t>(p.hidden));
    std::vector<std::uint32_t> bits(values.size());
    for (std::size_t slot = 0; slot < out.counts.size(); ++slot) {
        for (std::int64_t i = 0; i < out.counts[slot]; ++i) {
            const std::int64_t row = out.offsets[slot] + i;
            if (row < 0 || row >= out.allocated_rows) {
                continue;  // a broken plan; the check says so
            }
            decode_row(p, out, row, values);
            apply_slot(p, experts, slot, values, bits);
            for (std::int64_t h = 0; h < p.hidden; ++h) {
                store_bits(p.combine, out.expert_rows.data(), row * p.combine_stride + h,
                           bits[static_cast<std::size_t>(h)]);
            }
        }
    }
}

}  // namespace epjit::tools::reference
