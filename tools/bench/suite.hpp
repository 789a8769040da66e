// SPDX-License-Identifier: Apache-2.0
// A suite of `epjit bench` adds its rows to a report. To add one: a function here, and its line in suites.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace epjit::tools {

struct context;

/// Empty fields are null in JSON and blank in the table.
struct bench_row {
    std::string name;
    std::optional<double> us;         ///< median over repeats, slowest rank
    std::optional<double> kernel_us;  ///< time of the kernels alone
    std::optional<double>
        floor_us;  ///< what the machine allows, from rates measured in the same run; suite jit: the goal
    std::optional<std::uint64_t> bytes;
    std::optional<int> sms;
    std::string exchange;
    std::string shape;
    std::optional<std::uint64_t> launches;
    /// us / floor_us, where both are there.
    [[nodiscard]] std::optional<double> ratio() const {
        return us && floor_us && *floor_us > 0 ? std::optional(*us / *floor_us) : std::nullopt;
    }
};

struct bench_report {
    std::vector<bench_row> rows;
    std::map<std::string, double> rates;  ///< measured in the same run: "copy_gb_per_s", ...
    std::vector<std::string> notes;       ///< for people: what was skipped and why
};

/// @throws the library's errors; unsupported_error where the machine or this version lacks what is measured.
using bench_function = void (*)(const context& ctx, bench_report& report);

struct bench_suite {
    const char* name;
    bench_function run;
};
std::span<const bench_suite> bench_suites() noexcept;

/// Cold compiles of a model in processes of their own, and the cache's hits.
void jit_suite(const context& ctx, bench_report& report);

/// Permute, unpermute and plan on one GPU.
void route_suite(const context& ctx, bench_report& report);

/// Dispatch and combine between this machine's GPUs.
void exchange_suite(const context& ctx, bench_report& report);
/// Steps of few tokens in a graph.
void decode_suite(const context& ctx, bench_report& report);

/// The report as one page that needs nothing else.
std::string html_page(const bench_report& report, const std::string& title);

}  // namespace epjit::tools
