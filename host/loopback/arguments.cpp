// SPDX-License-Identifier: Apache-2.0
#include "host/loopback/arguments.hpp"

#include <algorithm>
#include <bit>
#include <limits>

namespace epjit::host {
namespace {

constexpr std::size_t part_alignment = 256;

}  // namespace

std::uint64_t bits_of(const void* pointer) noexcept {
    return reinterpret_cast<std::uintptr_t>(pointer);
}

std::uint64_t bits_of(std::int64_t bytes) noexcept {
    return static_cast<std::uint64_t>(bytes);
}

std::int32_t weight_columns(const exchange_config& c) noexcept {
    return c.routing == routing_form::sparse ? c.num_experts : c.topk;
}

std::int64_t stride_bytes(const tensor_view& t) noexcept {
    return (t.row_stride != 0 ? t.row_stride : t.columns) * size_of(t.type);
}

std::int32_t scale_stride_bytes(const tensor_view& t) noexcept {
    const std::int64_t groups = scale_groups(t.columns);
    return static_cast<std::int32_t>((t.scale_row_stride != 0 ? t.scale_row_stride : groups) * size_of(t.scale));
}

std::int32_t widest_access(std::uint64_t bits) noexcept {
    return static_cast<std::int32_t>(bits == 0 ? 16 : std::min<std::uint64_t>(16, bits & (~bits + 1)));
}

std::int32_t total_tokens(const plan_state& plan) noexcept {
    std::int32_t total = 0;
    for (const plan_args& a : plan.ranks) {
        total += a.num_tokens;
    }
    return total;
}

plan_offsets lay_out_plan(const resolved_config& config, std::int64_t num_tokens, std::int64_t blocks,
                          std::int64_t keys) {
    plan_offsets o;
    std::size_t next = 0;
    const auto part = [&next](std::int64_t bytes) {
        const std::size_t at = next;
        next = (next + static_cast<std::size_t>(bytes) + part_alignment - 1) / part_alignment * part_alignment;
        return at;
    };
    const std::int64_t entries = num_tokens * config.config.topk;
    const std::int64_t slots = config.placement.num_slots;
    o.barrier = part(4 * sizeof(std::uint32_t));
    o.device_status = part(2 * sizeof(templates::plan_status));
    // Counts are read two keys at a time, and of an odd number of them one more, which may never have been written.
    o.block_counts = part(blocks * keys * 4);
    o.zeroed = next;
    o.entries = part(entries * static_cast<std::int64_t>(sizeof(templates::plan_entry)));
    o.entry_slots = part(entries * 2);
    o.slot_counts = part(slots * 4);
    o.slot_offsets = part((slots + config.num_ranks) * 4);
    o.rank_rows = part(config.num_ranks * 4);
    o.total = next;
    return o;
}

plan_memory place_plan(void* device, const plan_offsets& o, void* pinned_status, void* pinned_counts) {
    std::byte* base = static_cast<std::byte*>(device);
    plan_memory m;
    m.entries = reinterpret_cast<templates::plan_entry*>(base + o.entries);
    m.entry_slots = reinterpret_cast<std::uint16_t*>(base + o.entry_slots);
    m.slot_counts = reinterpret_cast<std::int32_t*>(base + o.slot_counts);
    m.slot_offsets = reinterpret_cast<std::int32_t*>(base + o.slot_offsets);
    m.rank_rows = reinterpret_cast<std::int32_t*>(base + o.rank_rows);
    m.block_counts = reinterpret_cast<std::uint32_t*>(base + o.block_counts);
    m.barrier = reinterpret_cast<std::uint32_t*>(base + o.barrier);
    m.device_status = reinterpret_cast<templates::plan_status*>(base + o.device_status);
    m.host_status = static_cast<templates::plan_status*>(pinned_status);
    m.host_counts = static_cast<std::int32_t*>(pinned_counts);
    return m;
}

void fill_plan_args(plan_kernel_args& args, const resolved_config& config, const device_tables& tables,
                    const plan_memory& memory, std::span<const plan_args> ranks, const plan_options& options,
                    const plan_launch& launch) {
    args.expert_first = tables.expert_first;
    args.expert_slots = tables.expert_slots;
    args.slot_rank = tables.slot_rank;
    args.rank_first = tables.rank_first;
    args.entries = memory.entries;
    args.entry_slots = memory.entry_slots;
    args.slot_counts = memory.slot_counts;
    args.slot_offsets = memory.slot_offsets;
    args.rank_rows = memory.rank_rows;
    args.block_counts = memory.block_counts;
    args.barrier = memory.barrier;
    args.device_status = memory.device_status;
    args.host_status = memory.host_status;
    args.host_counts = options.mode == mode::exact ? memory.host_counts : nullptr;
    args.timeout_ns = launch.timeout_ns;
    args.width = static_cast<templates::id_width>(options.ids);
    args.layout = static_cast<templates::row_layout>(options.layout);
    args.alignment = options.layout == layout::expert_major ? options.alignment : 1;
    args.ids_are_slots = config.config.routing == routing_form::slots ? 1 : 0;
    args.sequence = launch.sequence;
    const bool unbounded = options.mode == mode::exact && options.layout != layout::masked;
    std::int32_t first_token = 0;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
        templates::plan_rank& to = args.ranks[r];
        to.routing = ranks[r].routing;
        to.num_tokens = ranks[r].num_tokens;
        to.first_token = first_token;
        to.capacity = unbounded ? std::numeric_limits<std::int32_t>::max() : ranks[r].capacity;
        to.reserved = 0;
        to.slot_tokens = reinterpret_cast<templates::u64*>(ranks[r].slot_tokens);
        first_token += ranks[r].num_tokens;
    }
    args.num_tokens = first_token;
}

void fill_scatter_args(scatter_kernel_args& args, const resolved_config& config, const device_tables& tables,
                       const plan_memory& memory, const plan_state& plan, std::span<const std::int32_t> rows,
                       std::span<const dispatch_args> ranks, const dispatch_options& options) {
    args.entries = memory.entries;
    args.entry_slots = memory.entry_slots;
    args.rank_first = tables.rank_first;
    args.slot_counts = memory.slot_counts;
    args.slot_offsets = memory.slot_offsets;
    args.rank_rows = memory.rank_rows;
    args.list = {};
    args.list.skip_rank = -1;
    args.fill_first_slot = 0;
    args.fill_last_slot = config.placement.num_slots;
    args.fill_first_rank = 0;
    args.fill_last_rank = config.num_ranks;
    args.reserved = 0;
    args.weight_columns = weight_columns(config.config);
    args.layout = static_cast<templates::row_layout>(plan.options.layout);
    args.weigh_input = options.weigh_input ? 1 : 0;
    args.zero_padding = options.zero_padding ? 1 : 0;
    args.zero_tail = options.zero_tail ? 1 : 0;
    std::uint64_t bits = static_cast<std::uint64_t>(config.config.hidden) *
                         static_cast<std::uint64_t>(size_of(config.config.dispatch_type));
    std::int32_t first_token = 0;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
        const dispatch_args& from = ranks[r];
        templates::scatter_rank& to = args.ranks[r];
        to.input = from.input.data;
        to.input_scales = from.input.scales;
        to.weights = from.weights;
        to.output = from.output.data;
        to.output_scales = from.output.scales;
        to.row_source = from.row_source;
        to.row_weights = from.row_weights;
        to.local_ids = from.local_ids;
        to.local_weights = from.local_weights;
        to.input_stride = stride_bytes(from.input);
        to.output_stride = stride_bytes(from.output);
        to.input_scale_stride = scale_stride_bytes(from.input);
        to.output_scale_stride = scale_stride_bytes(from.output);
        to.first_token = first_token;
        to.num_tokens = plan.ranks[r].num_tokens;
        to.capacity = rows[r];
        to.by_token = 0;
        first_token += plan.ranks[r].num_tokens;
        bits |= bits_of(to.input) | bits_of(to.output) | static_cast<std::uint64_t>(to.input_stride) |
                static_cast<std::uint64_t>(to.output_stride);
    }
    args.num_tokens = first_token;
    args.vector_bytes = widest_access(bits);
}

void fill_combine_args(gather_kernel_args& args, const resolved_config& config, const plan_memory& memory,
                       const plan_state& plan, std::span<const combine_args> ranks, const combine_options& options) {
    args.entries = memory.entries;
    args.weight_columns = weight_columns(config.config);
    args.layout = static_cast<templates::row_layout>(plan.options.layout);
    args.order = static_cast<templates::sum_order>(options.reduction);
    args.list = {};
    args.list.skip_rank = -1;
    args.reserved = 0;
    std::uint64_t bits = static_cast<std::uint64_t>(config.config.hidden) *
                         static_cast<std::uint64_t>(size_of(config.config.combine_type));
    std::int32_t first_token = 0;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
        const combine_args& from = ranks[r];
        templates::gather_rank& to = args.ranks[r];
        to = {};
        to.rows = from.rows.data;
        to.weights = from.weights;
        to.output = from.output.data;
        to.row_stride = stride_bytes(from.rows);
        to.output_stride = stride_bytes(from.output);
        to.first_token = first_token;
        to.num_tokens = plan.ranks[r].num_tokens;
        to.host = config.rank_hosts[r];
        first_token += plan.ranks[r].num_tokens;
        bits |= bits_of(to.rows) | bits_of(to.output) | static_cast<std::uint64_t>(to.row_stride) |
                static_cast<std::uint64_t>(to.output_stride);
    }
    args.num_tokens = first_token;
    args.vector_bytes = widest_access(bits);
}

void fill_gradient_args(gather_kernel_args& args, const resolved_config& config, const plan_memory& memory,
                        const plan_state& plan, std::span<const weight_gradient_args> ranks) {
    args.entries = memory.entries;
    args.weight_columns = weight_columns(config.config);
    args.layout = static_cast<templates::row_layout>(plan.options.layout);
    args.order = templates::sum_order::per_rank;
    args.list = {};
    args.list.skip_rank = -1;
    args.reserved = 0;
    std::uint64_t bits = 0;
    std::int32_t first_token = 0;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
        const weight_gradient_args& from = ranks[r];
        templates::gather_rank& to = args.ranks[r];
        to = {};
        to.rows = from.rows.data;
        to.output = from.output;
        to.gradient = from.gradient.data;
        to.row_gradients = from.row_gradients;
        to.row_stride = stride_bytes(from.rows);
        to.gradient_stride = stride_bytes(from.gradient);
        to.first_token = first_token;
        to.num_tokens = plan.ranks[r].num_tokens;
        to.host = config.rank_hosts[r];
        first_token += plan.ranks[r].num_tokens;
        bits |= bits_of(to.rows) | bits_of(to.gradient) | static_cast<std::uint64_t>(to.row_stride) |
                static_cast<std::uint64_t>(to.gradient_stride);
    }
    args.num_tokens = first_token;
    args.vector_bytes = widest_access(bits);
}

}  // namespace epjit::host
