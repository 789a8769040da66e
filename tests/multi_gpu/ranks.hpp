// SPDX-License-Identifier: Apache-2.0
// Runs a job on real ranks: a thread or a process for each.
#pragma once

#include "tests/multi_gpu/child.hpp"
#include "tests/multi_gpu/jobs.hpp"

#include <cstdint>
#include <string>

namespace epjit::tests {

struct rank_setup {
    int ranks = 2;
    bool processes = true;   ///< else threads of this one; then one GPU for each
    bool two_hosts = false;  ///< NCCL takes the halves for two hosts: their GPUs may be the same
    std::int64_t limit_ms = 300'000;
    bool one_gpu = false;  ///< threads that share the GPU, through the tests' own NCCL
};

/// The variables of a launcher for one rank. `port`: of the bootstrap, the same for all ranks.
environment_changes launcher_environment(const rank_setup& setup, int rank, int port);
/// Another one at each call.
int next_port();

/// What all ranks reported, added up; failures of ranks that ended otherwise are added.
job_report run_ranks(const rank_setup& setup, const std::string& job_name, const job_settings& settings);

/// The lines in which a child reports; "end" closes them.
void send_report(child_io& io, const job_report& report);
/// Reads until "end". False when the child ended first or the time was over.
bool receive_report(child_process& child, deadline until, job_report& report);

/// Job settings as variables, and back.
environment_changes settings_environment(const std::string& job_name, const job_settings& settings);
job_settings settings_from_environment(std::string& job_name);

}  // namespace epjit::tests
