// SPDX-License-Identifier: Apache-2.0
// `epjit run` over real ranks: the processes of a launcher, and the threads of one process.
#include "tests/multi_gpu/faults.hpp"
#include "tests/multi_gpu/run_request.hpp"

#include <cstdlib>
#include <filesystem>
#include <unistd.h>

namespace epjit::tests {
namespace {

class run_over_real_ranks : public faults {
   protected:
    static std::vector<tools::run_options> runs() {
        std::vector<tools::run_options> all;
        for (const layout l : {layout::expert_major, layout::flat, layout::masked}) {
            tools::run_options o;
            o.exchange = GetParam().kind;
            o.layout = l;
            o.iters = 3;
            all.push_back(o);
            o.mode = mode::fixed;
            o.graph = true;
            o.reduction = l == layout::masked ? reduction::per_row : reduction::per_host;
            all.push_back(o);
        }
        return all;
    }
};

TEST_P(run_over_real_ranks, every_process_of_a_launcher_reports_what_all_found) {
    const std::string folder = fmt::format("{}/epjit-run-{}", ::testing::TempDir(), ::getpid());
    const rank_setup setup{2, true, false, 0};
    const int port = next_port();
    std::deque<child_process> children;
    for (int rank = 0; rank < 2; ++rank) {
        children.emplace_back("run", launcher_environment(setup, rank, port));
    }
    std::vector<tools::run_options> all = runs();
    all.back().dump_dir = folder;
    for (const tools::run_options& o : all) {
        SCOPED_TRACE(write_run_request(o));
        for (child_process& child : children) {
            child.send(write_run_request(o));
        }
        std::string first;
        for (child_process& child : children) {
            const auto line = child.receive(in_ms(180'000));
            ASSERT_TRUE(line);
            EXPECT_EQ(line->substr(0, 5), "ok\t0\t") << *line;
            EXPECT_NE(line->find(name(GetParam().kind)), std::string::npos) << *line;
            first = first.empty() ? *line : first;
            EXPECT_EQ(*line, first);
        }
    }
    for (const char* file : {"x.0.npy", "x.1.npy", "rows.0.npy", "rows.1.npy", "out.1.npy", "expert_bias.npy"}) {
        EXPECT_TRUE(std::filesystem::exists(folder + "/" + file)) << file;
    }
    std::filesystem::remove_all(folder);
}

TEST_P(run_over_real_ranks, one_process_runs_a_thread_for_each_gpu) {
    for (tools::run_options o : runs()) {
        SCOPED_TRACE(write_run_request(o));
        o = read_run_request(write_run_request(o));
        o.ranks = 2;
        const tools::run_result r = tools::run_layer(gpu_runtime(), o);
        EXPECT_TRUE(r.ok) << r.first_mismatch;
        EXPECT_EQ(r.exchange, GetParam().kind);
        EXPECT_EQ(r.ranks, 2);
        EXPECT_GE(r.checked_rows, 100U);
    }
}

INSTANTIATE_TEST_SUITE_P(each, run_over_real_ranks,
                         ::testing::Values(exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense),
                         label_of);

}  // namespace
}  // namespace epjit::tests
