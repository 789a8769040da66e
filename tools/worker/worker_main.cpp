// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"
#include "host/runtime/settings.hpp"
#include "tools/worker/protocol.hpp"
#include "tools/worker/worker.hpp"

#include <csignal>
#include <cstdlib>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

namespace epjit::tools {
namespace {

/// Dies with the parent, leaves Ctrl-C to it, and dumps no core for a crash that the parent reports.
void tie_to_parent(const char* parent) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != std::atoi(parent)) {
        _exit(0);  // it died before the line above
    }
    std::signal(SIGINT, SIG_IGN);
    std::signal(SIGPIPE, SIG_IGN);
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
}

}  // namespace

int worker_main(int argc, char** argv) {
    if (argc != 3) {
        return 2;
    }
    tie_to_parent(argv[2]);
    std::shared_ptr<jit::compiler> compiler;
    std::optional<jit::template_set> templates;
    std::exception_ptr unusable;
    try {
        const host::settings env = host::read_settings({});
        templates = env.template_dir.empty() ? jit::template_set::embedded()
                                             : jit::template_set::from_directory(env.template_dir);
        compiler = jit::open_nvrtc({env.nvrtc_library, env.log}, *templates);
    } catch (const std::exception&) {
        unusable = std::current_exception();
    }
    while (const auto frame = read_frame(STDIN_FILENO)) {
        std::string reply;
        try {
            if (unusable) {
                std::rethrow_exception(unusable);
            }
            const compile_request request = decode_request(*frame);
            if (jit::variant_key(request.job.spec, *templates) != request.job.key) {
                throw config_error("the templates changed while the program was running",
                                   "run the command again when the templates are at rest");
            }
            reply = encode_artifact(compiler->compile(request.job, std::chrono::milliseconds(request.deadline_ms)));
        } catch (const std::exception&) {
            reply = encode_failure(std::current_exception());
        }
        if (!write_frame(reply_descriptor, reply)) {
            break;
        }
    }
    _exit(0);  // NVRTC's exit handlers have nothing to save and may take long
}

}  // namespace epjit::tools
