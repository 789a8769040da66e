// SPDX-License-Identifier: Apache-2.0
// What the ranks of a suite do. A job is run by every rank, each in a thread or a process of its own; what differs
// between ranks comes from the seed, which they share.
#pragma once

#include "tests/multi_gpu/world.hpp"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace epjit::tests {

/// Equal on every rank.
struct job_settings {
    exchange_kind exchange = exchange_kind::automatic;
    std::uint64_t seed = 1;
    std::int64_t cases = 300;        ///< layers, about
    std::int64_t only = -1;          ///< this step alone
    std::int64_t iterations = 1000;  ///< of the stress and graph jobs
    std::string without;             ///< comma-separated: what is not drawn (see property_job.cpp)
};

struct job_report {
    std::vector<std::string> failures;
    std::map<std::string, std::uint64_t> counts;    ///< what was covered, for messages and for checks of the suite
    std::map<std::string, std::uint64_t> launches;  ///< by kernel
    /// Keeps the first few.
    void fail(std::string text);
    void add(const job_report& other);
};

using job = void (*)(rank_world& world, const job_settings& settings, job_report& report);

/// Random layers on random exchanges against the reference.
void property_job(rank_world& world, const job_settings& settings, job_report& report);
/// `iterations` layers of mixed shapes; device memory is the same before and after.
void stress_job(rank_world& world, const job_settings& settings, job_report& report);
/// `iterations` (100 at most) exchanges made and destroyed; device memory is the same before and after.
void create_destroy_job(rank_world& world, const job_settings& settings, job_report& report);
/// `iterations` replays of captured layers with changing ids and data, between eager calls.
void graph_job(rank_world& world, const job_settings& settings, job_report& report);
/// Low-latency layers whose packets lie where others of 1 to `iterations` (132 at most) layers ago have lain.
void packet_tags_job(rank_world& world, const job_settings& settings, job_report& report);
/// Rows over the capacity fail on every rank where that was asked for.
void overflow_job(rank_world& world, const job_settings& settings, job_report& report);

/// Plans from counts and from gathered ids are the same, table by table.
void plan_sources_job(rank_world& world, const job_settings& settings, job_report& report);

/// Once warm, static mode allocates, compiles, uploads and waits for nothing; exact mode waits once a plan.
void hot_path_job(rank_world& world, const job_settings& settings, job_report& report);

/// `iterations` tokens on each rank, so that rows lie and travel beyond 4 GiB.
void long_prompts_job(rank_world& world, const job_settings& settings, job_report& report);

/// By the name that a child process is given; null when unknown.
job find_job(const std::string& name);

/// Runs a job and turns exceptions into failures; adds the launches of the world's runtime.
job_report run_job(job work, rank_world& world, const job_settings& settings);

}  // namespace epjit::tests
