// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/shell.hpp"

#include <cstdio>
#include <sys/wait.h>

namespace epjit::tests {

std::pair<std::string, int> run_shell(const std::string& command) {
    std::FILE* pipe = ::popen(command.c_str(), "r");
    if (pipe == nullptr) {
        return {"", -1};
    }
    std::string text;
    char bytes[4096];
    for (std::size_t n = 0; (n = std::fread(bytes, 1, sizeof bytes, pipe)) > 0;) {
        text.append(bytes, n);
    }
    const int status = ::pclose(pipe);
    return {text, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)};
}

}  // namespace epjit::tests
