// SPDX-License-Identifier: Apache-2.0
// How the ranks of a hybrid exchange lie on hosts.
#pragma once

#include <cstdint>
#include <span>

namespace epjit::host {

/// Where a rank lies. Hosts are neighbours in rank order and have as many ranks each.
struct host_layout {
    std::int32_t num_hosts = 1;
    std::int32_t width = 1;  ///< ranks of a host
    std::int32_t host = 0;   ///< of this rank
    std::int32_t local = 0;  ///< this rank's number within its host

    [[nodiscard]] std::int32_t first() const noexcept { return host * width; }
    /// The rank of the same number on host `h`.
    [[nodiscard]] std::int32_t rail(std::int32_t h) const noexcept { return h * width + local; }
};

/// @throws unsupported_error naming the ranks and hosts where they are laid out otherwise.
host_layout lay_out_hosts(std::span<const std::int32_t> rank_hosts, std::int32_t rank);

}  // namespace epjit::host
