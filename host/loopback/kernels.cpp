// SPDX-License-Identifier: Apache-2.0
#include "host/loopback/kernels.hpp"

#include "epjit/jit/variants.hpp"

namespace epjit::host {

std::array<jit::variant_spec, 3> loopback_specs(const resolved_config& config, jit::target_arch arch) {
    const exchange_config& c = config.config;
    const jit::knobs programs = config.knobs.programs();
    return {jit::plan_spec(arch, c.num_experts, config.placement.num_slots, config.num_ranks, c.topk,
                           c.routing == routing_form::sparse),
            jit::with_knobs(jit::scatter_spec(arch, exchange_kind::loopback, config.num_ranks, c.hidden, c.topk,
                                              c.input_type, c.dispatch_type, c.scales),
                            programs),
            jit::with_knobs(
                jit::gather_spec(arch, exchange_kind::loopback, config.num_ranks, c.hidden, c.topk, c.combine_type),
                programs)};
}

loopback_kernels::loopback_kernels(communicator_state& comm, const resolved_config& config) {
    const device_context& context = *comm.context;
    const auto specs = loopback_specs(config, device_arch(context.compute_major(), context.compute_minor()));
    variants_ = comm.runtime->load(comm.context, specs);
    const std::int32_t budget = config.config.num_sms;
    const templates::plan_config plan_shape = plan_config_of(specs[0]);
    plan_keys = templates::plan_keys(plan_shape);
    plan = prepare_kernel(context, variants_[0]->get("plan_kernel"), specs[0].threads,
                          templates::plan_shared_bytes(plan_shape), budget);
    scatter = prepare_scatter(context, *variants_[1], specs[1], budget);
    gather = prepare_kernel(context, variants_[2]->get("gather_kernel"), specs[2].threads, 0, budget);
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
            prepare_kernel(context, gradient_variant_[0]->get("weight_gradient_kernel"), spec.threads, 0, c.num_sms);
    }
    return weight_gradient_;
}

}  // namespace epjit::host
