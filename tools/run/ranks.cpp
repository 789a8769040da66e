// SPDX-License-Identifier: Apache-2.0
#include "tools/run/ranks.hpp"

#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/nccl/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>

namespace epjit::tools {
namespace {

static_assert(std::is_trivially_copyable_v<rank_outcome>);

template <std::size_t N>
void copy_text(char (&to)[N], std::string_view from) {
    const std::size_t length = std::min(from.size(), N - 1);
    std::memcpy(to, from.data(), length);
    to[length] = '\0';
}

void note_failure(rank_outcome& outcome, error_kind kind, std::string_view message, std::string_view remedy) {
    outcome.failed = 1;
    outcome.kind = static_cast<std::int32_t>(kind);
    copy_text(outcome.message, message);
    copy_text(outcome.remedy, remedy);
}

rank_outcome outcome_of(const run_result& result) {
    rank_outcome outcome;
    outcome.exchange = static_cast<std::int32_t>(result.exchange);
    outcome.checked_rows = result.checked_rows;
    outcome.mismatched_rows = result.mismatched_rows;
    outcome.rows = result.rows;
    outcome.allocations = result.allocations;
    outcome.host_waits = result.host_waits;
    outcome.bad_ids = result.status.bad_ids;
    outcome.duplicate_ids = result.status.duplicate_ids;
    outcome.excess_ids = result.status.excess_ids;
    outcome.dropped_rows = result.status.dropped_rows;
    outcome.max_error = result.max_error;
    outcome.plan_us = result.plan_us;
    outcome.dispatch_us = result.dispatch_us;
    outcome.combine_us = result.combine_us;
    copy_text(outcome.first_mismatch, result.first_mismatch);
    for (const auto& [kernel, count] : result.launches) {
        if (outcome.num_launches == static_cast<std::int32_t>(std::size(outcome.launches))) {
            break;
        }
        auto& entry = outcome.launches[outcome.num_launches++];
        copy_text(entry.kernel, kernel);
        entry.launches = count;
    }
    return outcome;
}

/// True for what a rank sees when another one fails.
bool follows_from_another(const rank_outcome& outcome) {
    const auto kind = static_cast<error_kind>(outcome.kind);
    return kind == error_kind::timeout || kind == error_kind::nccl;
}

void throw_first_failure(std::span<const rank_outcome> ranks) {
    const rank_outcome* first = nullptr;
    for (const rank_outcome& outcome : ranks) {
        if (outcome.failed != 0 &&
            (first == nullptr || (follows_from_another(*first) && !follows_from_another(outcome)))) {
            first = &outcome;
        }
    }
    if (first != nullptr) {
        throw error(static_cast<error_kind>(first->kind),
                    fmt::format("rank {}: {}", first - ranks.data(), first->message), first->remedy);
    }
}

}  // namespace

rank_outcome outcome_of(const std::function<run_result()>& work) {
    rank_outcome outcome;
    try {
        outcome = outcome_of(work());
    } catch (const error& e) {
        note_failure(outcome, e.kind(), e.message(), e.remedy());
    } catch (const std::bad_alloc&) {
        note_failure(outcome, error_kind::internal, "out of memory", "free memory, or give a smaller shape");
    } catch (const std::exception& e) {
        note_failure(outcome, error_kind::internal, e.what(), "");
    }
    return outcome;
}

run_result merge_outcomes(std::span<const rank_outcome> ranks) {
    throw_first_failure(ranks);
    run_result result;
    std::map<std::string, std::uint64_t> launches;
    for (const rank_outcome& o : ranks) {
        result.checked_rows += o.checked_rows;
        result.mismatched_rows += o.mismatched_rows;
        result.rows += o.rows;
        result.allocations += o.allocations;
        result.host_waits += o.host_waits;
        result.max_error = std::max(result.max_error, o.max_error);
        result.plan_us = std::max(result.plan_us, o.plan_us);
        result.dispatch_us = std::max(result.dispatch_us, o.dispatch_us);
        result.combine_us = std::max(result.combine_us, o.combine_us);
        if (result.first_mismatch.empty()) {
            result.first_mismatch = o.first_mismatch;
        }
        for (std::int32_t i = 0; i < o.num_launches; ++i) {
            launches[o.launches[i].kernel] += o.launches[i].launches;
        }
    }
    if (!ranks.empty()) {
        const rank_outcome& first = ranks.front();
        result.exchange = static_cast<exchange_kind>(first.exchange);
        result.status = {first.bad_ids, first.duplicate_ids, first.excess_ids, first.dropped_rows};
    }
    result.launches.assign(launches.begin(), launches.end());
    result.ok = result.mismatched_rows == 0;
    return result;
}

std::vector<rank_outcome> gather_outcomes(communicator& comm, const rank_outcome& mine) {
    std::vector<rank_outcome> all(static_cast<std::size_t>(comm.num_ranks()));
    comm.state().nccl->all_gather_host(&mine, all.data(), sizeof mine);
    return all;
}

void for_thread_ranks(runtime& rt, std::int32_t ranks, const std::function<void(communicator)>& work) {
    std::vector<int> devices(static_cast<std::size_t>(ranks));
    std::iota(devices.begin(), devices.end(), 0);
    std::vector<communicator> made(devices.size());
    communicator::local(rt, devices, made);
    std::vector<std::exception_ptr> failures(made.size());
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < made.size(); ++rank) {
        threads.emplace_back([&, rank] {
            try {
                work(std::move(made[rank]));
            } catch (...) {
                failures[rank] = std::current_exception();
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (const std::exception_ptr& failure : failures) {
        if (failure != nullptr) {
            std::rethrow_exception(failure);
        }
    }
}

std::vector<rank_outcome> run_threads(runtime& rt, std::int32_t ranks,
                                      const std::function<run_result(communicator&)>& work) {
    std::vector<rank_outcome> outcomes(static_cast<std::size_t>(ranks));
    for_thread_ranks(rt, ranks, [&](communicator comm) {
        outcomes[static_cast<std::size_t>(comm.first_driven())] = outcome_of([&] { return work(comm); });
    });
    return outcomes;
}

}  // namespace epjit::tools
