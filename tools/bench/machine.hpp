// SPDX-License-Identifier: Apache-2.0
// The GPUs of this machine as ranks of one process, and how a call of all of them is timed.
//
// Time is that of CUDA events around the calls on each rank's stream. Before each repetition every stream runs a long
// copy, records a gate behind it, and waits for all other ranks' gates before its start event: the ranks begin
// together, however their threads were scheduled, the host has enqueued the calls before they begin, and caches hold
// nothing of the last repetition.
#pragma once

#include "epjit/epjit.hpp"
#include "host/driver/device.hpp"
#include "tools/bench/floor.hpp"
#include "tools/bench/probe.hpp"
#include "tools/bench/team.hpp"

#include <functional>
#include <memory>
#include <vector>

namespace epjit::tools {

/// All of a machine that bench_machine is asked for: its first GPU.
struct one_gpu {};

struct repeats {
    int warmup = 50, timed = 200;
};

/// Bytes of the copies that rates come from, and of the gates'.
inline constexpr std::size_t bench_copy_bytes = std::size_t{512} << 20;

/// One rank: used by its own thread.
struct bench_rank {
    explicit bench_rank(communicator c);
    communicator comm;
    host::shared_context context;
    host::gpu_stream stream;
    host::device_buffer from, to;
    host::device_buffer flags;  ///< a flag for the next rank, and at result_offset what it measured
    std::vector<host::gpu_event> gates, starts, ends;
    probe_kernels probes;
};

class bench_machine {
   public:
    /// `ranks` of this machine's GPUs, 0: all. @throws unsupported_error with fewer than two GPUs, library_error
    /// without a driver or NCCL, config_error for more ranks than GPUs.
    bench_machine(runtime& rt, int ranks);
    /// One rank over loopback. @throws library_error without a driver.
    bench_machine(runtime& rt, one_gpu);

    [[nodiscard]] int num_ranks() const noexcept { return team_.size(); }
    [[nodiscard]] rank_team& team() noexcept { return team_; }
    [[nodiscard]] bench_rank& rank(int r) noexcept { return *ranks_[static_cast<std::size_t>(r)]; }
    [[nodiscard]] runtime& rt() noexcept { return *runtime_; }

    /// On the thread of rank `r`, while every other rank does the same: microseconds of `work` in each timed
    /// repetition.
    std::vector<double> time(int r, const repeats& n, const std::function<void()>& work);
    /// The same for all ranks, from none of their threads.
    std::vector<std::vector<double>> time_all(const repeats& n, const std::function<void(bench_rank&, int)>& work);

    /// What the links, the memory, a launch and a flag do, now; of two ranks or more. @throws unsupported_error where a
    /// GPU cannot reach the next one.
    machine_rates measure(const repeats& n);

   private:
    void enable_peers();
    double measure_flag();
    runtime* runtime_;
    rank_team team_;
    std::vector<std::unique_ptr<bench_rank>> ranks_;
};

}  // namespace epjit::tools
