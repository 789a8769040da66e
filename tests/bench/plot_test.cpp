// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/plot.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace epjit::tools {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

int count(const std::string& text, std::string_view part) {
    int found = 0;
    for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
        ++found;
    }
    return found;
}

bench_row row(const char* name, const char* exchange, double us, double floor_us) {
    bench_row r;
    r.name = name;
    r.shape = "T=1";
    r.exchange = exchange;
    r.us = us;
    r.floor_us = floor_us;
    return r;
}

TEST(bench_plot, each_job_has_a_figure_with_a_bar_for_each_exchange_and_its_floor) {
    bench_report report;
    report.rows = {row("dispatch", "lsa", 200, 150), row("combine", "lsa", 100, 50),
                   row("dispatch", "sendrecv", 300, 150)};
    report.rows[0].kernel_us = 180;
    const std::string text = plots_of(report);
    EXPECT_EQ(count(text, "<figure>"), 2);
    EXPECT_EQ(count(text, "class=\"us\""), 3);
    EXPECT_EQ(count(text, "class=\"kernel\""), 1);
    EXPECT_EQ(count(text, "class=\"floor\""), 2);
    // 420 wide for the longest of the job, 300 us; bars begin at 130.
    EXPECT_THAT(text, AllOf(HasSubstr("width=\"280.0\""), HasSubstr("width=\"420.0\""), HasSubstr("width=\"252.0\""),
                            HasSubstr("x1=\"340.0\""), HasSubstr("200.0 us, 1.33 x")));
}

TEST(bench_plot, rows_without_an_exchange_or_a_time_have_none_and_names_are_escaped) {
    bench_report report;
    report.rows = {row("compile", "", 10, 5)};
    report.rows.push_back(row("dispatch", "lsa", 1, 1));
    report.rows.back().us.reset();
    EXPECT_EQ(plots_of(report), "");
    EXPECT_THAT(html_page(report, "t"), Not(HasSubstr("<svg")));
    report.rows.push_back(row("a<b", "nccl & permutes", 2, 0));
    const std::string page = html_page(report, "t");
    EXPECT_THAT(page,
                AllOf(HasSubstr("<svg"), HasSubstr("a&lt;b"), HasSubstr("nccl &amp; permutes"), Not(HasSubstr("a<b"))));
    EXPECT_EQ(count(page, "class=\"floor\""), 0);
}

}  // namespace
}  // namespace epjit::tools
