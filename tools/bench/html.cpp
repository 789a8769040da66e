// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/plot.hpp"
#include "tools/bench/suite.hpp"

#include <fmt/format.h>

namespace epjit::tools {
namespace {

std::string number(const std::optional<double>& value, const char* format) {
    return value ? fmt::format(fmt::runtime(format), *value) : std::string();
}

/// A bar from 0 to twice the floor, the floor marked by colour.
std::string bar(const std::optional<double>& ratio) {
    if (!ratio) {
        return {};
    }
    const double width = *ratio > 2 ? 100 : *ratio * 50;
    return fmt::format("<div class=\"bar\"><div style=\"width:{:.0f}%\" class=\"{}\"></div></div>", width,
                       *ratio <= 1      ? "good"
                       : *ratio <= 1.15 ? "near"
                                        : "far");
}

}  // namespace

std::string html_page(const bench_report& report, const std::string& title) {
    std::string rows, rates;
    for (const bench_row& r : report.rows) {
        rows += fmt::format(
            "<tr><td>{}<td>{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td>{}</tr>\n",
            escape_html(r.name), escape_html(r.shape), escape_html(r.exchange), number(r.us, "{:.1f}"),
            number(r.kernel_us, "{:.1f}"), number(r.floor_us, "{:.1f}"), number(r.ratio(), "{:.2f}"), bar(r.ratio()));
    }
    for (const auto& [name, value] : report.rates) {
        rates += fmt::format("<tr><td>{}<td class=n>{:.1f}</tr>\n", escape_html(name), value);
    }
    for (const std::string& note : report.notes) {
        rates += fmt::format("<tr><td colspan=2>{}</tr>\n", escape_html(note));
    }
    return fmt::format(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>{0}</title>\n"
        "<style>body{{font:14px system-ui;margin:2em}}td,th{{padding:.2em .8em;text-align:left}}\n"
        "th{{border-bottom:1px solid}}.n{{text-align:right;font-variant-numeric:tabular-nums}}\n"
        ".bar{{width:12em;height:.8em;background:#8882}}.bar div{{height:100%}}\n"
        ".good{{background:#2a7}}.near{{background:#ca2}}.far{{background:#c44}}\n"
        "figure{{margin:1em 0}}svg{{font:12px system-ui}}svg text{{fill:currentColor}}\n"
        ".us{{fill:#48c}}.kernel{{fill:#136}}.floor{{stroke:#c44;stroke-width:2}}</style>\n"
        "<h1>{0}</h1>\n<table><tr><th>name<th>shape<th>exchange<th>us<th>kernel us<th>floor us<th>ratio<th></tr>\n{1}"
        "</table>\n{3}<h2>Measured in the same run</h2>\n<table>\n{2}</table>\n</html>\n",
        escape_html(title), rows, rates, plots_of(report));
}

}  // namespace epjit::tools
