// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/facts.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/hash.hpp"
#include "host/nccl/communicator.hpp"
#include "host/nccl/creation.hpp"

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

/// The communicator of this rank's host; hosts as number_hosts gives them.
std::shared_ptr<nccl_communicator> connect_host(const std::shared_ptr<runtime_state>& runtime, nccl_communicator& comm,
                                                const std::vector<std::int32_t>& hosts) {
    std::vector<std::int32_t> members;
    for (std::int32_t r = 0; r < comm.size(); ++r) {
        if (hosts[static_cast<std::size_t>(r)] == hosts[static_cast<std::size_t>(comm.rank())]) {
            members.push_back(r);
        }
    }
    const auto place = std::find(members.begin(), members.end(), comm.rank()) - members.begin();
    const nccl_unique_id mine = place == 0 ? make_unique_id(comm.api()) : nccl_unique_id{};
    std::vector<nccl_unique_id> ids(static_cast<std::size_t>(comm.size()));
    comm.all_gather_host(&mine, ids.data(), sizeof mine);
    const nccl_member self{static_cast<std::int32_t>(place), comm.context()};
    return connect_ranks(runtime, ids[static_cast<std::size_t>(members.front())],
                         static_cast<std::int32_t>(members.size()), std::span(&self, 1))
        .front();
}

/// True on every rank when the ranks of each host reach each other's windows.
bool hosts_have_windows(nccl_communicator& comm, const std::shared_ptr<nccl_communicator>& host, std::string& why) {
    std::uint8_t mine = 1;
    try {
        const symmetric_window trial(host, 4096);
        mine = trial.reachable().size() == static_cast<std::size_t>(host->size()) ? 1 : 0;
        host->barrier_host();
    } catch (const unsupported_error& e) {
        mine = 0;
        why = e.message();
    }
    std::vector<std::uint8_t> all(static_cast<std::size_t>(comm.size()));
    comm.all_gather_host(&mine, all.data(), 1);
    return std::all_of(all.begin(), all.end(), [](std::uint8_t ok) { return ok != 0; });
}

}  // namespace

agreed_facts agree_on_facts(const std::shared_ptr<runtime_state>& runtime,
                            const std::shared_ptr<nccl_communicator>& comm) {
    agreed_facts agreed;
    machine_facts& facts = agreed.facts;
    const auto num_ranks = static_cast<std::size_t>(comm->size());
    facts.num_ranks = comm->size();
    facts.have_gpu = true;
    facts.real_ranks = true;
    const jit::digest mine = own_host();
    std::vector<jit::digest> names(num_ranks);
    comm->all_gather_host(&mine, names.data(), sizeof mine);
    facts.rank_hosts = number_hosts(first_equal(names));
    try {
        const symmetric_window trial(comm, 4096);
        std::vector<std::int32_t> lowest(num_ranks);
        const std::int32_t own = trial.reachable().front();
        comm->all_gather_host(&own, lowest.data(), sizeof own);
        facts.rank_hosts = number_hosts(lowest);
        facts.have_windows = true;
        facts.one_domain = std::all_of(lowest.begin(), lowest.end(), [](std::int32_t r) { return r == 0; });
        comm->barrier_host();
    } catch (const unsupported_error& e) {
        facts.no_windows_reason = e.message();
    }
    const bool several = std::any_of(facts.rank_hosts.begin(), facts.rank_hosts.end(), [](auto h) { return h != 0; });
    if (several && no_windows_reason(comm->api()).empty()) {
        agreed.host = connect_host(runtime, *comm, facts.rank_hosts);
        facts.have_windows = hosts_have_windows(*comm, agreed.host, facts.no_windows_reason);
    }
    return agreed;
}

}  // namespace epjit::host
