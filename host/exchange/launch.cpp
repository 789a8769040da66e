// SPDX-License-Identifier: Apache-2.0
#include "host/exchange/launch.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::host {

launchable prepare_kernel(const device_context& context, const loaded_kernel& kernel, std::int32_t threads,
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
    out.per_sm = per_sm;
    out.max_blocks = per_sm * context.num_sms();
    if (sm_budget > 0) {
        out.max_blocks = std::min(out.max_blocks, sm_budget);
    }
    return out;
}

templates::plan_config plan_config_of(const jit::variant_spec& spec) noexcept {
    return {.num_experts = spec.num_experts,
            .num_slots = spec.num_slots,
            .num_ranks = spec.num_ranks,
            .topk = spec.topk,
            .sparse = spec.sparse,
            .exchange = spec.kind != jit::kernel_kind::plan,
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
            .stages = spec.stages,
            .movers = spec.movers};
}

templates::gather_config gather_config_of(const jit::variant_spec& spec) noexcept {
    templates::gather_config c{};
    c.hidden = spec.hidden;
    c.num_ranks = spec.num_ranks;
    c.topk = spec.topk;
    c.type = static_cast<templates::element>(spec.input);
    c.threads = spec.threads;
    c.stages = spec.stages;
    c.teams = spec.movers;
    return c;
}

namespace {

cu_result launch_overlapping(const driver_api& api, const launchable& what, unsigned grid, stream_t stream,
                             void** params) {
    cu_launch_attribute attribute;
    attribute.id = launch_before_the_end;
    attribute.value[0] = 1;
    cu_launch_config config;
    config.grid[0] = grid;
    config.block[0] = static_cast<unsigned>(what.threads);
    config.shared_bytes = static_cast<unsigned>(what.shared_bytes);
    config.stream = stream;
    config.attributes = &attribute;
    config.num_attributes = 1;
    return api.launch_with(&config, what.kernel.function, params, nullptr);
}

}  // namespace

void launch(communicator_state& comm, const launchable& what, std::int64_t blocks, const void* args, stream_t stream,
            launch_mode mode) {
    const driver_api& api = comm.context->api();
    const unsigned grid = static_cast<unsigned>(std::clamp<std::int64_t>(blocks, 1, what.max_blocks));
    const unsigned threads = static_cast<unsigned>(what.threads);
    const unsigned shared = static_cast<unsigned>(what.shared_bytes);
    void* params[] = {const_cast<void*>(args)};
    cu_result result = cu_success;
    const char* call = "cuLaunchKernel";
    if (mode == launch_mode::overlapping && api.launch_with != nullptr && comm.context->compute_major() >= 9) {
        call = "cuLaunchKernelEx";
        result = launch_overlapping(api, what, grid, stream, params);
    } else if (mode == launch_mode::cooperative) {
        call = "cuLaunchCooperativeKernel";
        result = api.launch_cooperative(what.kernel.function, grid, 1, 1, threads, 1, 1, shared, stream, params);
    } else {
        result = api.launch(what.kernel.function, grid, 1, 1, threads, 1, 1, shared, stream, params, nullptr);
    }
    if (result != cu_success) {
        api.fail(result, call,
                 fmt::format("of {} with {} blocks of {} threads and {} bytes of shared memory", what.kernel.info->name,
                             grid, threads, shared));
    }
    what.kernel.counter->launches.fetch_add(1, std::memory_order_relaxed);
    comm.runtime->launches.fetch_add(1, std::memory_order_relaxed);
}

scatter_program prepare_scatter(const device_context& context, const loaded_variant& variant,
                                const jit::variant_spec& spec, std::int32_t sm_budget) {
    scatter_program program;
    program.general = prepare_kernel(context, variant.get("scatter_kernel"), spec.threads, 0, sm_budget);
    if (spec.stages > 0) {
        const templates::scatter_config shape = scatter_config_of(spec);
        program.bulk =
            prepare_kernel(context, variant.get("scatter_bulk_kernel"), templates::scatter_bulk_threads(shape),
                           templates::scatter_bulk_shared_bytes(shape), sm_budget);
        program.movers = templates::scatter_movers(shape);
    }
    return program;
}

void launch_scatter(communicator_state& comm, const scatter_program& program,
                    const templates::scatter_args<templates::max_driven_ranks>& args, std::int64_t tokens,
                    std::int64_t rows_to_fill, stream_t stream) {
    if (program.bulk && args.vector_bytes == 16 && args.weigh_input == 0) {
        const std::int64_t blocks = (tokens + program.movers - 1) / program.movers;
        launch(comm, program.bulk, std::max(blocks, (rows_to_fill + 7) / 8), &args, stream);
    } else {
        const std::int64_t warps = program.general.threads / 32;
        launch(comm, program.general, std::max(tokens, (rows_to_fill + warps - 1) / warps), &args, stream);
    }
}

}  // namespace epjit::host
