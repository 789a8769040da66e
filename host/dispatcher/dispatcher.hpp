// SPDX-License-Identifier: Apache-2.0
// Which exchange carries the rows, which path a call takes, and why not another. Everything here is a pure function of
// values that are equal on every rank; the routing and the local number of tokens are not among them.
#pragma once

#include "epjit/types.hpp"
#include "host/dispatcher/cost_model.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace epjit::host {

/// Exchanges that this version has.
struct exchange_set {
    std::uint8_t bits = 0;
    [[nodiscard]] constexpr bool has(exchange_kind kind) const noexcept {
        return (bits >> static_cast<unsigned>(kind) & 1U) != 0;
    }
    [[nodiscard]] constexpr exchange_set with(exchange_kind kind) const noexcept {
        return {static_cast<std::uint8_t>(bits | 1U << static_cast<unsigned>(kind))};
    }
};
inline constexpr exchange_set built_exchanges = exchange_set{}
                                                    .with(exchange_kind::host)
                                                    .with(exchange_kind::loopback)
                                                    .with(exchange_kind::lsa)
                                                    .with(exchange_kind::sendrecv)
                                                    .with(exchange_kind::dense)
                                                    .with(exchange_kind::hybrid);

/// What all ranks agreed on when the communicator was made: equal on every rank.
struct machine_facts {
    std::int32_t num_ranks = 1;  ///< R
    bool have_gpu = false;
    std::string no_gpu_reason;  ///< from the driver
    /// One GPU for each rank, reached through NCCL. False: one thread drives all ranks, on one GPU or the CPU.
    bool real_ranks = false;
    std::vector<std::int32_t> rank_hosts;  ///< [R] machine of each rank; empty: all on one
    /// Every rank can store into the windows of every other rank on its host: one was made and tried.
    bool have_windows = false;
    std::string no_windows_reason;
    /// Every rank can store into the windows of every other rank, also of other hosts (one NVLink domain).
    bool one_domain = false;
};

struct exchange_question {
    exchange_kind wanted = exchange_kind::automatic;  ///< by name: exchange_config::kind, else EPJIT_EXCHANGE
    /// What the communicator is: host, loopback, or automatic for one through NCCL or none yet.
    exchange_kind communicator = exchange_kind::automatic;
    machine_facts facts;
    /// The largest call: `ranks` and `hosts` are taken from the facts, `tokens` is max_tokens_per_rank. A row of 0
    /// bytes means that it is not known: then the cost model is not asked.
    workload largest;
    link_rates rates;
    exchange_set built = built_exchanges;
};

struct why_not {
    exchange_kind exchange;
    std::string reason;  ///< one line
};

struct exchange_choice {
    exchange_kind exchange = exchange_kind::host;
    std::string reason;  ///< why this one
    /// Not empty: a faster exchange would have been taken on these ranks but for this. The caller logs it once.
    std::string fallback;
    std::vector<why_not> others;  ///< each exchange not taken, in the order of the enum
};

/// By name what was named. Else: lsa where every rank reaches every other's windows; hybrid where ranks reach them
/// inside each of several hosts of equally many ranks; else sendrecv, or dense where rows are few and the cost
/// model finds it a twentieth cheaper. A thread that drives all ranks: loopback with a GPU, else host.
/// @throws unsupported_error when the exchange is not in this version or these ranks cannot carry it; config_error when
/// `wanted` contradicts the communicator.
exchange_choice choose_exchange(const exchange_question& question);

/// Of a plan and the calls on it.
enum class exchange_path : std::uint8_t { high_throughput, low_latency };

/// Calls bounded by `ll_max_tokens_per_rank` (0: none) take the low-latency path of an exchange that has one. The bound
/// of a call is `token_bound`, 0 meaning max_tokens_per_rank. No allocation: called for each plan.
constexpr exchange_path choose_path(std::int32_t ll_max_tokens_per_rank, std::int32_t max_tokens_per_rank,
                                    std::int32_t token_bound) noexcept {
    const std::int32_t bound = token_bound != 0 ? token_bound : max_tokens_per_rank;
    return ll_max_tokens_per_rank > 0 && bound <= ll_max_tokens_per_rank ? exchange_path::low_latency
                                                                         : exchange_path::high_throughput;
}
constexpr std::string_view name(exchange_path path) noexcept {
    return path == exchange_path::low_latency ? "low latency" : "high throughput";
}

}  // namespace epjit::host
