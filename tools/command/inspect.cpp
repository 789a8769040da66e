// SPDX-License-Identifier: Apache-2.0
#include "tools/command/context.hpp"
#include "tools/command/disassembly.hpp"
#include "tools/command/machine.hpp"
#include "tools/command/recompile.hpp"
#include "tools/command/table.hpp"
#include "tools/command/values.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <set>

namespace epjit::tools {
namespace {

using json = nlohmann::ordered_json;

constexpr std::size_t least_digits = 6;

/// The entry whose key begins with `text`; of several compilers' the one used last.
cache::entry_info find_entry(const cache::store& store, const std::string& text) {
    const std::string wanted = plain_name(text);
    if (wanted.size() < least_digits || wanted.size() > 32 ||
        wanted.find_first_not_of("0123456789abcdef") != std::string::npos) {
        throw config_error(fmt::format("KEY: expected {} to 32 hex digits, found \"{}\"", least_digits, text),
                           "`epjit cache list` shows the keys");
    }
    std::set<std::string> keys;
    std::optional<cache::entry_info> found;
    for (cache::entry_info& e : store.list()) {
        const std::string key = e.key.hex();
        if (key.starts_with(wanted)) {
            keys.insert(key);
            if (!found || e.last_used > found->last_used) {
                found = std::move(e);
            }
        }
    }
    if (!found) {
        throw config_error(fmt::format("no entry's key begins with {}", wanted), "`epjit cache list` shows the keys");
    }
    if (keys.size() > 1) {
        throw config_error(
            fmt::format("the keys of {} entries begin with {}: {}", keys.size(), wanted, fmt::join(keys, ", ")),
            "give more digits");
    }
    return *found;
}

json to_json(const jit::artifact& a, const cache::entry_info& entry) {
    json kernels = json::array();
    for (const jit::kernel_info& k : a.kernels) {
        kernels.push_back({{"name", k.name},
                           {"lowered", k.lowered},
                           {"registers", k.registers},
                           {"shared_bytes", k.shared_bytes},
                           {"spill_bytes", k.spill_bytes}});
    }
    return {{"key", a.key.hex()},
            {"spec", a.spec},
            {"arch", a.arch},
            {"compiler", a.compiler.description},
            {"path", entry.path},
            {"bytes", entry.bytes},
            {"last_used", entry.last_used},
            {"cubin_bytes", a.cubin.size()},
            {"compile_ms", a.compile_ms},
            {"options", a.options},
            {"template_digest", a.template_digest},
            {"library_version", a.library_version},
            {"spill_exception", a.spill_exception},
            {"kernels", std::move(kernels)}};
}

std::string summary(const jit::artifact& a, const cache::entry_info& entry) {
    table facts({{"key"}, {a.key.hex()}});
    facts.add({"variant", a.spec});
    facts.add({"compiler", a.compiler.description});
    facts.add({"options", a.options});
    facts.add({"compiled", fmt::format("in {:.0f} ms by epjit {}", a.compile_ms, a.library_version)});
    facts.add({"templates", a.template_digest});
    facts.add({"cubin", bytes_text(a.cubin.size())});
    facts.add({"last used", age_text(entry.last_used, static_cast<std::int64_t>(std::time(nullptr)))});
    facts.add({"file", entry.path});
    if (!a.spill_exception.empty()) {
        facts.add({"spills", a.spill_exception});
    }
    table kernels({{"kernel"}, {"registers", true}, {"shared bytes", true}, {"spill bytes", true}});
    for (const jit::kernel_info& k : a.kernels) {
        kernels.add(
            {k.name, std::to_string(k.registers), std::to_string(k.shared_bytes), std::to_string(k.spill_bytes)});
    }
    return fmt::format("{}\n{}", facts.text(), kernels.text());
}

/// The kernels' names in place of their symbols, and the templates' in place of paths: NVRTC takes names for files of
/// the current folder.
std::vector<kernel_instructions> counted(const context& ctx, const jit::artifact& a) {
    std::vector<kernel_instructions> all = count_instructions(compile_with_lines(ctx, a));
    const std::string folder = std::filesystem::current_path().string() + "/";
    for (kernel_instructions& k : all) {
        for (call_instructions& c : k.calls) {
            if (c.place.file.starts_with(folder)) {
                c.place.file.erase(0, folder.size());
            }
        }
        const auto known = std::find_if(a.kernels.begin(), a.kernels.end(),
                                        [&](const jit::kernel_info& i) { return i.lowered == k.symbol; });
        k.symbol = known != a.kernels.end() ? known->name : k.symbol;
    }
    return all;
}

json to_json(const std::vector<kernel_instructions>& all) {
    json out = json::array();
    for (const kernel_instructions& k : all) {
        json calls = json::array();
        for (const call_instructions& c : k.calls) {
            calls.push_back(
                {{"file", c.place.file}, {"line", c.place.line}, {"depth", c.depth}, {"instructions", c.instructions}});
        }
        out.push_back({{"kernel", k.symbol}, {"instructions", k.instructions}, {"calls", std::move(calls)}});
    }
    return out;
}

/// What a line of a template says, without what is around it.
std::string text_of(const jit::template_set& templates, const code_place& place) {
    constexpr std::size_t most = 70;
    std::string_view text = templates.find(place.file);
    for (int line = 1; line < place.line; ++line) {
        const std::size_t end = text.find('\n');
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
    text = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
    return std::string(text.substr(0, most));
}

/// The calls that are a hundredth of their kernel or more, inner ones below outer ones.
std::string lines_text(const jit::template_set& templates, const std::vector<kernel_instructions>& all) {
    constexpr int deepest = 4;
    table t({{"instructions", true}, {"where"}, {"what"}});
    for (const kernel_instructions& k : all) {
        t.add({std::to_string(k.instructions), k.symbol, ""});
        for (const call_instructions& c : k.calls) {
            if (c.depth < deepest && c.instructions * 100 >= k.instructions) {
                const auto indent = static_cast<std::size_t>(2 * (c.depth + 1));
                t.add({std::to_string(c.instructions),
                       fmt::format("{}{}:{}", std::string(indent, ' '), c.place.file, c.place.line),
                       text_of(templates, c.place)});
            }
        }
    }
    return t.text();
}

std::string ended(std::string text) {
    if (!text.empty() && text.back() != '\n') {
        text += '\n';
    }
    return text;
}

}  // namespace

int inspect_command(context& ctx) {
    const auto store = open_strict_store(ctx, false);
    const cache::entry_info entry = find_entry(*store, ctx.call.arguments[0]);
    const auto served = store->find(entry.key, &entry.compiler);
    if (!served || !served->value) {
        throw cache_error(fmt::format("the entry {} is damaged and was set aside", entry.path),
                          "warm the model again: it is compiled anew");
    }
    const jit::artifact& a = *served->value;
    std::vector<std::pair<const char*, std::string>> parts;
    if (ctx.call.has("--source")) {
        parts.emplace_back("source", a.source);
    }
    if (ctx.call.has("--ptx")) {
        parts.emplace_back("ptx", compile_to_ptx(ctx, a));
    }
    if (ctx.call.has("--sass")) {
        parts.emplace_back("sass", disassemble(a));
    }
    std::vector<kernel_instructions> lines;
    if (ctx.call.has("--lines")) {
        lines = counted(ctx, a);
        if (!ctx.json) {
            parts.emplace_back("lines", lines_text(open_templates(ctx), lines));
        }
    }
    if (ctx.call.has("--log")) {
        parts.emplace_back("log", a.log);
    }
    if (ctx.json) {
        json result = to_json(a, entry);
        for (const auto& [name, text] : parts) {
            result[name] = text;
        }
        if (ctx.call.has("--lines")) {
            result["lines"] = to_json(lines);
        }
        print_json(result);
        return exit_done;
    }
    if (parts.empty()) {
        print(summary(a, entry));
    }
    for (const auto& [name, text] : parts) {  // one part alone is printed as it is, to be piped on
        print(parts.size() == 1 ? ended(text) : fmt::format("// ---- {}\n{}", name, ended(text)));
    }
    return exit_done;
}

}  // namespace epjit::tools
