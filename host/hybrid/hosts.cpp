// SPDX-License-Identifier: Apache-2.0
#include "host/hybrid/hosts.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace epjit::host {

host_layout lay_out_hosts(std::span<const std::int32_t> rank_hosts, std::int32_t rank) {
    const auto num_ranks = static_cast<std::int32_t>(rank_hosts.size());
    std::int32_t width = 0;
    while (width < num_ranks && rank_hosts[static_cast<std::size_t>(width)] == rank_hosts[0]) {
        ++width;
    }
    for (std::int32_t r = 0; r < num_ranks; ++r) {
        if (num_ranks % width != 0 || rank_hosts[static_cast<std::size_t>(r)] != r / width) {
            throw unsupported_error(
                fmt::format("exchange 'hybrid' needs hosts of equally many ranks, numbered host by host; these {} "
                            "ranks are on hosts {}",
                            num_ranks, fmt::join(rank_hosts, ", ")),
                "start as many ranks on every host, all of one host before the next, or use sendrecv");
        }
    }
    return {num_ranks / width, width, rank / width, rank % width};
}

}  // namespace epjit::host
