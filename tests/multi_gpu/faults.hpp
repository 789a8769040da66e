// SPDX-License-Identifier: Apache-2.0
// What the fault suites share: two scripted ranks with short limits, for each exchange between two ranks.
#pragma once

#include "epjit/types.hpp"
#include "host/dispatcher/dispatcher.hpp"
#include "host/runtime/runtime_state.hpp"
#include "tests/gpu/environment.hpp"
#include "tests/multi_gpu/scripted_ranks.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <ostream>
#include <string>
#include <utility>

namespace epjit::tests {

inline constexpr std::int64_t fault_limit_ms = 2000;
inline constexpr std::int64_t first_fault_limit_ms = 4000;
/// What a survivor needs beyond the limit: NCCL's own abort, the watchdog's tick, the wait for the calls of others.
inline constexpr std::int64_t fault_grace_ms = 8000;

/// Of an exchange and of a layer that dispatches straight into the peers' windows: the rows are few and short, so that
/// the cost model sends them straight on every layout.
inline constexpr const char* window_exchange = "window_rows=2048";
inline constexpr const char* window_layer = "window=1";

/// An exchange, and a way to use it: what its exchanges and layers have beside what a scenario gives them.
struct fault_case {
    fault_case(exchange_kind k) : kind(k), label(name(k)) {}  // NOLINT(google-explicit-constructor): most have no more
    fault_case(exchange_kind k, std::string of, std::string exchange_options, std::string layer_options)
        : kind(k), label(std::move(of)), exchange(std::move(exchange_options)), layer(std::move(layer_options)) {}

    exchange_kind kind;
    std::string label;
    std::string exchange;
    std::string layer;

    friend void PrintTo(const fault_case& one, std::ostream* out) { *out << one.label; }
};
inline std::string label_of(const ::testing::TestParamInfo<fault_case>& one) {
    return one.param.label;
}

class faults : public ::testing::TestWithParam<fault_case> {
   protected:
    void SetUp() override {
        if (!no_gpu_reason().empty()) {
            GTEST_SKIP() << no_gpu_reason();
        }
        if (gpu_runtime().state().driver()->num_devices < 2) {
            GTEST_SKIP() << "needs two GPUs";
        }
        if (!host::built_exchanges.has(GetParam().kind)) {
            GTEST_SKIP() << "exchange " << name(GetParam().kind) << " is not in this version";
        }
        if (const char* wanted = std::getenv("EPJIT_EXCHANGES"); wanted != nullptr && *wanted != '\0') {
            if (fmt::format(",{},", wanted).find(fmt::format(",{},", name(GetParam().kind))) == std::string::npos) {
                GTEST_SKIP() << "EPJIT_EXCHANGES=" << wanted;
            }
        }
    }

    [[nodiscard]] static scripted_ranks two_ranks() {
        return {rank_setup{2, true, false, 0},
                {{"EPJIT_WAIT_TIMEOUT_MS", std::to_string(fault_limit_ms)},
                 {"EPJIT_FIRST_WAIT_TIMEOUT_MS", std::to_string(first_fault_limit_ms)}}};
    }
    [[nodiscard]] static bool stores() { return GetParam().kind == exchange_kind::lsa; }
    [[nodiscard]] static std::string exchange_line(const std::string& id, const std::string& more = {}) {
        return fmt::format("exchange {} kind={} {} {}", id, name(GetParam().kind), GetParam().exchange, more);
    }
    [[nodiscard]] static std::string layer_line(const std::string& id, const std::string& more = {}) {
        return fmt::format("layer {} {} {}", id, GetParam().layer, more);
    }
    /// Connected, with exchange 0 and layer 0 on it, which has run once: the short limit holds from here on.
    static void begin(scripted_ranks& ranks, const std::string& exchange_options = {},
                      const std::string& layer_options = {}) {
        ranks.all("connect", 120'000);
        ranks.all(exchange_line("0", exchange_options), 120'000);
        ranks.all(layer_line("0", layer_options));
        ranks.all("whole 0");
        ranks.all("check 0");
    }
    /// A survivor's error: of the right kind, within its limit, naming what was waited for.
    static void expect_timed_out(const answer& a, int rank, int peer, const std::string& phase) {
        EXPECT_FALSE(a.ok) << "nothing failed";
        EXPECT_THAT(a.kind, ::testing::AnyOf("timeout", "nccl")) << a.text;
        EXPECT_LT(a.ms, first_fault_limit_ms + fault_grace_ms) << a.text;
        EXPECT_THAT(a.text, ::testing::HasSubstr(fmt::format("rank {}", rank)));
        if (stores()) {  // NCCL does not say which of its peers did not come
            EXPECT_EQ(a.kind, "timeout");
            EXPECT_THAT(a.text, ::testing::HasSubstr(fmt::format("rank {}", peer)));
            EXPECT_THAT(a.text, ::testing::HasSubstr(phase));
        }
    }
    /// A rank that was stopped too long wakes and answers what it was told: it fails within `patience_ms`.
    static answer wake_late(scripted_ranks& ranks, int rank, std::int64_t patience_ms) {
        ranks.child(rank).signal(SIGCONT);
        answer late = ranks.failure_after(ranks.hear(rank, patience_ms), rank,
                                          {"experts 0", "sync 0", "combine 0", "sync 0", "plan 0"}, patience_ms);
        EXPECT_FALSE(late.ok) << "the late rank noticed nothing";
        return late;
    }
    /// Fresh memory of rank 0 takes whatever its exchange gives back: nothing of rank 1's, which is stopped, lands in
    /// it when that wakes. Its failure.
    static answer expect_nothing_late(scripted_ranks& ranks, std::int64_t patience_ms) {
        EXPECT_TRUE(ranks.ask(0, "drop_exchange 0").ok);
        for (int i = 0; i < 8; ++i) {
            EXPECT_TRUE(ranks.ask(0, "pattern bytes=8388608").ok);
        }
        answer late = wake_late(ranks, 1, patience_ms);
        const answer intact = ranks.ask(0, "verify_pattern");
        EXPECT_TRUE(intact.ok) << intact.text;
        return late;
    }
    /// The process that met a failure is of use afterwards.
    static void expect_usable(scripted_ranks& ranks, int rank) {
        const answer a = ranks.ask(rank, "loopback", 120'000);
        EXPECT_TRUE(a.ok) << "rank " << rank << " after the failure: " << a.kind << ": " << a.text;
    }
};

}  // namespace epjit::tests
