// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/model.hpp"
#include "tools/command/context.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>

namespace epjit::tools {
namespace {

std::string spaced(std::string_view bars) {
    std::string text(bars);
    std::replace(text.begin(), text.end(), '|', ' ');
    return text;
}

bool is_choice(std::string_view value) {
    return value.find('|') != std::string_view::npos;
}

std::string model_names() {
    std::string text;
    for (const jit::model_shape& m : jit::builtin_models()) {
        text += (text.empty() ? "" : " ") + m.name;
    }
    return text;
}

/// The words that may follow an option, empty for free text; files = true where a path is meant.
std::string words_after(const option_info& o, bool& files) {
    files = o.value == "FILE" || o.value == "DIR" || !o.also.empty();
    if (o.name == "--model") {
        return model_names();
    }
    return is_choice(o.value) ? spaced(o.value) : "";
}

std::string all_names(const command_info& c) {
    std::string text;
    for (const auto options : {c.options, global_options()}) {
        for (const option_info& o : options) {
            text += fmt::format("{}{}", text.empty() ? "" : " ", o.name);
        }
    }
    return text;
}

std::string shell_word(std::string_view text) {
    std::string result;
    for (const char c : text) {
        result += c == '\'' ? "'\\''" : std::string(1, c);
    }
    return fmt::format("'{}'", result);
}

std::string bash_script() {
    std::string names, cases, values;
    for (const command_info& c : commands()) {
        names += fmt::format("{}{}", names.empty() ? "" : " ", c.name);
        const std::string arguments =
            c.arguments.empty() || !is_choice(c.arguments[0].name) ? "" : spaced(c.arguments[0].name);
        cases += fmt::format("        {}) words=\"{}{}{}\" ;;\n", c.name, arguments, arguments.empty() ? "" : " ",
                             all_names(c));
        for (const option_info& o : c.options) {
            bool files = false;
            const std::string words = words_after(o, files);
            if (words.empty() && !files) {
                continue;
            }
            const std::string line =
                fmt::format("        {}) COMPREPLY=($(compgen {}-W \"{}\" -- \"$cur\")); return ;;\n", o.name,
                            files ? "-f " : "", words);
            if (values.find(fmt::format(" {})", o.name)) == std::string::npos) {
                values += line;
            }
        }
    }
    return fmt::format(
        "# bash completion of epjit; put it where bash-completion looks, or source it\n"
        "_epjit() {{\n"
        "    local cur=\"${{COMP_WORDS[COMP_CWORD]}}\" prev=\"${{COMP_WORDS[COMP_CWORD-1]}}\" command=\"\" word words\n"
        "    for word in \"${{COMP_WORDS[@]:1:COMP_CWORD-1}}\"; do\n"
        "        case \" {0} \" in *\" $word \"*) command=\"$word\"; break ;; esac\n"
        "    done\n"
        "    case \"$prev\" in\n"
        "        --cache-dir) COMPREPLY=($(compgen -d -- \"$cur\")); return ;;\n"
        "{1}"
        "    esac\n"
        "    case \"$command\" in\n"
        "{2}"
        "        *) words=\"{0} --json --cache-dir --version --help\" ;;\n"
        "    esac\n"
        "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
        "}}\n"
        "complete -o filenames -F _epjit epjit\n",
        names, values, cases);
}

std::string zsh_option(const option_info& o) {
    std::string help;
    for (const char c : o.help) {
        help += c == '[' || c == ']' || c == ':' ? std::string("\\") + c : std::string(1, c);
    }
    const std::string start = fmt::format("{}[{}]", o.name, help);
    if (o.value.empty()) {
        return shell_word(start);
    }
    bool files = false;
    const std::string words = words_after(o, files);
    if (files && words.empty()) {
        return shell_word(fmt::format("{}:{}:_files{}", start, o.value, o.value == "DIR" ? " -/" : ""));
    }
    return shell_word(words.empty() ? fmt::format("{}:{}:", start, o.value)
                                    : fmt::format("{}:value:({})", start, words));
}

std::string zsh_script() {
    std::string names, cases;
    for (const command_info& c : commands()) {
        std::string summary(c.summary);
        std::replace(summary.begin(), summary.end(), ':', ',');
        names += fmt::format("        {}\n", shell_word(fmt::format("{}:{}", c.name, summary)));
        cases += fmt::format("        {})\n            _arguments", c.name);
        for (const auto options : {c.options, global_options()}) {
            for (const option_info& o : options) {
                cases += fmt::format(" \\\n                {}", zsh_option(o));
            }
        }
        for (const argument_info& a : c.arguments) {
            const std::string action = is_choice(a.name)  ? fmt::format("({})", spaced(a.name))
                                       : a.name == "FILE" ? "_files"
                                                          : "";
            cases +=
                fmt::format(" \\\n                {}",
                            shell_word(fmt::format("{}:{}", is_choice(a.name) ? "what" : std::string(a.name), action))
                                .insert(1, a.required ? ":" : "::"));
        }
        cases += "\n            ;;\n";
    }
    return fmt::format(
        "#compdef epjit\n"
        "_epjit() {{\n"
        "    local -a commands=(\n{}    )\n"
        "    if (( CURRENT == 2 )); then\n"
        "        _describe command commands\n"
        "        return\n"
        "    fi\n"
        "    local command=$words[2]\n"
        "    shift words\n"
        "    (( CURRENT-- ))\n"
        "    case $command in\n{}    esac\n"
        "}}\n"
        "if [ \"$funcstack[1]\" = \"_epjit\" ]; then _epjit \"$@\"; else compdef _epjit epjit; fi\n",
        names, cases);
}

std::string fish_script() {
    std::string text = "# fish completion of epjit\ncomplete -c epjit -f\n";
    std::string names;
    for (const command_info& c : commands()) {
        names += fmt::format("{}{}", names.empty() ? "" : " ", c.name);
    }
    for (const command_info& c : commands()) {
        text += fmt::format("complete -c epjit -n 'not __fish_seen_subcommand_from {}' -a {} -d {}\n", names, c.name,
                            shell_word(c.summary));
        const std::string when = fmt::format("-n '__fish_seen_subcommand_from {}'", c.name);
        for (const argument_info& a : c.arguments) {
            text += is_choice(a.name)  ? fmt::format("complete -c epjit {} -a '{}'\n", when, spaced(a.name))
                    : a.name == "FILE" ? fmt::format("complete -c epjit {} -F\n", when)
                                       : "";
        }
        for (const option_info& o : c.options) {
            bool files = false;
            const std::string words = words_after(o, files);
            text += fmt::format("complete -c epjit {} -l {}{}{}{} -d {}\n", when, o.name.substr(2),
                                o.value.empty() ? "" : " -r", files ? " -F" : "",
                                words.empty() ? "" : fmt::format(" -a '{}'", words), shell_word(o.help));
        }
    }
    for (const option_info& o : global_options()) {
        text += fmt::format("complete -c epjit -l {}{} -d {}\n", o.name.substr(2), o.value.empty() ? "" : " -r -F",
                            shell_word(o.help));
    }
    return text;
}

}  // namespace

std::string completion_script(std::string_view shell) {
    if (shell == "bash") {
        return bash_script();
    }
    if (shell == "zsh") {
        return zsh_script();
    }
    if (shell == "fish") {
        return fish_script();
    }
    throw config_error(fmt::format("epjit completion: expected bash, zsh or fish, found \"{}\"", shell));
}

int completion_command(context& ctx) {
    const std::string script = completion_script(ctx.call.arguments[0]);
    if (ctx.json) {
        print_json({{"shell", ctx.call.arguments[0]}, {"script", script}});
    } else {
        print(script);
    }
    return exit_done;
}

}  // namespace epjit::tools
