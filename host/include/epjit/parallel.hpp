// SPDX-License-Identifier: Apache-2.0
// How a number of GPUs is divided into data, tensor and expert parallel groups: the arithmetic that every engine needs
// before it can make a communicator.
#pragma once

#include "epjit/export.hpp"

#include <cstdint>
#include <span>

namespace epjit {

/// What is known; 0 means: derive. Attention sees world = data * tensor, the experts see world = expert_data * expert *
/// expert_tensor.
struct parallel_config {
    std::uint32_t version = 1;
    std::int32_t world_size = 0;  ///< ranks in all; 0: nodes * devices_per_node
    std::int32_t tensor = 0;      ///< ranks that share one token's attention; 0: world / data, 1 when neither is given
    std::int32_t data = 0;        ///< attention groups with tokens of their own; 0: world / tensor
    std::int32_t expert = 0;      ///< ranks over which the experts are spread; 0: world / (expert_data * expert_tensor)
    std::int32_t expert_tensor = 0;     ///< ranks that share one expert's weights; 0: 1
    std::int32_t expert_data = 0;       ///< copies of the set of all experts; 0: world / (expert * expert_tensor)
    std::int32_t nodes = 0;             ///< hosts; 0: world / devices_per_node, 1 when neither is given
    std::int32_t devices_per_node = 0;  ///< 0: world / nodes
};

/// A group of ranks: first, first + stride, ..., `size` of them.
struct rank_group {
    std::int32_t first = 0;
    std::int32_t stride = 1;
    std::int32_t size = 1;
    std::int32_t index = 0;  ///< of the rank asked about
};

/// Every factor, at least 1, and one rank's place. Tensor ranks are neighbours, then data; of the experts' division
/// expert_tensor ranks are neighbours, then expert, then expert_data.
struct parallel_place {
    std::int32_t world_size = 1, tensor = 1, data = 1, expert = 1, expert_tensor = 1, expert_data = 1;
    std::int32_t nodes = 1, devices_per_node = 1;
    std::int32_t rank = 0;
    std::int32_t node = 0;    ///< host of the rank
    std::int32_t device = 0;  ///< on its host
    rank_group tensor_group, data_group, expert_group, expert_tensor_group, expert_data_group;
    bool expert_group_spans_nodes = false;  ///< some rank of the expert group is on another host
};

/// @throws config_error that shows the arithmetic: a product that is not the world, a number that does not divide, a
/// rank outside of the world.
EPJIT_API parallel_place derive_parallel(const parallel_config& config, std::int32_t rank);

/// The ranks of a group, ascending: what communicator::from_nccl takes. @throws config_error unless ranks.size() is
/// group.size.
EPJIT_API void list_ranks(const rank_group& group, std::span<int> ranks);

}  // namespace epjit
