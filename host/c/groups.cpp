// SPDX-License-Identifier: Apache-2.0
// Collectives and parallel groups in C.
#include "epjit/collectives.hpp"
#include "epjit/epjit_groups.h"
#include "epjit/parallel.hpp"
#include "host/c/enumerations.hpp"
#include "host/c/guard.hpp"
#include "host/c/handles.hpp"
#include "host/c/structs.hpp"

namespace epjit::host::c {
EPJIT_STRUCT(epjit_collective_args, 24);
EPJIT_STRUCT(epjit_parallel_config, 40);
EPJIT_STRUCT(epjit_parallel_place, 136);
static_assert(sizeof(epjit_rank_group) == 16);
}  // namespace epjit::host::c

using namespace epjit::host::c;

namespace {

using collective_arguments = converted<epjit::collective_args>;

epjit::collective_args to_cpp(const epjit_collective_args& a) {
    return {a.send, a.receive};
}

epjit::parallel_config to_cpp(const epjit_parallel_config& c) {
    epjit::parallel_config r;
    r.world_size = c.world_size;
    r.tensor = c.tensor;
    r.data = c.data;
    r.expert = c.expert;
    r.expert_tensor = c.expert_tensor;
    r.expert_data = c.expert_data;
    r.nodes = c.nodes;
    r.devices_per_node = c.devices_per_node;
    return r;
}

epjit_rank_group to_c(const epjit::rank_group& g) {
    return {g.first, g.stride, g.size, g.index};
}

epjit_parallel_place to_c(const epjit::parallel_place& p) {
    epjit_parallel_place r{};
    r.world_size = p.world_size;
    r.tensor = p.tensor;
    r.data = p.data;
    r.expert = p.expert;
    r.expert_tensor = p.expert_tensor;
    r.expert_data = p.expert_data;
    r.nodes = p.nodes;
    r.devices_per_node = p.devices_per_node;
    r.rank = p.rank;
    r.node = p.node;
    r.device = p.device;
    r.tensor_group = to_c(p.tensor_group);
    r.data_group = to_c(p.data_group);
    r.expert_group = to_c(p.expert_group);
    r.expert_tensor_group = to_c(p.expert_tensor_group);
    r.expert_data_group = to_c(p.expert_data_group);
    r.expert_group_spans_nodes = p.expert_group_spans_nodes ? 1 : 0;
    return r;
}

std::span<const int64_t> counts_of(const int64_t* counts, uint32_t num_counts) {
    if (num_counts > 0) {
        not_null(counts, "counts");
    }
    return {counts, num_counts};
}

}  // namespace

epjit_status epjit_all_gather_v(epjit_communicator* communicator, const epjit_collective_args* ranks,
                                uint32_t num_ranks, const int64_t* counts, uint32_t num_counts, epjit_dtype type,
                                epjit_stream stream) {
    return guarded([&] {
        epjit::communicator& c = not_null(communicator, "communicator").object;
        const collective_arguments args(ranks, num_ranks, [](const epjit_collective_args& a) { return to_cpp(a); });
        epjit::all_gather_v(c, args.span(), counts_of(counts, num_counts), enumerator<epjit::dtype>(type, "type"),
                            stream);
    });
}

epjit_status epjit_reduce_scatter_v(epjit_communicator* communicator, const epjit_collective_args* ranks,
                                    uint32_t num_ranks, const int64_t* counts, uint32_t num_counts, epjit_dtype type,
                                    epjit_stream stream) {
    return guarded([&] {
        epjit::communicator& c = not_null(communicator, "communicator").object;
        const collective_arguments args(ranks, num_ranks, [](const epjit_collective_args& a) { return to_cpp(a); });
        epjit::reduce_scatter_v(c, args.span(), counts_of(counts, num_counts), enumerator<epjit::dtype>(type, "type"),
                                stream);
    });
}

epjit_status epjit_broadcast(epjit_communicator* communicator, const epjit_collective_args* ranks, uint32_t num_ranks,
                             int64_t count, int32_t root, epjit_dtype type, epjit_stream stream) {
    return guarded([&] {
        epjit::communicator& c = not_null(communicator, "communicator").object;
        const collective_arguments args(ranks, num_ranks, [](const epjit_collective_args& a) { return to_cpp(a); });
        epjit::broadcast(c, args.span(), count, root, enumerator<epjit::dtype>(type, "type"), stream);
    });
}

epjit_status epjit_derive_parallel(const epjit_parallel_config* config, int32_t rank, epjit_parallel_place* out) {
    return guarded([&] {
        write_struct(out, to_c(epjit::derive_parallel(to_cpp(read_struct(config, epjit_parallel_config{})), rank)));
    });
}

epjit_status epjit_list_ranks(const epjit_rank_group* group, int32_t* ranks, uint32_t num_ranks) {
    return guarded([&] {
        const epjit_rank_group& g = not_null(group, "group");
        epjit::list_ranks({g.first, g.stride, g.size, g.index}, {&not_null(ranks, "ranks"), num_ranks});
    });
}
