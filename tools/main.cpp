// SPDX-License-Identifier: Apache-2.0
#include "tools/command/context.hpp"

int main(int argc, char** argv) {
    return epjit::tools::main_command(argc, argv);
}
