// SPDX-License-Identifier: Apache-2.0
#include "host/ranks/plan.hpp"

#include <algorithm>

namespace epjit::host {

rank_plan::rank_plan(communicator_state& comm, const resolved_config& config, std::int32_t most, std::int64_t blocks,
                     std::int32_t relays, stream_t stream)
    : max_tokens(most),
      num_slots_(config.placement.num_slots),
      num_ranks_(config.num_ranks),
      me_(config.first_driven),
      first_slot_(config.placement.rank_first[me_]),
      own_slots_(config.placement.rank_first[me_ + 1] - first_slot_) {
    std::size_t next = 0;
    const auto part = [&next](std::int64_t bytes) {
        const std::size_t at = next;
        next = (next + static_cast<std::size_t>(bytes) + 255) / 256 * 256;
        return at;
    };
    const std::int64_t slots = num_slots_;
    const std::int64_t pairs = std::int64_t{std::max(1, most)} * config.config.topk;
    const std::int64_t lines_most = std::int64_t{num_ranks_} * std::max(1, config.config.max_tokens_per_rank);
    const std::size_t barrier = part(4 * sizeof(std::uint32_t));
    const std::size_t status = part(2 * sizeof(templates::plan_status));
    const std::size_t line_first_at = part((num_ranks_ + 1) * 4);
    early.tokens = std::min(std::max(1, most), config.config.ll_max_tokens_per_rank);
    const std::int64_t early_pairs = std::int64_t{early.tokens} * config.config.topk;
    constexpr std::int64_t place_bytes = sizeof(templates::early_place);
    const std::size_t early_state_at = part((1 + num_ranks_) * 8);
    const std::size_t early_entries_at = part(early_pairs * 8);
    const std::size_t early_places_at = part(early_pairs * place_bytes);
    const std::size_t early_lines_at = part(num_ranks_ * early_pairs * place_bytes);
    const std::size_t zeroed = next;
    const std::size_t entries_at = part(pairs * static_cast<std::int64_t>(sizeof(templates::plan_entry)));
    const std::size_t entry_slots_at = part(pairs * 2);
    const std::size_t positions_at = part(pairs * 4);
    const std::size_t slot_counts_at = part(slots * 4);
    const std::size_t slot_offsets_at = part((slots + num_ranks_) * 4);
    const std::size_t rank_rows_at = part(num_ranks_ * 4);
    const std::size_t block_counts = part(blocks * (slots + 4 * num_ranks_) * 4);
    kept.lines = early.tokens;
    const std::size_t kept_at = part(num_ranks_ * early_pairs * static_cast<std::int64_t>(sizeof(float)));
    const std::size_t lines_at = part(lines_most * templates::line_bytes(config.config.topk));
    const std::size_t relay_entries_at =
        part(relays * pairs * static_cast<std::int64_t>(sizeof(templates::plan_entry)));
    const std::size_t relay_positions_at = part(relays * pairs * 4);
    device_ = workspace(comm, config.config.memory, next);
    pinned_ = pinned_buffer(comm.context, counts_offset + static_cast<std::size_t>(slots + 4 * num_ranks_) * 4);
    comm.runtime->allocations.fetch_add(1, std::memory_order_relaxed);
    std::byte* base = static_cast<std::byte*>(device_.data());
    barrier_ = reinterpret_cast<std::uint32_t*>(base + barrier);
    device_status_ = reinterpret_cast<templates::plan_status*>(base + status);
    line_first = reinterpret_cast<std::int32_t*>(base + line_first_at);
    early.state = reinterpret_cast<templates::u64*>(base + early_state_at);
    early.entries = reinterpret_cast<templates::u64*>(base + early_entries_at);
    early.places = reinterpret_cast<templates::early_place*>(base + early_places_at);
    early.lines = reinterpret_cast<templates::early_place*>(base + early_lines_at);
    entries = reinterpret_cast<templates::plan_entry*>(base + entries_at);
    entry_slots = reinterpret_cast<std::uint16_t*>(base + entry_slots_at);
    positions = reinterpret_cast<std::int32_t*>(base + positions_at);
    slot_counts = reinterpret_cast<std::int32_t*>(base + slot_counts_at);
    slot_offsets = reinterpret_cast<std::int32_t*>(base + slot_offsets_at);
    rank_rows = reinterpret_cast<std::int32_t*>(base + rank_rows_at);
    block_counts_ = reinterpret_cast<std::uint32_t*>(base + block_counts);
    kept.weights = reinterpret_cast<float*>(base + kept_at);
    lines = reinterpret_cast<std::uint8_t*>(base + lines_at);
    if (relays != 0) {
        relay_entries = reinterpret_cast<templates::plan_entry*>(base + relay_entries_at);
        relay_positions = reinterpret_cast<std::int32_t*>(base + relay_positions_at);
    }
    fill_bytes(comm.context, base, 0, zeroed, stream);
    ranks.reserve(1);
}

void rank_plan::fill(templates::plan_head& head) const noexcept {
    head.entries = entries;
    head.entry_slots = entry_slots;
    head.slot_counts = slot_counts;
    head.slot_offsets = slot_offsets;
    head.rank_rows = rank_rows;
    head.block_counts = block_counts_;
    head.barrier = barrier_;
    head.device_status = device_status_;
    std::byte* pinned = static_cast<std::byte*>(pinned_.device_data());
    head.host_status = reinterpret_cast<templates::plan_status*>(pinned);
    head.host_counts = exact ? reinterpret_cast<std::int32_t*>(pinned + counts_offset) : nullptr;
}

bool rank_plan::complete() const noexcept {
    return __atomic_load_n(&host_status()->ready, __ATOMIC_ACQUIRE) == sequence;
}

plan_view rank_plan::view(int) const {
    plan_view v;
    v.counts = slot_counts + first_slot_;
    v.offsets = slot_offsets + first_slot_ + me_;
    v.num_rows = rank_rows + me_;
    v.num_slots = own_slots_;
    v.rows = known_rows;
    v.host_counts = exact ? host_counts() + first_slot_ : nullptr;
    return v;
}

plan_status rank_plan::status() const {
    if (!complete()) {
        return {};
    }
    const templates::plan_status& s = *host_status();
    return {s.bad_ids, s.duplicate_ids, s.excess_ids, s.dropped_rows};
}

}  // namespace epjit::host
