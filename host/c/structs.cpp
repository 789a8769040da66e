// SPDX-License-Identifier: Apache-2.0
#include "host/c/structs.hpp"

#include "epjit/error.hpp"
#include "host/exchange/layouts.hpp"

#include <fmt/format.h>

namespace epjit::host::c {

static_assert(max_elements == templates::max_driven_ranks);

void check_struct_size(const char* name, std::size_t given, std::size_t first, std::size_t known,
                       std::size_t alignment) {
    if (given > known) {
        throw config_error(
            fmt::format("struct_size of {} is {} bytes, library {} knows {}", name, given, EPJIT_VERSION, known),
            "load the library that the program was compiled against, or a newer one");
    }
    if (given < first || given % alignment != 0) {
        throw config_error(fmt::format("struct_size of {} is {} bytes, the first version has {}", name, given, first),
                           fmt::format("set it to sizeof({}) before the call", name));
    }
}

void check_element_count(const char* name, const void* elements, std::uint32_t count, std::size_t limit) {
    if (count > limit) {
        throw config_error(fmt::format("{} {} structs, a communicator drives at most {} ranks", count, name, limit),
                           "pass one struct for each driven rank, in rank order");
    }
    if (count > 0) {
        not_null(static_cast<const std::byte*>(elements), name);
    }
}

void check_element_size(const char* name, std::uint32_t index, std::size_t size, std::size_t first_size) {
    if (size != first_size) {
        throw config_error(
            fmt::format("struct_size of {} {} is {} bytes, that of the first is {}", name, index, size, first_size),
            fmt::format("set it to sizeof({}) in every element", name));
    }
}

}  // namespace epjit::host::c
