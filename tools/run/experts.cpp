// SPDX-License-Identifier: Apache-2.0
#include "tools/run/experts.hpp"

#include <cstddef>
#include <vector>

namespace epjit::tools {
namespace {

std::vector<float> fetch_floats(const resident_registry& registry, memory_space& memory, int tensor, int driven) {
    return memory.fetch(static_cast<const float*>(registry.get(tensor, driven)),
                        registry.bytes(tensor, driven) / sizeof(float));
}

}  // namespace

resident_experts::resident_experts(communicator& comm, const reference::problem& p) : registry_(comm) {
    std::vector<float> scale, bias;
    std::vector<std::size_t> scale_bytes, bias_bytes;
    for (std::int32_t rank = 0; rank < p.ranks; ++rank) {
        const reference::local_experts local = reference::experts_of(p, rank);
        scale.insert(scale.end(), local.scale.begin(), local.scale.end());
        bias.insert(bias.end(), local.bias.begin(), local.bias.end());
        scale_bytes.push_back(local.scale.size() * sizeof(float));
        bias_bytes.push_back(local.bias.size() * sizeof(float));
    }
    scale_ = registry_.add({"expert_scale", tensor_use::constant, residence::stacked}, scale.data(), scale_bytes);
    bias_ = registry_.add({"expert_bias", tensor_use::constant, residence::stacked}, bias.data(), bias_bytes);
}

reference::local_experts resident_experts::fetch(memory_space& memory, int driven) const {
    return {fetch_floats(registry_, memory, scale_, driven), fetch_floats(registry_, memory, bias_, driven)};
}

}  // namespace epjit::tools
