// SPDX-License-Identifier: Apache-2.0
// Whether all ranks of an exchange were given the same config.
#pragma once

#include "host/exchange/backend.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace epjit::host {

class nccl_communicator;

/// One value that must be equal on every rank.
struct config_field {
    const char* name;
    std::uint64_t value;
    std::string text;  ///< as messages show it
};

/// Everything of `config` that decides what ranks say to each other, the library's version first.
std::vector<config_field> config_fields(const resolved_config& config);

/// Collective. @throws config_error on every rank, with the same text, when a field differs between ranks: its name,
/// and rank 0's and the first differing rank's values; nccl_error, timeout_error.
void compare_fields(nccl_communicator& comm, std::span<const config_field> fields);
void compare_configs(nccl_communicator& comm, const resolved_config& config);

}  // namespace epjit::host
