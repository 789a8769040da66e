// SPDX-License-Identifier: Apache-2.0
// NumPy's .npy files, version 1.0 to 3.0, as far as `run` needs them: little-endian, C order.
#pragma once

#include "epjit/types.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace epjit::tools {

/// An array of expert ids.
struct id_array {
    id_type type = id_type::i64;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> data;  ///< of `type`, C order
};

/// @throws config_error naming the file and what is wrong with it.
id_array read_ids_npy(const std::string& path);

/// @throws config_error naming the file and the system's reason.
void write_npy(const std::string& path, std::span<const std::int64_t> shape, std::span<const float> values);
void write_npy(const std::string& path, std::span<const std::int64_t> shape, std::span<const std::int64_t> values);

}  // namespace epjit::tools
