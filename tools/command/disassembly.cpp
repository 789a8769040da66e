// SPDX-License-Identifier: Apache-2.0
#include "tools/command/disassembly.hpp"

#include "epjit/error.hpp"
#include "tools/worker/subprocess.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <sstream>
#include <sys/mman.h>
#include <unistd.h>

namespace epjit::tools {
namespace {

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

/// Runs `tool` on a cubin; `more` before the file's name.
std::string run_on(const std::string& tool, std::string_view cubin, std::initializer_list<const char*> more) {
    const int file = ::memfd_create("epjit-cubin", 0);  // inherited: the tool opens it by number
    if (file < 0 || ::write(file, cubin.data(), cubin.size()) != static_cast<ssize_t>(cubin.size())) {
        throw error(error_kind::internal, "cannot hand the cubin to the disassembler: no memory for it");
    }
    std::vector<std::string> arguments{tool};
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.push_back(fmt::format("/proc/self/fd/{}", file));
    const process_result result = run_process(arguments, {});
    ::close(file);
    if (result.status != 0) {
        throw error(error_kind::internal, fmt::format("{} ended with status {}: {}", tool, result.status, result.err));
    }
    return result.out;
}

constexpr const char* where_to_look = "(looked in CUDA_HOME/bin, CUDA_PATH/bin, PATH and /usr/local/cuda/bin)";

/// Calls of one kernel, the calls inside of each, and how many instructions they are.
struct call_node {
    code_place place;
    std::size_t instructions = 0;
    std::vector<call_node> inside;

    call_node& find(const code_place& p) {
        const auto found = std::find_if(inside.begin(), inside.end(), [&](const call_node& n) { return n.place == p; });
        return found != inside.end() ? *found : inside.emplace_back(call_node{p, 0, {}});
    }
};

/// `//## File "a.cuh", line 3 inlined at "b.cuh", line 7`: the first of both places.
std::optional<code_place> place_of(std::string_view line) {
    constexpr std::string_view mark = "//## File \"";
    const std::size_t begin = line.find(mark);
    const std::size_t end = begin == std::string_view::npos ? begin : line.find("\", line ", begin + mark.size());
    if (end == std::string_view::npos) {
        return std::nullopt;
    }
    code_place place{std::string(line.substr(begin + mark.size(), end - begin - mark.size())), 0};
    const char* number = line.data() + end + std::string_view("\", line ").size();
    std::from_chars(number, line.data() + line.size(), place.line);
    return place;
}

/// An address between comment signs, then the instruction.
bool is_instruction(std::string_view line) {
    const std::size_t open = line.find_first_not_of(" \t");
    if (open == std::string_view::npos || !line.substr(open).starts_with("/*")) {
        return false;
    }
    const std::size_t close = line.find("*/", open);
    return close != std::string_view::npos && line.find_first_not_of("0123456789abcdef", open + 2) == close &&
           line.find(';', close) != std::string_view::npos;
}

void append(const call_node& node, int depth, std::vector<call_instructions>& out) {
    std::vector<const call_node*> order;
    for (const call_node& n : node.inside) {
        order.push_back(&n);
    }
    std::stable_sort(order.begin(), order.end(),
                     [](const call_node* a, const call_node* b) { return a->instructions > b->instructions; });
    for (const call_node* n : order) {
        out.push_back({n->place, depth, n->instructions});
        append(*n, depth + 1, out);
    }
}

/// Of what nvdisasm printed.
std::vector<kernel_instructions> instructions_of(std::string_view disassembly) {
    constexpr std::string_view section = ".section\t.text.";
    std::vector<kernel_instructions> kernels;
    std::vector<call_node> roots;
    std::vector<code_place> places;  // of the next instructions, the innermost first
    bool begins = true;
    while (!disassembly.empty()) {
        const std::size_t end = std::min(disassembly.find('\n'), disassembly.size());
        const std::string_view line = disassembly.substr(0, end);
        disassembly.remove_prefix(std::min(end + 1, disassembly.size()));
        if (const std::size_t at = line.find(section); at != std::string_view::npos) {
            const std::string_view name = line.substr(at + section.size());
            kernels.push_back({std::string(name.substr(0, name.find_first_of(",\""))), 0, {}});
            roots.emplace_back();
            places.clear();
        } else if (std::optional<code_place> place = place_of(line)) {
            if (begins) {
                places.clear();
            }
            begins = false;
            places.push_back(std::move(*place));
        } else if (!roots.empty() && is_instruction(line)) {
            begins = true;
            ++kernels.back().instructions;
            call_node* node = &roots.back();
            for (auto outer = places.rbegin(); outer != places.rend(); ++outer) {
                node = &node->find(*outer);
                ++node->instructions;
            }
        }
    }
    for (std::size_t i = 0; i < kernels.size(); ++i) {
        append(roots[i], 0, kernels[i].calls);
    }
    return kernels;
}

}  // namespace

std::string disassemble(const jit::artifact& value) {
    const std::string tool = find_tool({"nvdisasm", "cuobjdump"});
    if (tool.empty()) {
        throw unsupported_error(fmt::format("neither nvdisasm nor cuobjdump was found {}", where_to_look),
                                "install them (packages cuda-nvdisasm and cuda-cuobjdump), or set CUDA_HOME");
    }
    const std::string_view cubin(reinterpret_cast<const char*>(value.cubin.data()), value.cubin.size());
    return tool.ends_with("cuobjdump") ? run_on(tool, cubin, {"--dump-sass"}) : run_on(tool, cubin, {});
}

std::vector<kernel_instructions> count_instructions(std::string_view cubin_with_lines) {
    const std::string tool = find_tool({"nvdisasm"});
    if (tool.empty()) {
        throw unsupported_error(fmt::format("nvdisasm was not found {}", where_to_look),
                                "install it (package cuda-nvdisasm), or set CUDA_HOME");
    }
    return instructions_of(run_on(tool, cubin_with_lines, {"--print-code", "--print-line-info-inline"}));
}

}  // namespace epjit::tools
