// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/fixed_layer.hpp"

#include "tools/reference/check.hpp"
#include "tools/run/routing.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::tests {

tools::reference::problem make_fixed(const fixed_shape& s, std::int32_t ranks, std::uint64_t seed) {
    tools::reference::problem p;
    p.ranks = ranks;
    p.experts = s.experts;
    p.topk = s.topk;
    p.hidden = s.hidden;
    p.input = p.dispatch = p.combine = s.type;
    p.layout = s.layout;
    p.mode = s.mode;
    p.reduction = s.reduction;
    p.weigh_combine = s.weigh_combine;
    p.count_tokens = true;
    p.input_stride = p.dispatch_stride = p.combine_stride = s.hidden;
    tools::reference::place_by_default(p);
    p.inputs.resize(static_cast<std::size_t>(ranks));
    std::int64_t tokens = 0;
    for (std::int32_t r = 0; r < ranks; ++r) {
        p.inputs[static_cast<std::size_t>(r)].tokens = std::max(1, s.tokens - r);
        tokens += p.inputs[static_cast<std::size_t>(r)].tokens;
    }
    tools::generate_routing(p, seed % 3 == 0 ? "zipf" : "uniform", seed);
    tools::generate_inputs(p, seed);
    p.expert_scale.assign(static_cast<std::size_t>(s.experts), 1.0F);
    p.expert_bias.assign(static_cast<std::size_t>(s.experts) * static_cast<std::size_t>(s.hidden), 0.0F);
    for (auto& in : p.inputs) {
        in.capacity = static_cast<std::int32_t>(s.layout == layout::masked ? tokens : tokens * s.topk);
    }
    p.text = fmt::format("R={} E={} K={} H={} T={} {} {} {} {} seed {}", ranks, s.experts, s.topk, s.hidden, s.tokens,
                         name(s.type), name(s.layout), name(s.mode), name(s.reduction), seed);
    return p;
}

std::string compare_with_oracle(const tools::reference::problem& p, const tools::reference::observation& seen) {
    const tools::reference::oracle oracle(p);
    const tools::reference::report found = tools::reference::check_all(oracle, seen);
    return found.ok() ? std::string{}
                      : fmt::format("{}: {} of {} rows differ: {}", p.text, found.mismatched_rows, found.checked_rows,
                                    found.first_mismatch);
}

}  // namespace epjit::tests
