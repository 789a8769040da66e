// SPDX-License-Identifier: Apache-2.0
#include "host/cpu/plan.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

namespace epjit::host::cpu {
namespace {

/// One expert slot that a token goes to, and the column of its weight.
struct choice {
    std::uint16_t slot;
    std::uint16_t column;
};

template <class Id>
std::int64_t load_id(const void* routing, std::int64_t index) noexcept {
    Id id;
    std::memcpy(&id, static_cast<const char*>(routing) + index * static_cast<std::int64_t>(sizeof(Id)), sizeof(Id));
    return static_cast<std::int64_t>(id);
}

std::int64_t load_id(const void* routing, std::int64_t index, id_type type) noexcept {
    switch (type) {
        case id_type::i16: return load_id<std::int16_t>(routing, index);
        case id_type::i32: return load_id<std::int32_t>(routing, index);
        case id_type::u32: {
            // -1 as the caller's signed code wrote it.
            const std::int64_t id = load_id<std::uint32_t>(routing, index);
            return id == std::numeric_limits<std::uint32_t>::max() ? -1 : id;
        }
        case id_type::i64: return load_id<std::int64_t>(routing, index);
    }
    return -1;
}

/// Reads the tokens of one rank after another; each yields at most K choices in ascending slot order.
class token_reader {
   public:
    token_reader(cpu_plan& p, const resolved_config& config)
        : plan_(p), config_(config), topk_(config.config.topk), num_experts_(config.config.num_experts) {}

    /// `seen` has S entries and belongs to the caller; an entry equal to the token's mark means that the id was
    /// taken.
    int read(int rank, std::int64_t token, std::span<std::int32_t> seen, std::int32_t mark, choice* out) {
        int count = 0;
        const void* routing = plan_.ranks[rank].routing;
        if (config_.config.routing == routing_form::sparse) {
            const auto* row = static_cast<const std::uint8_t*>(routing) + token * num_experts_;
            for (std::int32_t expert = 0; expert < num_experts_; ++expert) {
                if (row[expert] == 0) {
                    continue;
                }
                if (count == topk_) {
                    ++plan_.counted.excess_ids;
                    continue;
                }
                out[count++] = {slot_of(expert, rank, token), static_cast<std::uint16_t>(expert)};
            }
        } else {
            const bool names_slots = config_.config.routing == routing_form::slots;
            const std::int64_t bound = names_slots ? config_.placement.num_slots : num_experts_;
            for (std::int32_t k = 0; k < topk_; ++k) {
                const std::int64_t id = load_id(routing, token * topk_ + k, plan_.options.ids);
                if (id < 0 || id >= bound) {
                    plan_.counted.bad_ids += id == -1 ? 0 : 1;
                    continue;
                }
                if (seen[id] == mark) {
                    ++plan_.counted.duplicate_ids;
                    continue;
                }
                seen[id] = mark;
                const auto slot =
                    names_slots ? static_cast<std::uint16_t>(id) : slot_of(static_cast<std::int32_t>(id), rank, token);
                out[count++] = {slot, static_cast<std::uint16_t>(k)};
            }
        }
        std::sort(out, out + count, [](const choice& a, const choice& b) { return a.slot < b.slot; });
        return count;
    }

   private:
    [[nodiscard]] std::uint16_t slot_of(std::int32_t expert, int rank, std::int64_t token) const noexcept {
        const auto& tables = config_.placement;
        const std::int32_t first = tables.expert_first[expert];
        const std::int32_t copies = tables.expert_first[expert + 1] - first;
        return tables.expert_slots[first + (copies == 1 ? 0 : (rank + token) % copies)];
    }

    cpu_plan& plan_;
    const resolved_config& config_;
    std::int32_t topk_;
    std::int32_t num_experts_;
};

std::int64_t capacity_of(const cpu_plan& p, int rank) noexcept {
    const bool bounded = p.options.mode == mode::fixed || p.options.layout == layout::masked;
    return bounded ? p.ranks[rank].capacity : std::numeric_limits<std::int32_t>::max();
}

/// Sizes and places the arrays; returns the scratch of one mark per expert.
std::span<std::int32_t> place_arrays(cpu_plan& p, const resolved_config& config) {
    std::size_t tokens = 0;
    for (const auto& rank : p.ranks) {
        tokens += static_cast<std::size_t>(rank.num_tokens);
    }
    const auto topk = static_cast<std::size_t>(config.config.topk);
    const auto slots = static_cast<std::size_t>(config.placement.num_slots);
    const auto ranks = static_cast<std::size_t>(config.num_ranks);
    std::span<std::int32_t> seen;
    const auto carve = [&](std::byte* base) {
        carver arrays(base);
        p.entries = arrays.take<plan_entry>(tokens * topk);
        p.entry_slots = arrays.take<std::uint16_t>(tokens * topk);
        p.slot_counts = arrays.take<std::int32_t>(slots);
        p.slot_offsets = arrays.take<std::int32_t>(slots + ranks);
        p.rank_rows = arrays.take<std::int32_t>(ranks);
        p.first_token = arrays.take<std::int64_t>(ranks + 1);
        p.rank_first = arrays.take<std::int32_t>(ranks + 1);
        seen = arrays.take<std::int32_t>(slots);  // S is at least E
        return arrays.used();
    };
    p.memory.reserve(config.config.memory, carve(nullptr));
    carve(p.memory.data());
    std::copy(config.placement.rank_first.begin(), config.placement.rank_first.end(), p.rank_first.begin());
    return seen;
}

/// Entries in order, `row` still the place within the slot (flat: within the rank); counts before capacity.
void number_entries(cpu_plan& p, const resolved_config& config, std::span<std::int32_t> seen) {
    const bool flat = p.options.layout == layout::flat;
    const std::int32_t topk = config.config.topk;
    std::fill(seen.begin(), seen.end(), -1);
    std::fill(p.slot_counts.begin(), p.slot_counts.end(), 0);
    std::fill(p.rank_rows.begin(), p.rank_rows.end(), 0);
    token_reader reader(p, config);
    choice chosen[templates::max_topk];
    std::int64_t global = 0;
    for (int rank = 0; rank < config.num_ranks; ++rank) {
        p.first_token[rank] = global;
        for (std::int64_t token = 0; token < p.ranks[rank].num_tokens; ++token, ++global) {
            const int count = reader.read(rank, token, seen, static_cast<std::int32_t>(global), chosen);
            plan_entry* entries = &p.entries[global * topk];
            std::uint16_t* slots = &p.entry_slots[global * topk];
            for (int i = 0; i < topk; ++i) {
                if (i >= count) {
                    entries[i] = {-1, no_rank, 0};
                    slots[i] = no_slot;
                    continue;
                }
                const std::uint16_t holder = config.placement.slot_rank[chosen[i].slot];
                std::int32_t row = 0;
                if (!flat) {
                    row = p.slot_counts[chosen[i].slot]++;
                } else if (i > 0 && entries[i - 1].rank == holder) {
                    row = entries[i - 1].row;
                } else {
                    row = p.rank_rows[holder]++;
                }
                entries[i] = {row, holder, chosen[i].column};
                slots[i] = chosen[i].slot;
            }
        }
    }
    p.first_token[config.num_ranks] = global;
}

/// What the caller counts in: the tokens that want each slot, whether or not their rows will fit.
void add_slot_tokens(const cpu_plan& p) {
    for (const plan_args& rank : p.ranks) {
        if (rank.slot_tokens == nullptr) {
            continue;
        }
        for (const std::uint16_t slot : p.entry_slots) {
            if (slot != no_slot) {
                ++rank.slot_tokens[slot];
            }
        }
    }
}

/// Segment starts, unclipped, in `starts` [S]; closed offsets and counts clipped to the capacity.
void place_segments(cpu_plan& p, const resolved_config& config, std::vector<std::int64_t>& starts) {
    const auto& tables = config.placement;
    const std::int64_t alignment = std::max(p.options.alignment, 1);
    for (int rank = 0; rank < config.num_ranks; ++rank) {
        const std::int64_t capacity = capacity_of(p, rank);
        const std::int32_t first = tables.rank_first[rank];
        const std::int32_t last = tables.rank_first[rank + 1];
        std::int32_t* offsets = &p.slot_offsets[first + rank];
        std::int64_t next = 0;
        for (std::int32_t slot = first; slot < last; ++slot) {
            std::int32_t& count = p.slot_counts[slot];
            starts[slot] = next;
            if (p.options.layout == layout::masked) {
                offsets[slot - first] = static_cast<std::int32_t>(next);
                count = static_cast<std::int32_t>(std::min<std::int64_t>(count, capacity));
                next += capacity;
            } else if (p.options.layout == layout::expert_major) {
                offsets[slot - first] = static_cast<std::int32_t>(std::min(next, capacity));
                const std::int64_t rows = count;
                count = static_cast<std::int32_t>(std::clamp<std::int64_t>(capacity - next, 0, rows));
                next += (rows + alignment - 1) / alignment * alignment;
            } else {
                offsets[slot - first] = 0;
            }
        }
        if (p.options.layout == layout::flat) {
            next = p.rank_rows[rank];
        }
        const std::int64_t rows = p.options.layout == layout::masked ? next : std::min(next, capacity);
        offsets[last - first] = static_cast<std::int32_t>(rows);
        p.rank_rows[rank] = static_cast<std::int32_t>(rows);
    }
}

/// Turns places within a slot into rows of the output, drops what is over capacity, counts flat's slots.
void finish_entries(cpu_plan& p, const resolved_config& config, const std::vector<std::int64_t>& starts) {
    const bool flat = p.options.layout == layout::flat;
    const std::int32_t topk = config.config.topk;
    const std::int64_t tokens = p.first_token[config.num_ranks];
    for (std::int64_t token = 0; token < tokens; ++token) {
        plan_entry* entries = &p.entries[token * topk];
        const std::uint16_t* slots = &p.entry_slots[token * topk];
        std::uint16_t counted_rank = no_rank;  // flat: the rank whose dropped row was counted last
        for (int i = 0; i < topk && entries[i].rank != no_rank; ++i) {
            const std::int64_t limit = capacity_of(p, entries[i].rank);
            std::int64_t row = entries[i].row;
            bool fits = row < limit;
            if (!flat) {
                row += starts[slots[i]];
                fits = fits && (p.options.layout == layout::masked || row < limit);
            }
            if (fits) {
                entries[i].row = static_cast<std::int32_t>(row);
                p.slot_counts[slots[i]] += flat ? 1 : 0;
                continue;
            }
            entries[i].row = -1;
            p.counted.dropped_rows += !flat || entries[i].rank != counted_rank ? 1 : 0;
            counted_rank = entries[i].rank;
        }
    }
}

}  // namespace

plan_view cpu_plan::view(int driven) const {
    const std::int32_t first = rank_first[driven];
    plan_view v;
    v.num_slots = rank_first[driven + 1] - first;
    v.counts = slot_counts.data() + first;
    v.offsets = slot_offsets.data() + first + driven;
    v.num_rows = rank_rows.data() + driven;
    if (options.mode == mode::exact) {
        v.rows = rank_rows[driven];
        v.host_counts = v.counts;
    }
    return v;
}

std::int64_t cpu_plan::extent(int rank) const noexcept {
    const bool sized_by_caller = options.mode == mode::fixed && options.layout != layout::masked;
    return sized_by_caller ? ranks[rank].capacity : rank_rows[rank];
}

void build_plan(cpu_plan& p, const resolved_config& config) {
    p.counted = {};
    const auto seen = place_arrays(p, config);
    number_entries(p, config, seen);
    add_slot_tokens(p);
    std::vector<std::int64_t> starts(static_cast<std::size_t>(config.placement.num_slots));
    place_segments(p, config, starts);
    finish_entries(p, config, starts);
    if (p.options.mode == mode::exact && p.options.overflow == overflow::fail && p.counted.dropped_rows > 0) {
        throw capacity_error(
            fmt::format("plan: {} rows are over the capacity of the masked layout", p.counted.dropped_rows),
            "give a larger capacity (worst_case_rows() has the bound), or choose overflow::drop");
    }
}

}  // namespace epjit::host::cpu
