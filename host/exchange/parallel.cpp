// SPDX-License-Identifier: Apache-2.0
#include "epjit/parallel.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <string>

namespace epjit {
namespace {

constexpr std::int32_t max_factor = 1 << 20;

void check_factor(const char* name, std::int32_t value) {
    if (value < 0 || value > max_factor) {
        throw config_error(fmt::format("{} is {}", name, value),
                           fmt::format("use 1 to {}, or 0 to derive it", max_factor));
    }
}

/// A factor of the world, by name.
struct factor {
    const char* name;
    std::int32_t value;
};

/// world / the given factors; the one that is 0 is derived, `others` are known.
std::int32_t quotient(const char* wanted, std::int32_t world, factor a, factor b = {nullptr, 1}) {
    const std::int64_t product = static_cast<std::int64_t>(a.value) * b.value;
    if (world % product != 0) {
        const std::string divisor = b.name != nullptr
                                        ? fmt::format("{} {} x {} {} = {}", a.name, a.value, b.name, b.value, product)
                                        : fmt::format("{} {}", a.name, a.value);
        throw config_error(
            fmt::format("world_size {} is not a multiple of {}, so there is no {}", world, divisor, wanted),
            "choose factors whose product is the number of ranks");
    }
    return static_cast<std::int32_t>(world / product);
}

[[noreturn]] void fail_product(std::int32_t world, const std::string& product, std::int64_t value) {
    throw config_error(fmt::format("{} = {}, but world_size is {}", product, value, world),
                       "leave one factor 0 to derive it, or correct one");
}

void derive_world(parallel_place& p, const parallel_config& c) {
    const std::int64_t machine = static_cast<std::int64_t>(c.nodes) * c.devices_per_node;
    p.world_size = c.world_size;
    if (p.world_size == 0) {
        if (machine == 0 || machine > max_factor) {
            throw config_error(fmt::format("world_size is not given, nor follows from {} nodes x {} devices_per_node",
                                           c.nodes, c.devices_per_node),
                               "give world_size, or nodes and devices_per_node");
        }
        p.world_size = static_cast<std::int32_t>(machine);
    }
    p.nodes = c.nodes;
    p.devices_per_node = c.devices_per_node;
    if (p.nodes == 0) {
        p.nodes =
            p.devices_per_node == 0 ? 1 : quotient("nodes", p.world_size, {"devices_per_node", p.devices_per_node});
    }
    if (p.devices_per_node == 0) {
        p.devices_per_node = quotient("devices_per_node", p.world_size, {"nodes", p.nodes});
    }
    if (static_cast<std::int64_t>(p.nodes) * p.devices_per_node != p.world_size) {
        fail_product(p.world_size, fmt::format("nodes {} x devices_per_node {}", p.nodes, p.devices_per_node),
                     static_cast<std::int64_t>(p.nodes) * p.devices_per_node);
    }
}

void derive_attention(parallel_place& p, const parallel_config& c) {
    p.tensor = c.tensor;
    p.data = c.data;
    if (p.tensor == 0) {
        p.tensor = p.data == 0 ? 1 : quotient("tensor", p.world_size, {"data", p.data});
    }
    if (p.data == 0) {
        p.data = quotient("data", p.world_size, {"tensor", p.tensor});
    }
    const std::int64_t product = static_cast<std::int64_t>(p.data) * p.tensor;
    if (product != p.world_size) {
        fail_product(p.world_size, fmt::format("data {} x tensor {}", p.data, p.tensor), product);
    }
}

void derive_experts(parallel_place& p, const parallel_config& c) {
    p.expert_tensor = c.expert_tensor == 0 ? 1 : c.expert_tensor;
    p.expert = c.expert;
    p.expert_data = c.expert_data;
    if (p.expert == 0) {
        p.expert_data = p.expert_data == 0 ? 1 : p.expert_data;
        p.expert = quotient("expert", p.world_size, {"expert_data", p.expert_data}, {"expert_tensor", p.expert_tensor});
    }
    if (p.expert_data == 0) {
        p.expert_data = quotient("expert_data", p.world_size, {"expert", p.expert}, {"expert_tensor", p.expert_tensor});
    }
    const std::int64_t product = static_cast<std::int64_t>(p.expert_data) * p.expert * p.expert_tensor;
    if (product != p.world_size) {
        fail_product(
            p.world_size,
            fmt::format("expert_data {} x expert {} x expert_tensor {}", p.expert_data, p.expert, p.expert_tensor),
            product);
    }
}

/// The group of `rank` whose members are `stride` apart, `size` of them.
rank_group group_of(std::int32_t rank, std::int32_t stride, std::int32_t size) noexcept {
    const std::int32_t index = rank / stride % size;
    return {rank - index * stride, stride, size, index};
}

}  // namespace

parallel_place derive_parallel(const parallel_config& config, std::int32_t rank) {
    if (config.version != 1) {
        throw config_error(fmt::format("parallel_config::version is {}, this library knows 1", config.version),
                           "build against the headers of the library that is loaded");
    }
    check_factor("world_size", config.world_size);
    check_factor("tensor", config.tensor);
    check_factor("data", config.data);
    check_factor("expert", config.expert);
    check_factor("expert_tensor", config.expert_tensor);
    check_factor("expert_data", config.expert_data);
    check_factor("nodes", config.nodes);
    check_factor("devices_per_node", config.devices_per_node);
    parallel_place p;
    derive_world(p, config);
    derive_attention(p, config);
    derive_experts(p, config);
    if (rank < 0 || rank >= p.world_size) {
        throw config_error(fmt::format("rank {} of a world of {}", rank, p.world_size),
                           fmt::format("ranks go from 0 to {}", p.world_size - 1));
    }
    p.rank = rank;
    p.node = rank / p.devices_per_node;
    p.device = rank % p.devices_per_node;
    p.tensor_group = group_of(rank, 1, p.tensor);
    p.data_group = group_of(rank, p.tensor, p.data);
    p.expert_tensor_group = group_of(rank, 1, p.expert_tensor);
    p.expert_group = group_of(rank, p.expert_tensor, p.expert);
    p.expert_data_group = group_of(rank, p.expert_tensor * p.expert, p.expert_data);
    const std::int32_t last = p.expert_group.first + (p.expert - 1) * p.expert_group.stride;
    p.expert_group_spans_nodes = p.expert_group.first / p.devices_per_node != last / p.devices_per_node;
    return p;
}

void list_ranks(const rank_group& group, std::span<int> ranks) {
    if (ranks.size() != static_cast<std::size_t>(group.size)) {
        throw config_error(fmt::format("room for {} ranks of a group of {}", ranks.size(), group.size),
                           "pass as many ints as the group has ranks");
    }
    for (std::int32_t i = 0; i < group.size; ++i) {
        ranks[i] = group.first + i * group.stride;
    }
}

}  // namespace epjit
