// SPDX-License-Identifier: Apache-2.0
// The engine of `epjit run`: one MoE layer's dispatch and combine through the public API, timed, checked,
// dumped.
#pragma once

#include "epjit/epjit.hpp"
#include "epjit/jit/model.hpp"

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace epjit::tools {

/// What the command line says; everything empty or zero means the default of the command.
struct run_options {
    jit::model_shape model;                             ///< hidden, num_experts, topk, token_type, fp8_scales
    exchange_kind exchange = exchange_kind::automatic;  ///< automatic: EPJIT_EXCHANGE, else GPU or host
    std::int32_t ranks = 0;                             ///< 0: GPUs of this machine, or 8
    std::optional<std::int32_t> tokens;                 ///< T of every rank; empty: 256, or what the file holds
    std::string routing = "uniform";                    ///< uniform, zipf, grouped, one-rank, or FILE.npy
    epjit::layout layout = layout::expert_major;
    std::optional<dtype> type;  ///< empty: the model's; fp8_e4m3: quantised dispatch
    epjit::reduction reduction = reduction::per_rank;
    epjit::mode mode = mode::exact;
    plan_source source = plan_source::automatic;  ///< of real ranks
    std::int64_t staging_bytes = 0;               ///< of lsa, see exchange_config
    std::uint64_t seed = 1;
    std::int32_t iters = 1;
    bool graph = false;                         ///< capture plan, dispatch and combine, replay them; static mode
    bool window = false;                        ///< dispatch into outputs that the exchange lends
    bool low_latency = false;                   ///< ll_max_tokens_per_rank is the most tokens of a rank
    bool check = false;                         ///< compare with the reference
    std::string dump_dir;                       ///< empty: no dump; created when missing
    const std::atomic<bool>* cancel = nullptr;  ///< set by Ctrl-C; polled between steps
};

/// Fields up to `host_waits` are the JSON object of the command.
struct run_result {
    bool ok = true;                                ///< nothing was found wrong
    exchange_kind exchange = exchange_kind::host;  ///< the one that ran
    std::uint64_t checked_rows = 0;                ///< dispatched rows and combined tokens compared; 0 without `check`
    std::uint64_t mismatched_rows = 0;
    double max_error = 0;  ///< largest absolute difference from the reference; finite
    /// Median over iterations, of the slowest rank; with a graph, of the last replay. host: wall, else events.
    double dispatch_us = 0;
    double combine_us = 0;
    std::vector<std::pair<std::string, std::uint64_t>> launches;  ///< by kernel name, in this run, all ranks
    std::uint64_t allocations = 0;
    std::uint64_t host_waits = 0;

    // For the table only.
    double plan_us = 0;
    std::int32_t ranks = 0;
    std::vector<std::int32_t> tokens;  ///< [R]
    std::uint64_t rows = 0;            ///< rows of data dispatched, all ranks
    epjit::plan_status status;         ///< bad and duplicate ids, dropped rows
    std::string first_mismatch;        ///< in words; empty when nothing differs
    std::string note;                  ///< why this exchange ("no GPU: ..."), empty when asked for by name
};

/// The names that `routing` accepts besides a file, for messages and completion.
inline constexpr const char* routing_names[] = {"uniform", "zipf", "grouped", "one-rank"};

/// Under a launcher every process calls it and gets the result of all ranks, or an error of the same kind. @throws
/// config_error (bad shape, bad file), unsupported_error (an exchange that this machine cannot carry), library_error
/// (no driver, no NCCL), timeout_error, nccl_error, error of kind cancelled.
run_result run_layer(runtime& rt, const run_options& options);

}  // namespace epjit::tools
