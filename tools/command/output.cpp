// SPDX-License-Identifier: Apache-2.0
#include "tools/command/context.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace epjit::tools {
namespace {

int first_error = 0;

}  // namespace

void print(std::string_view text) {
    if (first_error == 0 && std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) {
        first_error = errno;
    }
}

void print_json(const nlohmann::ordered_json& value) {
    // Paths and logs may hold bytes that are not UTF-8: replaced, never an exception.
    print(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

int write_status(int status) {
    if (first_error == 0 && std::fflush(stdout) != 0) {
        first_error = errno;
    }
    if (first_error == 0) {
        return status;
    }
    if (first_error != EPIPE) {  // `epjit models | head -1` is no mishap to talk about
        std::fputs(fmt::format("epjit: error: cannot write to stdout: {}\n", std::strerror(first_error)).c_str(),
                   stderr);
    }
    return status == exit_done ? exit_check_failed : status;
}

}  // namespace epjit::tools
