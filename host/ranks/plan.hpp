// SPDX-License-Identifier: Apache-2.0
// One real rank's plan: where its own tokens go, and the lines that it will get.
#pragma once

#include "host/dispatcher/dispatcher.hpp"
#include "host/exchange/backend.hpp"
#include "host/exchange/device_memory.hpp"
#include "host/exchange/layouts.hpp"

#include <cstdint>

namespace epjit::host {

/// Whether a plan is made of the routing of all ranks. What decides is equal on every rank: the options, the config and
/// the exchange. `bound`: tokens that a rank may bring.
constexpr bool is_gathered(plan_source source, bool peers_written, exchange_path path,
                           const templates::plan_config& shape, std::int32_t bound) noexcept {
    if (source != plan_source::automatic) {
        return source == plan_source::gathered;
    }
    return peers_written && path == exchange_path::low_latency && templates::gathered_at_once(shape, bound);
}

class rank_plan final : public plan_state {
   public:
    /// Memory for `max_tokens` tokens of this rank, at most `blocks` blocks of the kernel. What must be zero is cleared
    /// on `stream`. @throws cuda_error, config_error (the hook gave nothing).
    /// `relays`: room for as many other ranks' entries and positions.
    rank_plan(communicator_state& comm, const resolved_config& config, std::int32_t max_tokens, std::int64_t blocks,
              std::int32_t relays, stream_t stream);

    [[nodiscard]] plan_view view(int driven) const override;
    [[nodiscard]] plan_status status() const override;
    /// The launch has reported: host_status() is of the current routing.
    [[nodiscard]] bool complete() const noexcept;

    [[nodiscard]] const templates::plan_status* host_status() const noexcept {
        return pinned_.as<const templates::plan_status>();
    }
    /// [S] rows of the slots, [R] rows of the ranks, [R] lines sent, [R] lines received, [R] tokens; exact mode.
    [[nodiscard]] const std::int32_t* host_counts() const noexcept {
        return reinterpret_cast<const std::int32_t*>(pinned_.as<const std::byte>() + counts_offset);
    }
    [[nodiscard]] const std::int32_t* lines_sent() const noexcept { return host_counts() + num_slots_ + num_ranks_; }
    [[nodiscard]] const std::int32_t* lines_received() const noexcept { return lines_sent() + num_ranks_; }
    [[nodiscard]] const std::int32_t* tokens() const noexcept { return lines_received() + num_ranks_; }

    /// What the plan kernel and those that use the plan are given.
    void fill(templates::plan_head& head) const noexcept;

    templates::early_plan early{};  ///< memory for what the plan's kernel tells a dispatch of few tokens
    /// The same where it tells that, else nothing.
    [[nodiscard]] templates::early_plan told_early() const noexcept {
        return tells == told::places ? early : templates::early_plan{};
    }
    templates::kept_area kept{};  ///< memory for weights of lines that came as packets
    templates::plan_entry* entries = nullptr;
    std::uint16_t* entry_slots = nullptr;
    std::int32_t* positions = nullptr;
    std::uint8_t* lines = nullptr;
    std::int32_t* line_first = nullptr;
    std::int32_t* slot_counts = nullptr;
    std::int32_t* slot_offsets = nullptr;
    std::int32_t* rank_rows = nullptr;
    templates::plan_entry* relay_entries = nullptr;  ///< [relays, max_tokens, K]
    std::int32_t* relay_positions = nullptr;         ///< [relays, max_tokens, K]

    std::int32_t max_tokens = 0;
    // Of the current routing.
    std::int32_t num_tokens = 0;
    std::int32_t capacity = 0;     ///< rows of the output that may be touched (masked: per slot)
    std::int64_t known_rows = -1;  ///< exact mode
    std::uint32_t sequence = 0;
    bool exact = false;
    bool keeps_weights = false;  ///< the last dispatch has left its own in `kept`, on every rank or none
    bool direct = false;         ///< rows go straight to their places in outputs that are lent
    /// What the plan's kernel tells a dispatch long before it ends: of few tokens all that it does, piece by piece; of
    /// many where they go.
    enum class told : std::uint8_t { nothing, places, positions };
    told tells = told::nothing;

   private:
    static constexpr std::size_t counts_offset = 256;
    workspace device_;
    pinned_buffer pinned_;
    std::uint32_t* block_counts_ = nullptr;
    std::uint32_t* barrier_ = nullptr;
    templates::plan_status* device_status_ = nullptr;
    std::int32_t num_slots_ = 0, num_ranks_ = 0, me_ = 0, first_slot_ = 0, own_slots_ = 0;
};

}  // namespace epjit::host
