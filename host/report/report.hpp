// SPDX-License-Identifier: Apache-2.0
// What this machine has, for `doctor`. Nothing here throws because something is missing: it is said in the
// report.
#pragma once

#include "host/report/readiness.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace epjit {
class runtime;
}

namespace epjit::host {

struct runtime_state;

struct gpu_info {
    int index = 0;
    std::string name;
    int compute_major = 0, compute_minor = 0;
    std::uint64_t memory_bytes = 0;
    int num_sms = 0;
};

struct driver_report {
    bool found = false;
    std::string path;
    int version = 0;      ///< 13000 for CUDA 13.0
    std::string problem;  ///< why not; places tried
    std::string remedy;
    std::vector<gpu_info> gpus;
};

struct nvrtc_report {
    bool found = false;
    std::string description;  ///< "NVRTC 13.0.88"
    std::vector<std::string> targets;
    std::string problem;
    std::string remedy;
};

struct nccl_report {
    bool found = false;
    std::string path;
    int version = 0;                 ///< 22809 for 2.28.9, of the library that was loaded
    std::vector<std::string> tried;  ///< "place: outcome", in order, when found
    std::string no_windows;          ///< why lsa and hybrid cannot be used with it; empty: they can
    std::string problem;             ///< why not found; places tried
    std::string remedy;
};

struct readiness_report {
    bool ready = false;  ///< only when capture, instantiation, replay and a verified result were all seen
    std::vector<blocker> blockers;
};

struct machine_report {
    driver_report driver;
    nvrtc_report nvrtc;
    nccl_report nccl;
    std::vector<readiness_record> exchanges;  ///< what was seen of each; empty: nothing was tried
    readiness_report readiness;
};

/// Loads what is found, runs nothing: `exchanges` is empty. `state`'s options name the libraries.
machine_report probe_machine(runtime_state& state);

/// Opens the first usable NCCL, see nccl_places().
nccl_report probe_nccl(const std::string& library);
/// Captures and replays a small layer on loopback, and with two GPUs or more on the exchange that their ranks would
/// take, each rank a thread. A machine without a GPU: nothing. Failures are in the records.
std::vector<readiness_record> probe_exchanges(runtime& rt, const machine_report& machine);
/// From `machine`'s libraries and `exchanges`: ready only when all four pieces of evidence were seen of loopback, and
/// of real ranks where there are GPUs for them; each missing piece is a blocker.
readiness_report assess_readiness(const machine_report& machine);

}  // namespace epjit::host
