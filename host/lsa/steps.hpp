// SPDX-License-Identifier: Apache-2.0
// Steps that ranks which reach each other's windows count together: words at the start of a window, one small kernel,
// and the record of a wait that ended badly.
#pragma once

#include "host/exchange/device_memory.hpp"
#include "host/exchange/launch.hpp"
#include "host/nccl/communicator.hpp"
#include "host/ranks/transport.hpp"

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace epjit::host {

/// Of the ranks [first, first + count), this one among them, whose rank 0 in the window is rank `first_in_window`: each
/// reaches the others' memory. Collective over the communicator: every rank comes to the same end.
/// @throws unsupported_error naming a rank that does not, and what it misses where it is this one.
void require_reachable(communicator_state& comm, const symmetric_window& window, std::int32_t first, std::int32_t count,
                       std::int32_t first_in_window, std::string_view exchange, const char* remedy);

class peer_steps {
   public:
    /// Of the ranks [first, first + count) of the communicator, this one among them; the window's rank 0 is rank
    /// `first_in_window`. `window` starts with words_bytes(). @throws what runtime_state::load throws, cuda_error.
    peer_steps(communicator_state& comm, const symmetric_window& window, std::int32_t first, std::int32_t count,
               const travel_shape& shape, std::int32_t first_in_window = 0);

    [[nodiscard]] static std::int64_t words_bytes(std::int32_t count, std::int32_t lanes) noexcept {
        return words_offset(count, lanes);
    }
    /// Ranks in it are numbered from `first`.
    [[nodiscard]] templates::rank_link link(std::int32_t lane) const noexcept;

    /// Before the first write to the area: its last contents have been read everywhere.
    void begin(std::int32_t lane, travel_area area, stream_t stream) {
        step(lane, templates::lane_op::barrier, {.wait_area = static_cast<templates::i32>(group_of(area))}, stream);
    }
    /// After the last read of the area.
    void done(std::int32_t lane, templates::lane_op op, travel_area area, stream_t stream) {
        step(lane, op, {.signal = 1, .read_area = static_cast<templates::i32>(group_of(area))}, stream);
    }
    /// What was written before, on the stream, is there for a peer that sees the step.
    void signal(std::int32_t lane, templates::lane_op op, stream_t stream) { step(lane, op, {.signal = 1}, stream); }
    void wait(std::int32_t lane, templates::lane_op op, stream_t stream) { step(lane, op, {.wait = 1}, stream); }

    /// @throws config_error (ranks called different things) or timeout_error once a kernel has met a failure.
    void check(std::string_view exchange) const;
    /// Before the window goes: this rank's work is done and, unless the exchange has failed, all ranks have come here,
    /// so that no peer writes the window any more. What goes wrong is logged as "closing `what`".
    void close(std::string_view what) const noexcept;

   private:
    [[nodiscard]] bool failed() const noexcept;
    static templates::lane_area group_of(travel_area area) noexcept;
    static std::int64_t words_offset(std::int32_t count, std::int32_t lane) noexcept {
        return templates::window_words_offset + lane * ((count * 8 + 255) / 256 * 256);
    }
    void upload(const symmetric_window& window, std::int32_t first_in_window);
    struct step_parts {
        templates::i32 wait_area = -1, signal = 0, read_area = -1, wait = 0;
    };
    void step(std::int32_t lane, templates::lane_op op, const step_parts& parts, stream_t stream);

    communicator_state& comm_;
    std::byte* base_;
    const std::int32_t first_, count_;
    device_buffer control_, peers_;
    pinned_buffer record_;
    std::vector<std::shared_ptr<const loaded_variant>> variant_;
    launchable sync_;
};

}  // namespace epjit::host
