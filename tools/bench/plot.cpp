// SPDX-License-Identifier: Apache-2.0
// Bars of one job on each exchange, the floor drawn in, as SVG inside the page.
#include "tools/bench/plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace epjit::tools {
namespace {

constexpr double label_width = 130, plot_width = 420, value_width = 130, bar_height = 14, bar_step = 20;

using job_rows = std::vector<const bench_row*>;

/// Rows of the same name and shape, in the order of their first.
std::vector<job_rows> jobs_of(const bench_report& report) {
    std::vector<job_rows> jobs;
    for (const bench_row& r : report.rows) {
        if (!r.us || r.exchange.empty()) {
            continue;
        }
        const auto same = std::find_if(jobs.begin(), jobs.end(), [&](const job_rows& job) {
            return job.front()->name == r.name && job.front()->shape == r.shape;
        });
        if (same != jobs.end()) {
            same->push_back(&r);
        } else {
            jobs.push_back({&r});
        }
    }
    return jobs;
}

std::string bar_of(const bench_row& r, double top, double us_width) {
    const double width = *r.us * us_width;
    std::string text = fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"end\">{}</text>", label_width - 8,
                                   top + bar_height - 3, escape_html(r.exchange));
    text += fmt::format("<rect x=\"{:.0f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.0f}\" class=\"us\"/>",
                        label_width, top, width, bar_height);
    if (r.kernel_us) {
        text += fmt::format("<rect x=\"{:.0f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"4\" class=\"kernel\"/>",
                            label_width, top + bar_height - 4, *r.kernel_us * us_width);
    }
    text += fmt::format("<text x=\"{:.1f}\" y=\"{:.0f}\">{:.1f} us{}</text>\n", label_width + width + 6,
                        top + bar_height - 3, *r.us, r.ratio() ? fmt::format(", {:.2f} x", *r.ratio()) : "");
    return text;
}

std::string figure_of(const job_rows& job) {
    double most = 0, floor_us = 0;
    for (const bench_row* r : job) {
        floor_us = std::max(floor_us, r->floor_us.value_or(0));
        most = std::max({most, *r->us, r->floor_us.value_or(0), r->kernel_us.value_or(0)});
    }
    const double us_width = most > 0 ? plot_width / most : 0;
    const double height = bar_step * static_cast<double>(job.size());
    std::string text = fmt::format("<figure><figcaption>{}, {}</figcaption>\n", escape_html(job.front()->name),
                                   escape_html(job.front()->shape));
    text += fmt::format("<svg width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" role=\"img\">\n",
                        label_width + plot_width + value_width, height);
    double top = (bar_step - bar_height) / 2;
    for (const bench_row* r : job) {
        text += bar_of(*r, top, us_width);
        top += bar_step;
    }
    if (floor_us > 0) {
        const double x = label_width + floor_us * us_width;
        text +=
            fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"0\" y2=\"{1:.0f}\" class=\"floor\"/>\n", x, height);
    }
    return text + "</svg></figure>\n";
}

}  // namespace

std::string escape_html(std::string_view text) {
    std::string result;
    for (const char c : text) {
        switch (c) {
            case '&': result += "&amp;"; break;
            case '<': result += "&lt;"; break;
            case '>': result += "&gt;"; break;
            default: result += c;
        }
    }
    return result;
}

std::string plots_of(const bench_report& report) {
    const std::vector<job_rows> jobs = jobs_of(report);
    if (jobs.empty()) {
        return {};
    }
    std::string text =
        "<h2>Beside the floor</h2>\n<p>Bars: time between events; the thin one: kernels alone; the line: the "
        "floor.</p>\n";
    for (const job_rows& job : jobs) {
        text += figure_of(job);
    }
    return text;
}

}  // namespace epjit::tools
