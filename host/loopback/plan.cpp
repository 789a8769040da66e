// SPDX-License-Identifier: Apache-2.0
#include "host/loopback/plan.hpp"

#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"

#include <fmt/format.h>

#include <atomic>
#include <thread>
#include <utility>

namespace epjit::host {
namespace {

std::uint32_t load_acquire(const std::uint32_t* value) noexcept {
    return __atomic_load_n(value, __ATOMIC_ACQUIRE);
}

void pause_briefly() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

workspace::workspace(communicator_state& comm, const memory_hooks& hooks, std::size_t bytes) : hooks_(hooks) {
    if (hooks.allocate == nullptr) {
        own_ = device_buffer(comm.context, bytes);
        comm.runtime->allocations.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    hooked_ = hooks.allocate(hooks.user, bytes);
    if (hooked_ == nullptr) {
        throw config_error(fmt::format("memory_hooks.allocate returned null for {} bytes", bytes),
                           "give the library more memory, or lower max_tokens_per_rank");
    }
    if (reinterpret_cast<std::uintptr_t>(hooked_) % 256 != 0) {
        void* const misaligned = std::exchange(hooked_, nullptr);
        hooks.release(hooks.user, misaligned);
        throw config_error(fmt::format("memory_hooks.allocate returned {}, which is not 256-byte aligned", misaligned),
                           "align device memory to 256 bytes");
    }
}

workspace::workspace(workspace&& other) noexcept
    : own_(std::move(other.own_)), hooks_(other.hooks_), hooked_(std::exchange(other.hooked_, nullptr)) {}

workspace& workspace::operator=(workspace&& other) noexcept {
    std::swap(own_, other.own_);
    std::swap(hooks_, other.hooks_);
    std::swap(hooked_, other.hooked_);
    return *this;
}

workspace::~workspace() {
    if (hooked_ != nullptr) {
        hooks_.release(hooks_.user, hooked_);
    }
}

plan_view loopback_plan::view(int driven) const {
    const std::int32_t rank = first_driven + driven;
    plan_view v;
    v.counts = memory.slot_counts + rank_first[rank];
    v.offsets = memory.slot_offsets + rank_first[rank] + rank;
    v.num_rows = memory.rank_rows + rank;
    v.num_slots = rank_first[rank + 1] - rank_first[rank];
    v.rows = known_rows[driven];
    v.host_counts = exact ? host_counts() + rank_first[rank] : nullptr;
    return v;
}

plan_report loopback_plan::report() const noexcept {
    plan_report r;
    const templates::plan_status* s = host_status();
    if (s == nullptr || load_acquire(&s->ready) != sequence) {
        return r;
    }
    r.complete = true;
    r.timed_out = s->timed_out != 0;
    r.status = {s->bad_ids, s->duplicate_ids, s->excess_ids, s->dropped_rows};
    return r;
}

plan_status loopback_plan::status() const {
    return report().status;
}

poll_outcome poll_ready(const std::uint32_t* ready, std::uint32_t sequence, std::chrono::milliseconds limit,
                        const std::function<bool()>& running) {
    using clock = std::chrono::steady_clock;
    constexpr auto ask_every = std::chrono::milliseconds(1);
    const clock::time_point start = clock::now();
    clock::time_point next_ask = start + ask_every;
    for (;;) {
        for (int spin = 0; spin < 64; ++spin) {
            if (load_acquire(ready) == sequence) {
                return poll_outcome::ready;
            }
            pause_briefly();
        }
        const clock::time_point now = clock::now();
        if (now < next_ask) {
            continue;
        }
        if (!running()) {
            // Everything the stream wrote is visible now.
            return load_acquire(ready) == sequence ? poll_outcome::ready : poll_outcome::work_ended;
        }
        if (now - start >= limit) {
            return poll_outcome::timed_out;
        }
        next_ask = now + ask_every;
        std::this_thread::yield();
    }
}

}  // namespace epjit::host
