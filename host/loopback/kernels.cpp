// SPDX-License-Identifier: Apache-2.0
#include "host/loopback/kernels.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/variants.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::host {
namespace {

launchable prepare(const device_context& context, const loaded_kernel& kernel, std::int32_t threads,
                   std::int32_t shared_bytes, std::int32_t sm_budget) {
    const driver_api& api = context.api();
    if (shared_bytes > context.max_shared_bytes()) {
        throw unsupported_error(
            fmt::format("{} needs {} bytes of shared memory, a block on {} may have {}", kernel.info->name,
                        shared_bytes, context.name(), context.max_shared_bytes()),
            "use fewer expert slots or a shorter row");
    }
    const scoped_context current(context);
    api.check(api.function_set_attribute(kernel.function, function_attribute::max_dynamic_shared_bytes, shared_bytes),
              "cuFuncSetAttribute");
    int per_sm = 0;
    api.check(api.occupancy(&per_sm, kernel.function, threads, static_cast<std::size_t>(shared_bytes)),
              "cuOccupancyMaxActiveBlocksPerMultiprocessor");
    if (per_sm < 1) {
        throw unsupported_error(fmt::format("{} with {} threads and {} bytes of shared memory does not fit an SM of {}",
                                            kernel.info->name, threads, shared_bytes, context.name()));
    }
    launchable out;
    out.kernel = kernel;
    out.threads = threads;
    out.shared_bytes = shared_bytes;
    out.max_blocks = per_sm * context.num_sms();
    if (sm_budget > 0) {
        out.max_blocks = std::min(out.max_blocks, sm_budget);
    }
    return out;
}

}  // namespace

std::array<jit::variant_spec, 3> loopback_specs(const resolved_config& config, jit::target_arch arch) {
    const exchange_config& c = config.config;
    return {jit::plan_spec(arch, c.num_experts, config.placement.num_slots, config.num_ranks, c.topk,
                           c.routing == routing_form::sparse),
            jit::scatter_spec(arch, exchange_kind::loopback, config.num_ranks, c.hidden, c.topk, c.input_type,
                              c.dispatch_type, c.scales),
            jit::gather_spec(arch, exchange_kind::loopback, config.num_ranks, c.hidden, c.topk, c.combine_type)};
}

templates::plan_config plan_config_of(const jit::variant_spec& spec) noexcept {
    return {.num_experts = spec.num_experts,
            .num_slots = spec.num_slots,
            .num_ranks = spec.num_ranks,
            .topk = spec.topk,
            .sparse = spec.sparse,
            .threads = spec.threads};
}

templates::scatter_config scatter_config_of(const jit::variant_spec& spec) noexcept {
    return {.hidden = spec.hidden,
            .num_ranks = spec.num_ranks,
            .topk = spec.topk,
            .input = static_cast<templates::element>(spec.input),
            .output = static_cast<templates::element>(spec.output),
            .scales = static_cast<templates::group_scale>(spec.scales),
            .threads = spec.threads,
            .stages = spec.stages};
}

loopback_kernels::loopback_kernels(communicator_state& comm, const resolved_config& config) {
    const device_context& context = *comm.context;
    const auto specs = loopback_specs(config, device_arch(context.compute_major(), context.compute_minor()));
    variants_ = comm.runtime->load(comm.context, specs);
    const std::int32_t budget = config.config.num_sms;
    const templates::plan_config plan_shape = plan_config_of(specs[0]);
    const templates::scatter_config scatter_shape = scatter_config_of(specs[1]);
    plan_keys = templates::plan_keys(plan_shape);
    plan = prepare(context, variants_[0]->get("plan_kernel"), specs[0].threads,
                   templates::plan_shared_bytes(plan_shape), budget);
    scatter = prepare(context, variants_[1]->get("scatter_kernel"), specs[1].threads, 0, budget);
    if (specs[1].stages > 0) {
        scatter_bulk =
            prepare(context, variants_[1]->get("scatter_bulk_kernel"), templates::scatter_bulk_threads(scatter_shape),
                    templates::scatter_bulk_shared_bytes(scatter_shape), budget);
        bulk_movers = templates::scatter_movers(scatter_shape);
    }
    gather = prepare(context, variants_[2]->get("gather_kernel"), specs[2].threads, 0, budget);
    if (config.config.backward) {
        weight_gradient(comm, config);
    }
}

const launchable& loopback_kernels::weight_gradient(communicator_state& comm, const resolved_config& config) {
    if (!weight_gradient_) {
        const device_context& context = *comm.context;
        const exchange_config& c = config.config;
        const jit::variant_spec spec =
            jit::weight_gradient_spec(device_arch(context.compute_major(), context.compute_minor()), config.num_ranks,
                                      c.hidden, c.topk, c.combine_type);
        gradient_variant_ = comm.runtime->load(comm.context, std::span(&spec, 1));
        weight_gradient_ =
            prepare(context, gradient_variant_[0]->get("weight_gradient_kernel"), spec.threads, 0, c.num_sms);
    }
    return weight_gradient_;
}

void launch(communicator_state& comm, const launchable& what, std::int64_t blocks, const void* args, stream_t stream,
            bool cooperative) {
    const driver_api& api = comm.context->api();
    const unsigned grid = static_cast<unsigned>(std::clamp<std::int64_t>(blocks, 1, what.max_blocks));
    const unsigned threads = static_cast<unsigned>(what.threads);
    const unsigned shared = static_cast<unsigned>(what.shared_bytes);
    void* params[] = {const_cast<void*>(args)};
    const cu_result result =
        cooperative ? api.launch_cooperative(what.kernel.function, grid, 1, 1, threads, 1, 1, shared, stream, params)
                    : api.launch(what.kernel.function, grid, 1, 1, threads, 1, 1, shared, stream, params, nullptr);
    if (result != cu_success) {
        api.fail(result, cooperative ? "cuLaunchCooperativeKernel" : "cuLaunchKernel",
                 fmt::format("of {} with {} blocks of {} threads and {} bytes of shared memory", what.kernel.info->name,
                             grid, threads, shared));
    }
    what.kernel.counter->launches.fetch_add(1, std::memory_order_relaxed);
    comm.runtime->launches.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace epjit::host
