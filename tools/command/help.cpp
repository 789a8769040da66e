// SPDX-License-Identifier: Apache-2.0
#include "tools/command/context.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::tools {
namespace {

std::string indented(std::string_view lines) {
    std::string text;
    for (std::size_t begin = 0; begin < lines.size();) {
        const std::size_t end = std::min(lines.find('\n', begin), lines.size());
        text += fmt::format("  {}\n", lines.substr(begin, end - begin));
        begin = end + 1;
    }
    return text;
}

std::string option_lines(std::span<const option_info> options) {
    std::string text;
    for (const option_info& o : options) {
        std::string value(o.value);
        if (!o.also.empty()) {
            value += fmt::format("|{}", o.also);
        }
        if (o.list) {
            value += value.find('|') == std::string::npos ? ",.." : "";
        }
        const std::string left = value.empty() ? std::string(o.name) : fmt::format("{} {}", o.name, value);
        if (left.size() > 30) {
            text += fmt::format("  {}\n  {:30}  {}\n", left, "", o.help);
        } else {
            text += fmt::format("  {:30}  {}\n", left, o.help);
        }
    }
    return text;
}

std::string program_help() {
    std::string text =
        "epjit moves tokens to experts and back: it compiles its CUDA kernels at run time for the exact model,\n"
        "keeps them in an on-disk cache, and launches the right exchange.\n\n"
        "usage: epjit COMMAND [options]\n\ncommands:\n";
    for (const command_info& c : commands()) {
        text += fmt::format("  {:11} {}\n", c.name, c.summary);
    }
    text += "\noptions of every command:\n" + option_lines(global_options());
    text += "\nexamples:\n" + indented(
                                  "epjit doctor                                  # what is here and what is missing\n"
                                  "epjit warm --model deepseek-v3 --ranks 8      # compile its kernels; no GPU needed\n"
                                  "epjit run --check                             # one MoE layer, checked\n"
                                  "epjit warm --help                             # options of one command");
    text +=
        "\nenvironment: EPJIT_CACHE_PATH (a:b:c, the first is written), EPJIT_CACHE_MAX_BYTES, EPJIT_OFFLINE=1,\n"
        "  EPJIT_NVRTC_LIBRARY, EPJIT_CUDA_LIBRARY, EPJIT_NCCL_LIBRARY, EPJIT_LOG=error|warn|info|debug; see the docs\n"
        "exit status: 0 done, 1 a check failed or something was not stored, 2 bad usage or input, 3 something\n"
        "  needed is missing on this machine, 130 interrupted\n";
    return text;
}

}  // namespace

std::string help_text(const command_info* command) {
    if (command == nullptr) {
        return program_help();
    }
    std::string text = fmt::format("epjit {}: {}\n", command->name, command->summary);
    if (!command->details.empty()) {
        text += fmt::format("{}\n", command->details);
    }
    text += fmt::format("\nusage: epjit {}", command->name);
    for (const argument_info& a : command->arguments) {
        text += a.required ? fmt::format(" {}", a.name) : fmt::format(" [{}]", a.name);
    }
    text += command->options.empty() ? "\n" : " [options]\n";
    if (!command->arguments.empty()) {
        text += "\narguments:\n";
        for (const argument_info& a : command->arguments) {
            text += a.name.size() > 30 ? fmt::format("  {}  {}\n", a.name, a.help)
                                       : fmt::format("  {:30}  {}\n", a.name, a.help);
        }
    }
    if (!command->options.empty()) {
        text += "\noptions (defaults in brackets):\n" + option_lines(command->options);
    }
    text += "\noptions of every command:\n" + option_lines(global_options());
    return text + "\nexamples:\n" + indented(command->examples);
}

}  // namespace epjit::tools
