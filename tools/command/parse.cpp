// SPDX-License-Identifier: Apache-2.0
// The only file that sees CLI11: it is slow to compile.
#include "tools/command/parse.hpp"

#include "epjit/error.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <numeric>

namespace epjit::tools {
namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t above = row[j];
            row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
            diagonal = above;
        }
    }
    return row[b.size()];
}

void add_options(CLI::App& app, std::span<const option_info> options, invocation& result) {
    for (const option_info& o : options) {
        const std::string name(o.name);
        if (o.value.empty()) {
            app.add_flag_function(name, [&result, name](std::int64_t) { result.options[name] = {""}; });
            continue;
        }
        // Each occurrence is kept: whether a second one is an error is decided where the value is used.
        app.add_option_function<std::vector<std::string>>(
               name, [&result, name](const std::vector<std::string>& v) { result.options[name] = v; })
            ->type_size(1)
            ->expected(1, 1 << 20)
            ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
            ->allow_extra_args(false);
    }
}

std::vector<std::string> option_names(const command_info* command) {
    std::vector<std::string> names;
    if (command != nullptr) {
        for (const option_info& o : command->options) {
            names.emplace_back(o.name);
        }
    }
    for (const option_info& o : global_options()) {
        names.emplace_back(o.name);
    }
    return names;
}

std::vector<std::string> command_names() {
    std::vector<std::string> names;
    for (const command_info& c : commands()) {
        names.emplace_back(c.name);
    }
    return names;
}

std::string help_of(const command_info* command) {
    return command == nullptr ? "see `epjit --help`" : fmt::format("see `epjit {} --help`", command->name);
}

[[noreturn]] void refuse_extra(const command_info* command, const std::string& text) {
    const bool option = text.starts_with("-") && text.size() > 1;
    if (command == nullptr && !option) {
        const auto near = near_names(text, command_names());
        throw config_error(
            fmt::format("there is no command \"{}\"; expected one of: {}", text, fmt::join(command_names(), ", ")),
            near.empty() ? help_of(nullptr) : fmt::format("did you mean `epjit {}`?", near.front()));
    }
    const std::string who = command == nullptr ? "epjit" : fmt::format("epjit {}", command->name);
    if (option) {
        const std::string name = text.substr(0, text.find('='));
        const auto near = near_names(name, option_names(command));
        throw config_error(
            fmt::format("{} has no option {}; expected one of: {}", who, name, fmt::join(option_names(command), ", ")),
            near.empty() ? help_of(command) : fmt::format("did you mean {}?", near.front()));
    }
    throw config_error(fmt::format("{} does not expect the argument \"{}\"", who, text), help_of(command));
}

/// CLI11's own messages name neither the command nor what was expected.
[[noreturn]] void refuse(const command_info* command, const CLI::ParseError& e, int argc, const char* const* argv) {
    if (dynamic_cast<const CLI::ArgumentMismatch*>(&e) != nullptr) {
        // The option without a value is the last of the line, or the one before another option.
        for (int i = argc - 1; i > 0; --i) {
            const std::string_view word = argv[i];
            const auto all = command == nullptr ? std::span<const option_info>{} : command->options;
            for (const auto options : {all, global_options()}) {
                for (const option_info& o : options) {
                    const bool last = i + 1 == argc || std::string_view(argv[i + 1]).starts_with("--");
                    if (o.name == word && !o.value.empty() && last) {
                        throw config_error(fmt::format("{} needs a value: {}", o.name, o.value), help_of(command));
                    }
                    if (o.value.empty() && word.starts_with(fmt::format("{}=", o.name))) {
                        throw config_error(fmt::format("{} takes no value", o.name), help_of(command));
                    }
                }
            }
        }
    }
    throw config_error(e.what(), help_of(command));
}

}  // namespace

std::optional<std::string> invocation::value(std::string_view option) const {
    const auto found = options.find(option);
    if (found == options.end()) {
        return std::nullopt;
    }
    if (found->second.size() > 1) {
        throw config_error(fmt::format("{} was given {} times ({}); expected once", option, found->second.size(),
                                       fmt::join(found->second, ", ")));
    }
    return found->second.front();
}

std::vector<std::string> invocation::values(std::string_view option) const {
    std::vector<std::string> result;
    const auto found = options.find(option);
    if (found == options.end()) {
        return result;
    }
    for (const std::string& text : found->second) {
        for (std::size_t begin = 0;;) {
            const std::size_t comma = text.find(',', begin);
            result.push_back(text.substr(begin, comma == std::string::npos ? comma : comma - begin));
            if (comma == std::string::npos) {
                break;
            }
            begin = comma + 1;
        }
    }
    return result;
}

invocation parse(int argc, const char* const* argv) {
    invocation result;
    CLI::App app;
    app.set_help_flag();
    app.allow_extras();
    app.require_subcommand(0, 1);
    add_options(app, global_options(), result);
    for (const command_info& c : commands()) {
        CLI::App* sub = app.add_subcommand(std::string(c.name));
        sub->set_help_flag();
        sub->allow_extras();
        sub->callback([&result, &c] { result.command = &c; });
        add_options(*sub, c.options, result);
        // Again on each command, rather than by fallthrough, which would take a command's name among the arguments
        // of another for a second command.
        add_options(*sub, global_options(), result);
    }
    const command_info* guess = nullptr;
    for (int i = 1; i < argc && guess == nullptr; ++i) {
        guess = find_command(argv[i]);
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        refuse(guess, e, argc, argv);
    }
    const CLI::App* taken = &app;
    for (const CLI::App* sub : app.get_subcommands()) {
        taken = sub;
    }
    const auto own = app.remaining();
    if (!own.empty()) {
        refuse_extra(nullptr, own.front());
    }
    if (taken != &app) {
        for (const std::string& text : taken->remaining()) {
            if (text.starts_with("-") && text.size() > 1) {
                refuse_extra(result.command, text);
            }
            result.arguments.push_back(text);
        }
        if (result.arguments.size() > result.command->arguments.size() && !result.has("--help")) {
            refuse_extra(result.command, result.arguments[result.command->arguments.size()]);
        }
    }
    return result;
}

std::vector<std::string> near_names(std::string_view text, const std::vector<std::string>& names) {
    std::vector<std::pair<std::size_t, std::string>> scored;
    for (const std::string& n : names) {
        const std::size_t distance = edit_distance(text, n);
        const bool begins = text.size() >= 3 && n.starts_with(text);
        if (begins || distance <= (text.size() < 4 ? 1 : std::max<std::size_t>(2, text.size() / 3))) {
            scored.emplace_back(begins ? 0 : distance, n);
        }
    }
    std::stable_sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<std::string> result;
    for (const auto& [distance, n] : scored) {
        if (result.size() < 3) {
            result.push_back(n);
        }
    }
    return result;
}

}  // namespace epjit::tools
