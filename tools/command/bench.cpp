// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/suite.hpp"
#include "tools/command/context.hpp"
#include "tools/command/table.hpp"
#include "tools/command/values.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

namespace epjit::tools {
namespace {

template <class T>
nlohmann::ordered_json or_null(const std::optional<T>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

nlohmann::ordered_json to_json(const bench_report& report) {
    auto rows = nlohmann::ordered_json::array();
    for (const bench_row& r : report.rows) {
        rows.push_back({{"name", r.name},
                        {"us", or_null(r.us)},
                        {"kernel_us", or_null(r.kernel_us)},
                        {"floor_us", or_null(r.floor_us)},
                        {"ratio", or_null(r.ratio())},
                        {"bytes", or_null(r.bytes)},
                        {"sms", or_null(r.sms)},
                        {"exchange", r.exchange},
                        {"shape", r.shape},
                        {"launches", or_null(r.launches)}});
    }
    auto rates = nlohmann::ordered_json::object();
    for (const auto& [name, value] : report.rates) {
        rates[name] = value;
    }
    return {{"rows", std::move(rows)}, {"rates", std::move(rates)}};
}

std::string us_text(const std::optional<double>& us) {
    return !us          ? ""
           : *us < 1    ? fmt::format("{:.3f}", *us)
           : *us < 1000 ? fmt::format("{:.1f}", *us)
                        : fmt::format("{:.0f}", *us);
}

std::string to_text(const bench_report& report) {
    table t({{"name"},
             {"us", true},
             {"kernel us", true},
             {"floor us", true},
             {"ratio", true},
             {"bytes", true},
             {"sms", true},
             {"exchange"},
             {"shape"}});
    for (const bench_row& r : report.rows) {
        t.add({r.name, us_text(r.us), us_text(r.kernel_us), us_text(r.floor_us),
               r.ratio() ? fmt::format("{:.2f}", *r.ratio()) : "", r.bytes ? bytes_text(*r.bytes) : "",
               r.sms ? std::to_string(*r.sms) : "", r.exchange, r.shape});
    }
    std::string text = t.text();
    if (!report.rates.empty()) {
        table rates({{"measured in the same run"}, {"value", true}});
        for (const auto& [name, value] : report.rates) {
            rates.add({name, fmt::format("{:.1f}", value)});
        }
        text += fmt::format("\n{}", rates.text());
    }
    for (const std::string& note : report.notes) {
        text += fmt::format("\n{}\n", note);
    }
    return text;
}

/// What can be measured here; what cannot is a note.
void run_all(const context& ctx, bench_report& report) {
    std::exception_ptr first;
    for (const bench_suite& suite : bench_suites()) {
        try {
            suite.run(ctx, report);
        } catch (const error& e) {
            if (status_of(e.kind()) != exit_missing) {
                throw;
            }
            first = first ? first : std::current_exception();
            report.notes.push_back(fmt::format("suite {} skipped: {}", suite.name, e.message()));
            ctx.log.write(log_level::warn, report.notes.back());
        }
    }
    if (report.rows.empty() && first) {
        std::rethrow_exception(first);
    }
}

/// The suites of a list, "exchange,decode"; all are known before the first is measured.
std::vector<bench_suite> suites_of(const context& ctx, const std::string& list) {
    std::vector<bench_suite> wanted;
    std::istringstream names(list);
    for (std::string item; std::getline(names, item, ',');) {
        const std::span<const bench_suite> all = bench_suites();
        const auto found = std::find_if(all.begin(), all.end(),
                                        [name = plain_name(item)](const bench_suite& s) { return name == s.name; });
        if (found == all.end()) {
            refuse_value("--suite", choices(ctx.call, "--suite"), item);
        }
        wanted.push_back(*found);
    }
    if (wanted.empty()) {
        refuse_value("--suite", choices(ctx.call, "--suite"), list);
    }
    return wanted;
}

}  // namespace

int bench_command(context& ctx) {
    const std::string wanted = ctx.call.value("--suite").value_or("all");
    bench_report report;
    if (plain_name(wanted) == "all") {
        run_all(ctx, report);
    } else {
        for (const bench_suite& suite : suites_of(ctx, wanted)) {
            suite.run(ctx, report);
        }
    }
    if (const auto file = ctx.call.value("--html")) {
        std::ofstream out(*file, std::ios::binary);
        out << html_page(report, fmt::format("epjit {} bench", runtime::version()));
        if (!out.flush()) {
            throw command_error(exit_check_failed, error_kind::config,
                                fmt::format("cannot write {}: {}", *file, std::strerror(errno)), "name another file");
        }
    }
    if (ctx.json) {
        print_json(to_json(report));
    } else {
        print(to_text(report));
    }
    return exit_done;
}

}  // namespace epjit::tools
