// SPDX-License-Identifier: Apache-2.0
#include "tools/command/ptx.hpp"

#include "jit/nvrtc/library.hpp"
#include "tools/command/machine.hpp"
#include "tools/worker/subprocess.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <dlfcn.h>
#include <sstream>
#include <sys/mman.h>
#include <unistd.h>

namespace epjit::tools {
namespace {

namespace nvrtc = jit::nvrtc;

/// The file that the program includes first and that names all others.
std::string root_of(const std::string& source) {
    const std::size_t open = source.find("#include \"");
    const std::size_t begin = open + 10;
    const std::size_t close = open == std::string::npos ? open : source.find('"', begin);
    if (close == std::string::npos) {
        throw error(error_kind::internal, "the stored program includes no template");
    }
    return source.substr(begin, close - begin);
}

std::vector<std::string> ptx_options(const std::string& stored) {
    std::vector<std::string> options;
    std::istringstream words(stored);
    for (std::string word; words >> word;) {
        if (word.starts_with("--ptxas-options")) {
            continue;
        }
        if (const std::size_t at = word.find("=sm_"); at != std::string::npos) {
            word.replace(at, 4, "=compute_");
        }
        options.push_back(word);
    }
    return options;
}

struct program_guard {
    const nvrtc::library& lib;
    nvrtc::program_t handle = nullptr;
    ~program_guard() {
        if (handle != nullptr) {
            lib.calls.destroy_program(&handle);
        }
    }
};

/// The first of `names` on PATH or in the bin folder of CUDA_HOME, CUDA_PATH or /usr/local/cuda; empty when none is.
std::string find_tool(std::initializer_list<const char*> names) {
    std::vector<std::string> folders;
    for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
        if (const char* root = std::getenv(variable); root != nullptr && *root != 0) {
            folders.push_back(fmt::format("{}/bin", root));
        }
    }
    if (const char* path = std::getenv("PATH")) {
        std::istringstream parts(path);
        for (std::string part; std::getline(parts, part, ':');) {
            folders.push_back(part);
        }
    }
    folders.emplace_back("/usr/local/cuda/bin");
    for (const char* name : names) {
        for (const std::string& folder : folders) {
            const std::string file = fmt::format("{}/{}", folder, name);
            if (::access(file.c_str(), X_OK) == 0) {
                return file;
            }
        }
    }
    return {};
}

}  // namespace

std::string compile_to_ptx(const context& ctx, const jit::artifact& value) {
    const nvrtc::library lib = nvrtc::open_library({ctx.env.nvrtc_library, ctx.log});
    void* handle = ::dlopen(lib.path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto get_size = reinterpret_cast<nvrtc::result (*)(nvrtc::program_t, std::size_t*)>(
        handle == nullptr ? nullptr : ::dlsym(handle, "nvrtcGetPTXSize"));
    const auto get_ptx = reinterpret_cast<nvrtc::result (*)(nvrtc::program_t, char*)>(
        handle == nullptr ? nullptr : ::dlsym(handle, "nvrtcGetPTX"));
    if (get_size == nullptr || get_ptx == nullptr) {
        throw library_error(fmt::format("{} has no nvrtcGetPTX", lib.path),
                            "name another NVRTC in EPJIT_NVRTC_LIBRARY");
    }
    const jit::template_set templates = open_templates(ctx);
    const std::string root = root_of(value.source);
    if (templates.find(root).empty() || templates.closure_digest(root).hex() != value.template_digest) {
        throw unsupported_error("the entry was made from other templates than this epjit has",
                                "set EPJIT_TEMPLATE_DIR to those templates, or inspect a newer entry");
    }
    std::vector<const char*> names, texts, options;
    for (const auto& [name, text] : templates.closure(root)) {
        names.push_back(name.data());
        texts.push_back(text.data());
    }
    const std::vector<std::string> words = ptx_options(value.options);
    for (const std::string& word : words) {
        options.push_back(word.c_str());
    }
    program_guard program{lib};
    std::string ptx;
    const auto check = [&](nvrtc::result code, const char* call) {
        if (code != nvrtc::success) {
            throw compile_error(fmt::format("{} returned {} for the PTX of {}", call, code, value.spec), "", "",
                                value.source);
        }
    };
    check(lib.calls.create_program(&program.handle, value.source.c_str(), "epjit.cu", static_cast<int>(names.size()),
                                   texts.data(), names.data()),
          "nvrtcCreateProgram");
    for (const jit::kernel_info& k : value.kernels) {
        const std::string expression = fmt::format("epjit::templates::{}<epjit::templates::config>", k.name);
        check(lib.calls.add_name_expression(program.handle, expression.c_str()), "nvrtcAddNameExpression");
    }
    check(lib.calls.compile_program(program.handle, static_cast<int>(options.size()), options.data()),
          "nvrtcCompileProgram");
    std::size_t bytes = 0;
    check(get_size(program.handle, &bytes), "nvrtcGetPTXSize");
    ptx.resize(bytes);
    check(get_ptx(program.handle, ptx.data()), "nvrtcGetPTX");
    ptx.resize(ptx.find_last_not_of('\0') + 1);
    return ptx;
}

std::string disassemble(const jit::artifact& value) {
    const std::string tool = find_tool({"nvdisasm", "cuobjdump"});
    if (tool.empty()) {
        throw unsupported_error(
            "neither nvdisasm nor cuobjdump was found (looked in CUDA_HOME/bin, CUDA_PATH/bin, PATH and "
            "/usr/local/cuda/bin)",
            "install them (packages cuda-nvdisasm and cuda-cuobjdump), or set CUDA_HOME");
    }
    const int file = ::memfd_create("epjit-cubin", 0);  // inherited: the tool opens it by number
    if (file < 0 || ::write(file, value.cubin.data(), value.cubin.size()) != static_cast<ssize_t>(value.cubin.size())) {
        throw error(error_kind::internal, "cannot hand the cubin to the disassembler: no memory for it");
    }
    std::vector<std::string> arguments{tool};
    if (tool.ends_with("cuobjdump")) {
        arguments.emplace_back("--dump-sass");
    }
    arguments.push_back(fmt::format("/proc/self/fd/{}", file));
    const process_result result = run_process(arguments, {});
    ::close(file);
    if (result.status != 0) {
        throw error(error_kind::internal, fmt::format("{} ended with status {}: {}", tool, result.status, result.err));
    }
    return result.out;
}

}  // namespace epjit::tools
