// SPDX-License-Identifier: Apache-2.0
#include "tools/command/recompile.hpp"

#include "jit/nvrtc/library.hpp"
#include "tools/command/machine.hpp"

#include <fmt/format.h>

#include <dlfcn.h>
#include <sstream>

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

/// The entry's own options but for what ptxas would say.
std::vector<std::string> options_of(const jit::artifact& value) {
    std::vector<std::string> options;
    std::istringstream words(value.options);
    for (std::string word; words >> word;) {
        if (!word.starts_with("--ptxas-options")) {
            options.push_back(word);
        }
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

/// What one pair of NVRTC's functions gives of the program, compiled anew.
std::string compile_again(const context& ctx, const jit::artifact& value, const std::vector<std::string>& words,
                          const char* size_name, const char* text_name) {
    const nvrtc::library lib = nvrtc::open_library({ctx.env.nvrtc_library, ctx.log});
    void* handle = ::dlopen(lib.path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto get_size = reinterpret_cast<nvrtc::result (*)(nvrtc::program_t, std::size_t*)>(
        handle == nullptr ? nullptr : ::dlsym(handle, size_name));
    const auto get_text = reinterpret_cast<nvrtc::result (*)(nvrtc::program_t, char*)>(
        handle == nullptr ? nullptr : ::dlsym(handle, text_name));
    if (get_size == nullptr || get_text == nullptr) {
        throw library_error(fmt::format("{} has no {}", lib.path, text_name),
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
    for (const std::string& word : words) {
        options.push_back(word.c_str());
    }
    program_guard program{lib};
    const auto check = [&](nvrtc::result code, const char* call) {
        if (code != nvrtc::success) {
            throw compile_error(fmt::format("{} returned {} for {}, compiled anew", call, code, value.spec), "", "",
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
    check(get_size(program.handle, &bytes), size_name);
    std::string text(bytes, '\0');
    check(get_text(program.handle, text.data()), text_name);
    return text;
}

}  // namespace

std::string compile_to_ptx(const context& ctx, const jit::artifact& value) {
    std::vector<std::string> options = options_of(value);
    for (std::string& word : options) {
        if (const std::size_t at = word.find("=sm_"); at != std::string::npos) {
            word.replace(at, 4, "=compute_");
        }
    }
    std::string ptx = compile_again(ctx, value, options, "nvrtcGetPTXSize", "nvrtcGetPTX");
    ptx.resize(ptx.find_last_not_of('\0') + 1);
    return ptx;
}

std::string compile_with_lines(const context& ctx, const jit::artifact& value) {
    std::vector<std::string> options = options_of(value);
    options.emplace_back("--generate-line-info");
    return compile_again(ctx, value, options, "nvrtcGetCUBINSize", "nvrtcGetCUBIN");
}

}  // namespace epjit::tools
