// SPDX-License-Identifier: Apache-2.0
#include "host/ranks/kernels.hpp"

#include "epjit/jit/variants.hpp"

#include <algorithm>

namespace epjit::host {
namespace {

/// A kernel that waits for peers must leave SMs where the other lane has a call of its own: the peers may be at that
/// one, and at this only when it is over. Few are enough: those that send come first in a grid and wait for nobody
/// behind.
void leave_room(launchable& kernel, const device_context& context) {
    constexpr std::int32_t room = 8;
    const std::int32_t sms = context.num_sms() - std::min(room, context.num_sms() / 4);
    kernel.max_blocks = std::min(kernel.max_blocks, kernel.per_sm * sms);
}

}  // namespace

rank_kernels::rank_kernels(communicator_state& comm, const resolved_config& config) {
    const device_context& context = *comm.context;
    const exchange_config& c = config.config;
    jit::run_request request;
    request.hidden = c.hidden;
    request.num_experts = c.num_experts;
    request.num_slots = config.placement.num_slots;
    request.topk = c.topk;
    request.num_ranks = config.num_ranks;
    request.arch = device_arch(context.compute_major(), context.compute_minor());
    request.exchange = c.kind;
    request.routing = c.routing;
    request.input = c.input_type;
    request.wire = c.dispatch_type;
    request.scales = c.scales;
    request.combine = c.combine_type;
    request.backward = c.backward;
    request.programs = config.knobs.programs();
    request.low_latency = c.ll_max_tokens_per_rank > 0;
    request.windows = c.window_rows > 0;
    const std::vector<jit::variant_spec> specs = jit::run_variants(request);
    variants_ = comm.runtime->load(comm.context, specs);
    const std::int32_t budget = c.num_sms;
    const std::int32_t whole_calls = budget == 0 ? 0 : std::max(budget, c.expansion_sms);  // launches bound the senders
    const auto scatter_of = [&](dtype input, dtype output) {
        for (std::size_t i = 0; i < specs.size(); ++i) {
            const jit::variant_spec& s = specs[i];
            if (s.kind == jit::kernel_kind::permute_dispatch && s.input == input && s.output == output) {
                return prepare_scatter(context, *variants_[i], s, budget);
            }
        }
        return scatter_program{};
    };
    for (std::size_t i = 0; i < specs.size(); ++i) {
        const jit::variant_spec& s = specs[i];
        switch (s.kind) {
            case jit::kernel_kind::exchange_plan:
                plan = prepare_kernel(context, variants_[i]->get("exchange_plan_kernel"), s.threads,
                                      templates::plan_shared_bytes(plan_config_of(s)), budget);
                plan_shape = plan_config_of(s);
                break;
            case jit::kernel_kind::gathered_plan:
                // As many tiles as the block may have memory for; a launch asks for what it needs.
                if (const std::int32_t most = context.max_shared_bytes() - 1024;  // some is the kernel's own
                    templates::gathered_shared_bytes(plan_config_of(s), 1) <= most) {
                    gathered_plan = prepare_kernel(context, variants_[i]->get("gathered_plan_kernel"),
                                                   templates::gathered_plan_threads, most, budget);
                }
                break;
            case jit::kernel_kind::exchange_helpers:
                sync = prepare_kernel(context, variants_[i]->get("sync_kernel"), 64, 0, budget);
                send_weights = prepare_kernel(context, variants_[i]->get("send_weights_kernel"), 256, 0, budget);
                return_rows = prepare_kernel(context, variants_[i]->get("return_rows_kernel"), 256, 0, budget);
                window_lines = prepare_kernel(context, variants_[i]->get("window_lines_kernel"), 256, 0, budget);
                break;
            case jit::kernel_kind::unpermute_combine:
                gather = prepare_kernel(context, variants_[i]->get("gather_kernel"), s.threads, 0, budget);
                break;
            case jit::kernel_kind::weight_gradient:
                weight_gradient =
                    prepare_kernel(context, variants_[i]->get("weight_gradient_kernel"), s.threads, 0, budget);
                break;
            case jit::kernel_kind::exchange_dispatch: {
                const templates::scatter_config shape = scatter_config_of(s);
                dispatch =
                    prepare_kernel(context, variants_[i]->get("dispatch_kernel"), templates::dispatch_threads(shape),
                                   templates::dispatch_shared_bytes(shape), whole_calls);
                dispatch_movers = templates::scatter_movers(shape);
                dispatch_send_movers = templates::dispatch_send_movers(shape);
                break;
            }
            case jit::kernel_kind::direct_dispatch: {
                const templates::scatter_config shape = scatter_config_of(s);
                direct_dispatch = prepare_kernel(context, variants_[i]->get("direct_dispatch_kernel"),
                                                 templates::scatter_bulk_threads(shape),
                                                 templates::scatter_bulk_shared_bytes(shape), budget);
                break;
            }
            case jit::kernel_kind::exchange_combine: {
                const templates::gather_config shape = gather_config_of(s);
                combine =
                    prepare_kernel(context, variants_[i]->get("combine_kernel"), templates::combine_threads(shape),
                                   templates::combine_shared_bytes(shape), whole_calls);
                break;
            }
            case jit::kernel_kind::low_latency_dispatch:
                ll_dispatch = prepare_kernel(context, variants_[i]->get("ll_dispatch_kernel"), s.threads, 0, budget);
                break;
            case jit::kernel_kind::low_latency_combine:
                ll_combine = prepare_kernel(context, variants_[i]->get("ll_combine_kernel"), s.threads, 0, budget);
                break;
            case jit::kernel_kind::plan:
            case jit::kernel_kind::permute_dispatch: break;
        }
    }
    if (c.lanes > 1) {
        leave_room(dispatch, context);
        leave_room(combine, context);
        // Of few tokens two calls fit side by side.
        ll_dispatch.max_blocks /= 2;
        ll_combine.max_blocks /= 2;
    }
    convert = scatter_of(c.input_type, c.dispatch_type);
    pass = c.input_type == c.dispatch_type ? convert : scatter_of(c.dispatch_type, c.dispatch_type);
    raw = c.input_type == c.dispatch_type ? convert : scatter_of(c.input_type, c.input_type);
    if (c.backward) {
        gradients = c.combine_type == c.input_type ? raw : scatter_of(c.combine_type, c.combine_type);
    }
}

}  // namespace epjit::host
