// SPDX-License-Identifier: Apache-2.0
// The C interface's part for groups of ranks: collectives with a count of its own for every rank, and the arithmetic of
// parallel groups. Included by <epjit/epjit.h>, whose first lines hold here too.
#ifndef EPJIT_EPJIT_GROUPS_H
#define EPJIT_EPJIT_GROUPS_H

#include "epjit/epjit.h"

#ifdef __cplusplus
extern "C" {
#endif

/// What one driven rank brings: device memory (host communicator: ordinary). Null where nothing is read or written.
typedef struct epjit_collective_args {
    uint32_t struct_size;
    uint32_t reserved;
    const void* send;
    void* receive;
} epjit_collective_args;

// Each is collective, takes one struct per driven rank, orders itself on `stream` and can be captured. Counts are
// elements, equal on every rank, 0 allowed. EPJIT_ERROR_UNSUPPORTED on a loopback communicator and for a sum of fp8.

/// Rank r's counts[r] elements arrive on every rank at `receive` + counts[0] + .. + counts[r-1]; `counts` is [R]. In
/// place: `send` is that place in the rank's own `receive`. FP8_E4M3 stands for bytes of any kind.
EPJIT_API epjit_status epjit_all_gather_v(epjit_communicator* communicator, const epjit_collective_args* ranks,
                                          uint32_t num_ranks, const int64_t* counts, uint32_t num_counts,
                                          epjit_dtype type, epjit_stream stream);
/// `send` holds all ranks' parts one after the other; rank r receives the sum over ranks of part r, counts[r] elements,
/// BF16, FP16 or F32. In place: `receive` is part r of `send`. NCCL chooses the order of the sum (host: ascending ranks
/// in fp32, rounded once).
EPJIT_API epjit_status epjit_reduce_scatter_v(epjit_communicator* communicator, const epjit_collective_args* ranks,
                                              uint32_t num_ranks, const int64_t* counts, uint32_t num_counts,
                                              epjit_dtype type, epjit_stream stream);
/// `count` elements at `send` of rank `root` arrive at `receive` of every rank. In place: both are the same.
EPJIT_API epjit_status epjit_broadcast(epjit_communicator* communicator, const epjit_collective_args* ranks,
                                       uint32_t num_ranks, int64_t count, int32_t root, epjit_dtype type,
                                       epjit_stream stream);

/// What is known of the groups; 0 means: derive. Attention sees world = data * tensor, the experts see world =
/// expert_data * expert * expert_tensor. Starts as all zero.
typedef struct epjit_parallel_config {
    uint32_t struct_size;
    int32_t world_size;        ///< ranks in all; 0: nodes * devices_per_node
    int32_t tensor;            ///< ranks that share one token's attention; 0: world / data, 1 when neither is given
    int32_t data;              ///< attention groups with tokens of their own; 0: world / tensor
    int32_t expert;            ///< ranks over which the experts are spread; 0: world / (expert_data * expert_tensor)
    int32_t expert_tensor;     ///< ranks that share one expert's weights; 0: 1
    int32_t expert_data;       ///< copies of the set of all experts; 0: world / (expert * expert_tensor)
    int32_t nodes;             ///< hosts; 0: world / devices_per_node, 1 when neither is given
    int32_t devices_per_node;  ///< 0: world / nodes
    int32_t reserved;
} epjit_parallel_config;

/// The ranks first, first + stride, ..., `size` of them. Never changes.
typedef struct epjit_rank_group {
    int32_t first;
    int32_t stride;
    int32_t size;
    int32_t index;  ///< of the rank asked about
} epjit_rank_group;

/// Every factor, at least 1, and one rank's place.
typedef struct epjit_parallel_place {
    uint32_t struct_size;
    int32_t world_size, tensor, data, expert, expert_tensor, expert_data, nodes, devices_per_node;
    int32_t rank;
    int32_t node;    ///< host of the rank
    int32_t device;  ///< on its host
    epjit_rank_group tensor_group, data_group, expert_group, expert_tensor_group, expert_data_group;
    int32_t expert_group_spans_nodes;  ///< non-zero: some rank of the expert group is on another host
    int32_t reserved;
} epjit_parallel_place;

/// EPJIT_ERROR_CONFIG shows the arithmetic: a product that is not the world, a number that does not divide.
EPJIT_API epjit_status epjit_derive_parallel(const epjit_parallel_config* config, int32_t rank,
                                             epjit_parallel_place* out);
/// The ranks of a group, ascending: what epjit_communicator_from_nccl takes. `num_ranks` is group->size.
EPJIT_API epjit_status epjit_list_ranks(const epjit_rank_group* group, int32_t* ranks, uint32_t num_ranks);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // EPJIT_EPJIT_GROUPS_H
