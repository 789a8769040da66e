// SPDX-License-Identifier: Apache-2.0
// Compiles in worker processes: the compiler's parser is serialised inside a process, and a crash or a hang must cost
// one variant. The command re-executes itself; the library never does.
#pragma once

#include "epjit/jit/compiler.hpp"
#include "epjit/log.hpp"

#include <memory>

namespace epjit::tools {

/// First argument of a worker process; not for users.
inline constexpr char worker_argument[] = "--epjit-worker";

/// The worker's program: compiles what comes in on stdin until it ends. Dies with its parent.
int worker_main(int argc, char** argv);

/// A compiler whose work is done by worker processes, started when first needed and kept. `inner` is the same compiler
/// in this process: it gives identity and targets, and compiles where no process can be started.
std::shared_ptr<jit::compiler> make_process_compiler(std::shared_ptr<jit::compiler> inner, logger log);

}  // namespace epjit::tools
