// SPDX-License-Identifier: Apache-2.0
#include "host/dispatcher/tuning.hpp"

#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/nccl/communicator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <type_traits>

namespace epjit::host {
namespace {

constexpr std::size_t text_bytes = 1024;

/// What every rank brings; the others take rank 0's.
struct offer {
    jit::tuned_knobs knobs;
    std::int32_t arch = 0;    ///< 900 and the suffix
    std::int32_t failed = 0;  ///< the kind of the error below, + 1
    char message[text_bytes]{};
    char remedy[text_bytes]{};
};
static_assert(std::is_trivially_copyable_v<offer> && sizeof(offer) == sizeof(jit::tuned_knobs) + 8 + 2 * text_bytes);

jit::tuned_knobs choose(const communicator_state& comm, const exchange_config& config) {
    const std::shared_ptr<const jit::profile> own = comm.runtime->profile();
    std::array<const jit::profile*, 2> profiles{own.get(), &jit::builtin_profile()};
    return jit::choose_knobs(key_of(comm, config), std::span(profiles).subspan(own == nullptr ? 1 : 0));
}

jit::target_arch arch_of(const communicator_state& comm) {
    return device_arch(comm.context->compute_major(), comm.context->compute_minor());
}

/// Ranks of this rank's host.
std::int32_t ranks_beside(const communicator_state& comm) {
    const std::vector<std::int32_t>& hosts = comm.facts.rank_hosts;
    if (comm.nccl == nullptr || hosts.empty()) {
        return comm.num_ranks;
    }
    const std::int32_t mine = hosts[static_cast<std::size_t>(comm.first_driven)];
    return static_cast<std::int32_t>(std::count(hosts.begin(), hosts.end(), mine));
}

}  // namespace

jit::link_kind link_of(const driver_api& api, int device) {
    jit::link_kind best = jit::link_kind::none;
    for (int other = 0; other < api.num_devices; ++other) {
        int reached = 0, atomics = 0;
        if (other == device ||
            api.p2p_attribute(&reached, p2p_attribute::access_supported, device, other) != cu_success || reached == 0) {
            continue;
        }
        // NVLink carries atomic operations, PCIe does not.
        const bool nvlink =
            api.p2p_attribute(&atomics, p2p_attribute::native_atomics, device, other) == cu_success && atomics != 0;
        best = std::max(best, nvlink ? jit::link_kind::nvlink : jit::link_kind::pcie);
    }
    return best;
}

jit::tuning_key key_of(const exchange_config& c) {
    jit::tuning_key key;
    key.hidden = c.hidden;
    key.experts = c.num_experts;
    key.topk = c.topk;
    key.input = c.input_type;
    key.dispatch = c.dispatch_type;
    key.scales = c.scales;
    key.combine = c.combine_type;
    key.tokens = c.max_tokens_per_rank;
    return key;
}

jit::tuning_key key_of(const communicator_state& comm, const exchange_config& config) {
    jit::tuning_key key = key_of(config);
    key.gpu = comm.context->name();
    key.arch = arch_of(comm);
    key.ranks = ranks_beside(comm);
    key.link = jit::link_kind::none;
    if (comm.nccl != nullptr) {
        key.link = link_of(comm.context->api(), comm.context->device());
        // A process that is shown one GPU cannot ask about the others: windows between them are taken for NVLink.
        if (comm.context->api().num_devices == 1 && comm.facts.have_windows && key.ranks > 1) {
            key.link = jit::link_kind::nvlink;
        }
    }
    return key;
}

jit::tuned_knobs settle_knobs(communicator_state& comm, const exchange_config& config) {
    if (comm.context == nullptr) {
        return {};  // no kernels
    }
    if (comm.forced_knobs) {
        return *comm.forced_knobs;
    }
    if (comm.nccl == nullptr) {
        return choose(comm, config);
    }
    const jit::target_arch arch = arch_of(comm);
    offer mine;
    mine.arch = arch.number * 256 + arch.suffix;
    if (comm.nccl->rank() == 0) {
        try {
            mine.knobs = choose(comm, config);
        } catch (const error& e) {
            mine.failed = static_cast<std::int32_t>(e.kind()) + 1;
            e.message().copy(mine.message, text_bytes - 1);
            e.remedy().copy(mine.remedy, text_bytes - 1);
        }
    }
    std::vector<offer> all(static_cast<std::size_t>(comm.num_ranks));
    comm.nccl->all_gather_host(&mine, all.data(), sizeof mine);
    const offer& first = all.front();
    if (first.failed != 0) {
        const std::string message = fmt::format("rank 0: {}", first.message);
        if (static_cast<error_kind>(first.failed - 1) == error_kind::unsupported) {
            throw unsupported_error(message, first.remedy);
        }
        throw config_error(message, first.remedy);
    }
    const auto other = std::find_if(all.begin(), all.end(), [&](const offer& o) { return o.arch != first.arch; });
    if (other != all.end()) {
        if (comm.nccl->rank() == 0 && first.knobs.tuned()) {
            comm.runtime->log().write(
                log_level::info, fmt::format("rank {} has another kind of GPU than rank 0: no tuning profile is used",
                                             other - all.begin()));
        }
        return {};
    }
    return first.knobs;
}

}  // namespace epjit::host
