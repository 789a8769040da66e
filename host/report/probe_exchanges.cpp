// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"
#include "epjit/runtime.hpp"
#include "host/dispatcher/dispatcher.hpp"
#include "host/report/exchange_probe.hpp"
#include "host/report/report.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace epjit::host {
namespace {

constexpr int loopback_ranks = 4;
constexpr std::size_t max_gpus = 8;

exchange_config small_layer() {
    exchange_config c;
    c.hidden = 256;
    c.num_experts = 16;
    c.topk = 4;
    c.max_tokens_per_rank = 8;
    return c;
}

readiness_record failed(const char* where, const char* why) {
    readiness_record record{where, {}, why};
    record.seen.failed_at = readiness_stage::prepare;
    return record;
}

/// Whatever goes wrong is in the record.
readiness_record try_on(communicator& comm, const char* where) {
    try {
        exchange ex(comm, small_layer());
        return run_probe(std::string(name(ex.kind())), *make_exchange_probe(ex));
    } catch (const std::exception& problem) {
        return failed(where, problem.what());
    }
}

readiness_record try_loopback(runtime& rt) {
    try {
        communicator comm = communicator::loopback(rt, loopback_ranks);
        return try_on(comm, "loopback");
    } catch (const std::exception& problem) {
        return failed("loopback", problem.what());
    }
}

/// The record of the rank that came least far.
readiness_record try_real_ranks(runtime& rt, std::size_t gpus) {
    constexpr const char* where = "real ranks";
    try {
        std::vector<int> devices;
        for (std::size_t i = 0; i < std::min(gpus, max_gpus); ++i) {
            devices.push_back(static_cast<int>(i));
        }
        std::vector<communicator> comms(devices.size());
        communicator::local(rt, devices, comms);
        std::vector<readiness_record> records(comms.size());
        {
            std::vector<std::jthread> threads;
            for (std::size_t rank = 0; rank < comms.size(); ++rank) {
                threads.emplace_back([&, rank] { records[rank] = try_on(comms[rank], where); });
            }
        }
        const auto worst = std::find_if(records.begin(), records.end(), [](const auto& r) { return !r.seen.ready(); });
        return worst != records.end() ? *worst : records.front();
    } catch (const std::exception& problem) {
        return failed(where, problem.what());
    }
}

}  // namespace

std::vector<readiness_record> probe_exchanges(runtime& rt, const machine_report& machine) {
    std::vector<readiness_record> records;
    if (machine.driver.gpus.empty()) {
        return records;
    }
    records.push_back(try_loopback(rt));
    const bool built = built_exchanges.has(exchange_kind::sendrecv) || built_exchanges.has(exchange_kind::lsa);
    if (built && machine.nccl.found && machine.driver.gpus.size() > 1) {
        records.push_back(try_real_ranks(rt, machine.driver.gpus.size()));
    }
    return records;
}

}  // namespace epjit::host
