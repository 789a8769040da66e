// SPDX-License-Identifier: Apache-2.0
// The engine of `epjit run` on the host exchange: options, routings, the check, the dump.
#include "tools/run/run.hpp"

#include "epjit/error.hpp"
#include "tests/host/temporary_folder.hpp"
#include "tools/run/experts.hpp"
#include "tools/run/layer.hpp"
#include "tools/run/npy.hpp"
#include "tools/run/routing.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <string>

namespace epjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using tests::temporary_folder;

class run_engine : public testing::Test {
   protected:
    static runtime make_runtime() {
        runtime_options options;
        options.cache_path = "";
        return runtime(options);
    }
    static tools::run_options small() {
        tools::run_options o;
        o.model.name = "small";
        o.model.hidden = 72;
        o.model.num_experts = 13;
        o.model.topk = 4;
        o.exchange = exchange_kind::host;
        o.ranks = 5;
        o.tokens = 11;
        o.check = true;
        return o;
    }
    runtime rt = make_runtime();
};

TEST_F(run_engine, every_layout_dtype_mode_and_reduction_passes_its_check) {
    for (const layout l : {layout::expert_major, layout::flat, layout::masked}) {
        for (const dtype t : {dtype::bf16, dtype::fp16, dtype::f32, dtype::fp8_e4m3}) {
            for (const mode m : {mode::exact, mode::fixed}) {
                for (const reduction r : {reduction::per_rank, reduction::per_host, reduction::per_row}) {
                    tools::run_options o = small();
                    o.layout = l;
                    o.type = t;
                    o.mode = m;
                    o.reduction = r;
                    if (l == layout::flat && r == reduction::per_row) {
                        EXPECT_THROW(tools::run_layer(rt, o), config_error);
                        continue;
                    }
                    const tools::run_result result = tools::run_layer(rt, o);
                    EXPECT_TRUE(result.ok) << result.first_mismatch;
                    EXPECT_GE(result.checked_rows, result.rows + 55);
                    EXPECT_EQ(result.mismatched_rows, 0u);
                    EXPECT_EQ(result.max_error, 0);
                    EXPECT_EQ(result.exchange, exchange_kind::host);
                    EXPECT_TRUE(result.launches.empty());
                    EXPECT_EQ(result.rows, l == layout::flat ? result.rows : 220u);
                }
            }
        }
    }
}

TEST_F(run_engine, every_routing_passes_and_no_tokens_are_fine) {
    for (const char* routing : tools::routing_names) {
        for (const std::int32_t tokens : {0, 1, 37}) {
            tools::run_options o = small();
            o.routing = routing;
            o.tokens = tokens;
            o.iters = 3;
            const tools::run_result result = tools::run_layer(rt, o);
            EXPECT_TRUE(result.ok) << result.first_mismatch;
            EXPECT_EQ(result.rows, static_cast<std::uint64_t>(tokens * 5 * 4)) << routing;
        }
    }
    tools::run_options o = small();
    o.routing = "unfair";
    EXPECT_THROW(tools::run_layer(rt, o), config_error);
}

/// The routing alone: shares of each rank's experts.
tools::reference::problem routed(const std::string& name, std::int32_t experts, std::int32_t ranks) {
    tools::reference::problem p;
    p.ranks = ranks;
    p.experts = experts;
    p.topk = 2;
    tools::reference::place_by_default(p);
    p.inputs.resize(static_cast<std::size_t>(ranks));
    for (auto& in : p.inputs) {
        in.tokens = 200;
    }
    tools::generate_routing(p, name, 5);
    return p;
}

TEST_F(run_engine, routings_have_the_shape_that_their_names_promise) {
    const auto counts = [](const tools::reference::problem& p) {
        std::vector<int> n(static_cast<std::size_t>(p.experts));
        for (const auto& in : p.inputs) {
            for (std::size_t i = 0; i < in.routing.size(); i += 16) {
                std::array<std::int64_t, 2> ids{};
                std::memcpy(ids.data(), in.routing.data() + i, 16);
                EXPECT_NE(ids[0], ids[1]);
                ++n[static_cast<std::size_t>(ids[0])];
                ++n[static_cast<std::size_t>(ids[1])];
            }
        }
        return n;
    };
    const std::vector<int> uniform = counts(routed("uniform", 16, 4));
    EXPECT_GT(*std::min_element(uniform.begin(), uniform.end()), 50);
    EXPECT_LT(*std::max_element(uniform.begin(), uniform.end()), 150);
    const std::vector<int> zipf = counts(routed("zipf", 16, 4));
    EXPECT_GT(zipf[0], 4 * zipf[15]);
    const std::vector<int> one = counts(routed("one_rank", 16, 4));
    EXPECT_EQ(one[0] + one[1] + one[2] + one[3], 1600);
    const tools::reference::problem grouped = routed("grouped", 16, 4);
    for (const auto& in : grouped.inputs) {
        for (std::size_t i = 0; i < in.routing.size(); i += 16) {
            std::array<std::int64_t, 2> ids{};
            std::memcpy(ids.data(), in.routing.data() + i, 16);
            const auto apart = std::abs(ids[0] / 4 - ids[1] / 4);
            EXPECT_TRUE(apart <= 1 || apart == 3) << ids[0] << " " << ids[1];  // neighbouring ranks, in a ring of 4
        }
    }
}

TEST_F(run_engine, ranks_get_different_data_and_a_seed_repeats_it) {
    const tools::reference::problem a = routed("uniform", 16, 4);
    const tools::reference::problem b = routed("uniform", 16, 4);
    EXPECT_EQ(a.inputs[2].routing, b.inputs[2].routing);
    EXPECT_NE(a.inputs[2].routing, a.inputs[3].routing);
    EXPECT_NE(a.inputs[2].weights, a.inputs[3].weights);
}

TEST_F(run_engine, a_routing_file_is_used_as_it_is) {
    const temporary_folder folder;
    const std::string path = folder.path("ids.npy");
    // One token to all, one with a dropped, a bad and a duplicate id.
    const std::vector<std::int64_t> ids{0, 1, 2, 3, -1, 99, 5, 5};
    tools::write_npy(path, std::array<std::int64_t, 2>{2, 4}, ids);
    tools::run_options o = small();
    o.routing = path;
    o.tokens.reset();
    const tools::run_result result = tools::run_layer(rt, o);
    EXPECT_TRUE(result.ok) << result.first_mismatch;
    EXPECT_THAT(result.tokens, ElementsAre(2, 2, 2, 2, 2));
    EXPECT_EQ(result.status.bad_ids, 5u);
    EXPECT_EQ(result.status.duplicate_ids, 5u);
    EXPECT_EQ(result.rows, 25u);
}

TEST_F(run_engine, a_routing_file_that_does_not_fit_is_an_error_with_both_values) {
    const temporary_folder folder;
    const std::string path = folder.path("ids.npy");
    const std::vector<std::int64_t> ids(24, 1);
    const auto message = [&](std::vector<std::int64_t> shape, std::optional<std::int32_t> tokens) -> std::string {
        tools::write_npy(path, shape, std::span(ids).first(24));
        tools::run_options o = small();
        o.routing = path;
        o.tokens = tokens;
        try {
            tools::run_layer(rt, o);
        } catch (const config_error& e) {
            return e.what();
        }
        return "no error";
    };
    EXPECT_THAT(message({12, 2}, {}), HasSubstr("K = 2 experts per token, the model has 4"));
    EXPECT_THAT(message({3, 2, 4}, {}), HasSubstr("R = 3 ranks, the run has 5"));
    EXPECT_THAT(message({3, 2, 4}, {}), HasSubstr("--ranks 3"));
    EXPECT_THAT(message({6, 4}, 7), HasSubstr("--tokens 7"));
}

TEST_F(run_engine, what_is_not_in_this_version_is_refused_by_name) {
    for (const exchange_kind kind :
         {exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense, exchange_kind::hybrid}) {
        tools::run_options o = small();
        o.exchange = kind;
        try {
            tools::run_layer(rt, o);
            FAIL();
        } catch (const unsupported_error& e) {
            EXPECT_THAT(e.what(), HasSubstr(std::string(name(kind))));
        }
    }
    tools::run_options o = small();
    o.graph = true;
    EXPECT_THROW(tools::run_layer(rt, o), config_error) << "exact mode waits for the counts";
    o.mode = mode::fixed;
    EXPECT_THROW(tools::run_layer(rt, o), unsupported_error) << "host has no graphs";
    o = small();
    o.ranks = 65;
    EXPECT_THROW(tools::run_layer(rt, o), config_error);
}

TEST_F(run_engine, experts_are_uploaded_once_and_iterations_upload_nothing) {
    for (const layout l : {layout::expert_major, layout::flat}) {
        for (const std::int32_t iters : {1, 7}) {
            tools::run_options o = small();
            o.layout = l;
            o.iters = iters;
            const std::uint64_t before = rt.counters().uploads;
            EXPECT_TRUE(tools::run_layer(rt, o).ok);
            // Scales and biases of each of 5 ranks.
            EXPECT_EQ(rt.counters().uploads - before, 10U) << iters << " iterations";
        }
    }
}

TEST_F(run_engine, layers_share_resident_experts) {
    tools::reference::problem p;
    p.ranks = 3;
    p.experts = 4;  // not as many on every rank
    p.topk = 2;
    p.hidden = 24;
    p.input_stride = p.dispatch_stride = p.combine_stride = p.hidden;
    place_by_default(p);
    p.inputs.resize(3);
    for (auto& in : p.inputs) {
        in.tokens = 6;
        in.capacity = 40;
    }
    tools::generate_routing(p, "uniform", 3);
    tools::generate_inputs(p, 3);
    make_experts(p, 3);
    communicator comm = communicator::host(rt, 3);
    exchange ex(comm, tools::config_of(p, exchange_kind::host));
    const auto memory = tools::make_memory_space(comm);
    const tools::resident_experts experts(comm, p);
    const std::uint64_t uploads = rt.counters().uploads;
    const auto plain = tools::run_problem(ex, *memory, p);
    tools::layer_options options;
    options.experts = &experts;
    for (int layer = 0; layer < 4; ++layer) {
        const auto seen = tools::run_problem(ex, *memory, p, options);
        for (std::size_t rank = 0; rank < 3; ++rank) {
            EXPECT_EQ(seen.ranks[rank].result, plain.ranks[rank].result);
        }
    }
    EXPECT_EQ(rt.counters().uploads, uploads);
    EXPECT_EQ(experts.uploads(), 6U);
}

TEST_F(run_engine, an_interrupt_ends_the_run) {
    const std::atomic<bool> cancel = true;
    tools::run_options o = small();
    o.cancel = &cancel;
    try {
        tools::run_layer(rt, o);
        FAIL();
    } catch (const error& e) {
        EXPECT_EQ(e.kind(), error_kind::cancelled);
    }
}

/// A dumped array; `values` holds f32 or i64 as doubles, exact for what is in a dump.
struct dumped {
    std::string header;
    std::vector<double> values;
};

dumped read_dump(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(in), {});
    EXPECT_GT(bytes.size(), 64u) << path;
    const std::size_t end = bytes.find('\n') + 1;
    dumped d{bytes.substr(10, end - 10), {}};
    const bool floats = d.header.find("<f4") != std::string::npos;
    for (std::size_t at = end; at < bytes.size(); at += floats ? 4 : 8) {
        float f = 0;
        std::int64_t i = 0;
        std::memcpy(floats ? static_cast<void*>(&f) : &i, bytes.data() + at, floats ? 4 : 8);
        d.values.push_back(floats ? static_cast<double>(f) : static_cast<double>(i));
    }
    return d;
}

/// Reads a dump as an outsider would and works the layer out again in double precision.
void check_dump(const tools::run_options& o, double tolerance) {
    const auto load = [&](const std::string& name) { return read_dump(o.dump_dir + "/" + name + ".npy").values; };
    const auto H = static_cast<std::size_t>(o.model.hidden);
    const auto K = static_cast<std::size_t>(o.model.topk);
    const auto T = static_cast<std::size_t>(*o.tokens);
    const std::vector<double> scale = load("expert_scale");
    const std::vector<double> bias = load("expert_bias");
    ASSERT_EQ(scale.size(), static_cast<std::size_t>(o.model.num_experts));
    ASSERT_EQ(bias.size(), scale.size() * H);
    std::map<std::array<std::size_t, 3>, std::vector<double>> arrived;  // source rank, token, expert -> row
    for (int r = 0; r < o.ranks; ++r) {
        const auto rows = load("rows." + std::to_string(r));
        const auto expert = load("row_expert." + std::to_string(r));
        const auto source = load("row_source." + std::to_string(r));
        ASSERT_EQ(rows.size(), expert.size() * H);
        ASSERT_EQ(source.size(), expert.size() * 2);
        for (std::size_t i = 0; i < expert.size(); ++i) {
            const std::array<std::size_t, 3> key{static_cast<std::size_t>(source[2 * i]),
                                                 static_cast<std::size_t>(source[2 * i + 1]),
                                                 static_cast<std::size_t>(expert[i])};
            EXPECT_TRUE(arrived
                            .emplace(key, std::vector<double>(rows.begin() + static_cast<std::ptrdiff_t>(i * H),
                                                              rows.begin() + static_cast<std::ptrdiff_t>((i + 1) * H)))
                            .second);
        }
    }
    EXPECT_EQ(arrived.size(), T * K * static_cast<std::size_t>(o.ranks));
    for (std::size_t r = 0; r < static_cast<std::size_t>(o.ranks); ++r) {
        const auto x = load("x." + std::to_string(r));
        const auto ids = load("topk_idx." + std::to_string(r));
        const auto weights = load("topk_weights." + std::to_string(r));
        const auto out = load("out." + std::to_string(r));
        ASSERT_EQ(x.size(), T * H);
        ASSERT_EQ(ids.size(), T * K);
        ASSERT_EQ(weights.size(), T * K);
        ASSERT_EQ(out.size(), T * H);
        for (std::size_t t = 0; t < T; ++t) {
            std::vector<double> sum(H);
            for (std::size_t k = 0; k < K; ++k) {
                const auto e = static_cast<std::size_t>(ids[t * K + k]);
                const auto row = arrived.find({r, t, e});
                ASSERT_NE(row, arrived.end());
                for (std::size_t h = 0; h < H; ++h) {
                    ASSERT_NEAR(row->second[h], x[t * H + h], o.type == dtype::fp8_e4m3 ? 0.13 : 0.0);
                    sum[h] += weights[t * K + k] * (scale[e] * row->second[h] + bias[e * H + h]);
                }
            }
            for (std::size_t h = 0; h < H; ++h) {
                ASSERT_NEAR(out[t * H + h], sum[h], tolerance);
            }
        }
    }
}

TEST_F(run_engine, a_dump_lets_an_outsider_work_the_layer_out_again) {
    for (const layout l : {layout::expert_major, layout::flat, layout::masked}) {
        for (const dtype t : {dtype::f32, dtype::bf16, dtype::fp8_e4m3}) {
            const temporary_folder folder;
            tools::run_options o = small();
            o.layout = l;
            o.type = t;
            o.mode = l == layout::flat ? mode::fixed : mode::exact;
            o.dump_dir = folder.path("a/b");
            EXPECT_TRUE(tools::run_layer(rt, o).ok);
            check_dump(o, t == dtype::f32 ? 1e-5 : 0.06);
            EXPECT_THAT(read_dump(o.dump_dir + "/x.0.npy").header,
                        HasSubstr("'<f4', 'fortran_order': False, 'shape': (11, 72, )"));
            EXPECT_THAT(read_dump(o.dump_dir + "/topk_idx.4.npy").header, HasSubstr("'<i8'"));
        }
    }
    tools::run_options o = small();
    o.dump_dir = "/proc/nothing";
    EXPECT_THROW(tools::run_layer(rt, o), config_error);
}

}  // namespace
}  // namespace epjit
