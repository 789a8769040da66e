// SPDX-License-Identifier: Apache-2.0
#include "host/loopback/plan.hpp"

#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"

#include <fmt/format.h>

#include <atomic>
#include <thread>
#include <utility>

namespace epjit::host {
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
    if (s == nullptr || __atomic_load_n(&s->ready, __ATOMIC_ACQUIRE) != sequence) {
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

}  // namespace epjit::host
