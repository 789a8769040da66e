// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/facts.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/hash.hpp"
#include "host/nccl/communicator.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <span>
#include <string>
#include <unistd.h>

namespace epjit::host {
namespace {

/// First rank whose value equals that of each rank.
template <class Value>
std::vector<std::int32_t> first_equal(const std::vector<Value>& values) {
    std::vector<std::int32_t> first;
    for (const Value& v : values) {
        first.push_back(static_cast<std::int32_t>(std::find(values.begin(), values.end(), v) - values.begin()));
    }
    return first;
}

/// Hosts numbered in the order of their first ranks.
std::vector<std::int32_t> number_hosts(const std::vector<std::int32_t>& first) {
    std::vector<std::int32_t> hosts(first.size());
    std::int32_t next = 0;
    for (std::size_t r = 0; r < first.size(); ++r) {
        const auto of = static_cast<std::size_t>(first[r]);
        hosts[r] = of == r ? next++ : hosts[of];
    }
    return hosts;
}

jit::digest own_host() {
    std::array<char, 256> name{};
    gethostname(name.data(), name.size() - 1);
    const char* const given = std::getenv("NCCL_HOSTID");
    const std::string text = std::string(name.data()) + "\n" + (given != nullptr ? given : "");
    return jit::hash_bytes(std::as_bytes(std::span(text)));
}

}  // namespace

machine_facts agree_on_facts(const std::shared_ptr<nccl_communicator>& comm) {
    machine_facts facts;
    const auto num_ranks = static_cast<std::size_t>(comm->size());
    facts.num_ranks = comm->size();
    facts.have_gpu = true;
    facts.real_ranks = true;
    facts.nccl_version = comm->api().version;
    const jit::digest mine = own_host();
    std::vector<jit::digest> names(num_ranks);
    comm->all_gather_host(&mine, names.data(), sizeof mine);
    std::vector<std::int32_t> first = first_equal(names);
    try {
        const symmetric_window trial(comm, 4096);
        std::vector<std::int32_t> lowest(num_ranks);
        const std::int32_t own = trial.reachable().front();
        comm->all_gather_host(&own, lowest.data(), sizeof own);
        first = lowest;
        facts.have_windows = true;
        facts.one_domain = std::all_of(lowest.begin(), lowest.end(), [](std::int32_t r) { return r == 0; });
        comm->barrier_host();
    } catch (const unsupported_error& e) {
        facts.no_windows_reason = e.message();
    }
    facts.rank_hosts = number_hosts(first);
    return facts;
}

}  // namespace epjit::host
