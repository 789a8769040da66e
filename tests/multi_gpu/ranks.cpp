// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/ranks.hpp"

#include "tests/gpu/environment.hpp"
#include "tools/run/ranks.hpp"

#include <fmt/format.h>

#include <atomic>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <mutex>
#include <stdexcept>
#include <unistd.h>

namespace epjit::tests {
namespace {

/// Of each rank's calls where ranks share a GPU: one kernel of each rank must find room beside the next one that is
/// launched early, and the peers' two.
constexpr std::int32_t shared_sms = 24;

std::string variable(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

/// A rank of a launcher: what the child function "job" is.
int job_child(child_io& io) {
    std::string name;
    const job_settings settings = settings_from_environment(name);
    const job work = find_job(name);
    if (work == nullptr) {
        throw std::runtime_error(fmt::format("no job '{}'", name));
    }
    runtime rt;
    job_report report;
    {
        const std::unique_ptr<rank_world> world = make_real_world(rt, communicator::from_launcher(rt));
        report = run_job(work, *world, settings);
    }
    send_report(io, report);
    return report.failures.empty() ? 0 : 1;
}
const register_child registered("job", job_child);

job_report run_processes(const rank_setup& setup, const std::string& job_name, const job_settings& settings) {
    const int port = next_port();
    const deadline until = in_ms(setup.limit_ms);
    std::deque<child_process> children;
    for (int rank = 0; rank < setup.ranks; ++rank) {
        environment_changes environment = launcher_environment(setup, rank, port);
        for (auto& change : settings_environment(job_name, settings)) {
            environment.push_back(std::move(change));
        }
        children.emplace_back("job", environment);
    }
    job_report all;
    for (int rank = 0; rank < setup.ranks; ++rank) {
        child_process& child = children[static_cast<std::size_t>(rank)];
        job_report one;
        const bool complete = receive_report(child, until, one);
        all.add(one);
        const child_process::ending ending = child.wait(complete ? in_ms(60'000) : until);
        if (!ending.in_time) {
            all.fail(fmt::format("rank {} of {} did not end in time", rank, job_name));
        } else if (!complete || (ending.status != 0 && one.failures.empty())) {
            all.fail(fmt::format("rank {} of {} ended with status {}", rank, job_name, ending.status));
        }
    }
    return all;
}

job_report run_threads(const rank_setup& setup, const std::string& job_name, const job_settings& settings) {
    const job work = find_job(job_name);
    runtime_options options;
    options.wait_timeout_ms = number_from("EPJIT_WAIT_TIMEOUT_MS", 20'000);
    options.first_wait_timeout_ms = number_from("EPJIT_FIRST_WAIT_TIMEOUT_MS", 60'000);
    const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    const std::string nccl = (here / "libnccl_stub_one_gpu.so").string();
    const std::string cuda = (here / "libone_gpu_cuda.so").string();
    if (setup.one_gpu) {
        options.nccl_library = nccl.c_str();
        options.cuda_library = cuda.c_str();
    }
    runtime rt(options);
    job_report all;
    std::mutex mutex;
    tools::for_thread_ranks(rt, setup.ranks, [&](communicator comm) {
        const std::unique_ptr<rank_world> world = make_real_world(rt, std::move(comm), setup.one_gpu ? shared_sms : 0);
        job_report one = run_job(work, *world, settings);
        const std::lock_guard lock(mutex);
        one.launches.clear();  // the runtime is shared: its counters are those of all threads
        all.add(one);
    });
    all.launches = launches_by_kernel(rt);
    return all;
}

}  // namespace

environment_changes launcher_environment(const rank_setup& setup, int rank, int port) {
    const int half = setup.ranks / 2;
    const int local = setup.two_hosts ? rank % half : rank;
    environment_changes e{{"RANK", std::to_string(rank)},
                          {"WORLD_SIZE", std::to_string(setup.ranks)},
                          {"LOCAL_RANK", std::to_string(local)},
                          {"MASTER_ADDR", "127.0.0.1"},
                          {"MASTER_PORT", std::to_string(port)}};
    // A suite that fails shall not take the minutes that a job may wait for its first step.
    const auto unless_set = [&e](const char* name, const char* value) {
        if (std::getenv(name) == nullptr) {
            e.emplace_back(name, value);
        }
    };
    unless_set("EPJIT_WAIT_TIMEOUT_MS", "20000");
    unless_set("EPJIT_FIRST_WAIT_TIMEOUT_MS", "60000");
    if (setup.two_hosts) {
        e.emplace_back("NCCL_HOSTID", rank < half ? "epjit-host-a" : "epjit-host-b");
        e.emplace_back("LOCAL_WORLD_SIZE", std::to_string(half));
    } else {
        e.emplace_back("LOCAL_WORLD_SIZE", std::to_string(setup.ranks));
    }
    return e;
}

int next_port() {
    static std::atomic<int> next{0};
    // Below the ports that systems give out by themselves, apart from other runs of this program.
    return 10'000 + (::getpid() * 61 + next++ * 7) % 15'000;
}

job_report run_ranks(const rank_setup& setup, const std::string& job_name, const job_settings& settings) {
    try {
        return setup.processes ? run_processes(setup, job_name, settings) : run_threads(setup, job_name, settings);
    } catch (const std::exception& e) {
        job_report report;
        report.fail(e.what());
        return report;
    }
}

void send_report(child_io& io, const job_report& report) {
    for (const std::string& text : report.failures) {
        io.send("fail\t" + escape(text));
    }
    for (const auto& [name, n] : report.counts) {
        io.send(fmt::format("count\t{}\t{}", escape(name), n));
    }
    for (const auto& [kernel, n] : report.launches) {
        io.send(fmt::format("launch\t{}\t{}", escape(kernel), n));
    }
    io.send("end");
}

bool receive_report(child_process& child, deadline until, job_report& report) {
    while (const auto line = child.receive(until)) {
        const std::vector<std::string> fields = split_fields(*line);
        if (fields[0] == "end") {
            return true;
        }
        if (fields[0] == "count" && fields.size() == 3) {
            report.counts[fields[1]] += std::stoull(fields[2]);
        } else if (fields[0] == "launch" && fields.size() == 3) {
            report.launches[fields[1]] += std::stoull(fields[2]);
        } else if ((fields[0] == "fail" || fields[0] == "error") && fields.size() == 2) {
            report.failures.push_back(fields[1]);
        } else {
            report.failures.push_back("an odd line from a child: " + *line);
        }
    }
    return false;
}

environment_changes settings_environment(const std::string& job_name, const job_settings& s) {
    return {{"EPJIT_JOB", job_name},
            {"EPJIT_JOB_EXCHANGE", std::string(name(s.exchange))},
            {"EPJIT_JOB_SEED", std::to_string(s.seed)},
            {"EPJIT_JOB_CASES", std::to_string(s.cases)},
            {"EPJIT_JOB_ONLY", std::to_string(s.only)},
            {"EPJIT_JOB_ITERATIONS", std::to_string(s.iterations)},
            {"EPJIT_JOB_WITHOUT", s.without}};
}

job_settings settings_from_environment(std::string& job_name) {
    job_name = variable("EPJIT_JOB");
    job_settings s;
    const auto kind = parse<exchange_kind>(variable("EPJIT_JOB_EXCHANGE"));
    if (!kind) {
        throw std::runtime_error(fmt::format("EPJIT_JOB_EXCHANGE is '{}'", variable("EPJIT_JOB_EXCHANGE")));
    }
    s.exchange = *kind;
    s.seed = std::strtoull(variable("EPJIT_JOB_SEED").c_str(), nullptr, 10);
    s.cases = number_from("EPJIT_JOB_CASES", s.cases);
    s.only = number_from("EPJIT_JOB_ONLY", s.only);
    s.iterations = number_from("EPJIT_JOB_ITERATIONS", s.iterations);
    s.without = variable("EPJIT_JOB_WITHOUT");
    return s;
}

}  // namespace epjit::tests
