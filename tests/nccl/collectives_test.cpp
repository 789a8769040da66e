// SPDX-License-Identifier: Apache-2.0
// Uneven collectives, through NCCL and on the CPU.
#include "epjit/collectives.hpp"

#include "tests/nccl/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <numeric>

namespace epjit {
namespace {

using namespace tests;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* version = "2.28.3";
const std::vector<std::int64_t> counts{2, 0, 3};

std::string what_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const error& e) {
        return std::string(name(e.kind())) + ": " + e.what();
    }
    return "no error";
}

float value(int rank, std::int64_t i) {
    return static_cast<float>(100 * (rank + 1) + i);
}
std::vector<float> part_of(int rank, std::int64_t count) {
    std::vector<float> values(count);
    for (std::int64_t i = 0; i < count; ++i) {
        values[i] = value(rank, i);
    }
    return values;
}
const std::vector<float> gathered{100, 101, 300, 301, 302};

TEST(all_gather_v, parts_of_different_sizes_arrive_in_rank_order) {
    EXPECT_THAT(run_ranks(version, 3,
                          [](int rank, communicator& comm, runtime&) {
                              const std::vector<float> mine = part_of(rank, counts[rank]);
                              std::vector<float> all(5, -1);
                              const collective_args args{mine.data(), all.data()};
                              all_gather_v(comm, {&args, 1}, counts, dtype::f32, nullptr);
                              EXPECT_EQ(all, gathered);
                          }),
                Each(""));
}

TEST(all_gather_v, works_in_place) {
    EXPECT_THAT(run_ranks(version, 3,
                          [](int rank, communicator& comm, runtime&) {
                              const std::array<int, 3> at{0, 2, 2};
                              std::vector<float> all(5, -1);
                              const std::vector<float> mine = part_of(rank, counts[rank]);
                              std::copy(mine.begin(), mine.end(), all.begin() + at[rank]);
                              const collective_args args{all.data() + at[rank], all.data()};
                              all_gather_v(comm, {&args, 1}, counts, dtype::f32, nullptr);
                              EXPECT_EQ(all, gathered);
                          }),
                Each(""));
}

TEST(reduce_scatter_v, every_rank_gets_the_sum_of_its_part) {
    EXPECT_THAT(run_ranks(version, 3,
                          [](int rank, communicator& comm, runtime&) {
                              std::vector<float> all(5);
                              for (int i = 0; i < 5; ++i) {
                                  all[i] = value(rank, i);
                              }
                              std::vector<float> mine(counts[rank], -1);
                              const collective_args args{all.data(), mine.data()};
                              reduce_scatter_v(comm, {&args, 1}, counts, dtype::f32, nullptr);
                              const int first = rank == 0 ? 0 : 2;
                              for (int i = 0; i < counts[rank]; ++i) {
                                  EXPECT_EQ(mine[i], 600 + 3 * (first + i));
                              }
                              // In place: the part lies in what is sent.
                              const collective_args place{all.data(), all.data() + first};
                              reduce_scatter_v(comm, {&place, 1}, counts, dtype::f32, nullptr);
                              for (int i = 0; i < counts[rank]; ++i) {
                                  EXPECT_EQ(all[first + i], 600 + 3 * (first + i));
                              }
                          }),
                Each(""));
}

TEST(broadcast, sends_what_the_root_passes_as_send) {
    EXPECT_THAT(run_ranks(version, 3,
                          [](int rank, communicator& comm, runtime&) {
                              const std::vector<std::uint8_t> mine(7, static_cast<std::uint8_t>(10 + rank));
                              std::vector<std::uint8_t> to(7, 99);
                              const collective_args args{rank == 1 ? mine.data() : nullptr, to.data()};
                              broadcast(comm, {&args, 1}, 7, 1, dtype::fp8_e4m3, nullptr);
                              EXPECT_THAT(to, Each(11)) << "not what `receive` held";
                              const collective_args place{to.data(), to.data()};
                              to.assign(7, static_cast<std::uint8_t>(rank));
                              broadcast(comm, {&place, 1}, 7, 2, dtype::fp8_e4m3, nullptr);
                              EXPECT_THAT(to, Each(2));
                          }),
                Each(""));
}

class host_collectives : public testing::Test {
   protected:
    runtime rt_ = stub_runtime(version);
    communicator comm_ = communicator::host(rt_, 3);
};

TEST_F(host_collectives, do_the_same_on_the_cpu) {
    std::array<std::vector<float>, 3> mine, all;
    std::array<collective_args, 3> args;
    for (int r = 0; r < 3; ++r) {
        mine[r] = part_of(r, counts[r]);
        all[r].assign(5, -1);
        args[r] = {mine[r].data(), all[r].data()};
    }
    all_gather_v(comm_, args, counts, dtype::f32, nullptr);
    EXPECT_THAT(all, Each(gathered));
    for (int r = 0; r < 3; ++r) {
        args[r] = {all[r].data(), mine[r].data()};
    }
    reduce_scatter_v(comm_, args, counts, dtype::f32, nullptr);
    EXPECT_THAT(mine[0], ElementsAre(300, 303));
    EXPECT_THAT(mine[2], ElementsAre(900, 903, 906));
    for (int r = 0; r < 3; ++r) {
        mine[r].assign(5, 0);
        args[r] = {all[2].data(), mine[r].data()};
    }
    broadcast(comm_, args, 5, 2, dtype::f32, nullptr);
    EXPECT_THAT(mine, Each(gathered));
}

TEST_F(host_collectives, sums_are_rounded_once) {
    // 256 + 1 + 1 in bf16: 256 when each step rounds, 258 when the sum does.
    const std::uint16_t big = 0x4380, one = 0x3f80;
    std::array<std::uint16_t, 3> out{};
    const std::array<collective_args, 3> args{collective_args{&big, &out[0]}, {&one, &out[1]}, {&one, &out[2]}};
    reduce_scatter_v(comm_, args, std::array<std::int64_t, 3>{1, 0, 0}, dtype::bf16, nullptr);
    EXPECT_EQ(out[0], 0x4381);
}

TEST_F(host_collectives, bad_input_is_refused_with_its_values) {
    std::array<float, 8> memory{};
    std::array<collective_args, 3> args;
    args.fill({memory.data(), memory.data() + 1});
    const auto gather = [&](std::vector<std::int64_t> c) {
        return what_of([&] { all_gather_v(comm_, args, c, dtype::f32, nullptr); });
    };
    EXPECT_THAT(gather({1, 1}), HasSubstr("config: all_gather_v got 2 counts for 3 ranks"));
    EXPECT_THAT(gather({1, -1, 1}), HasSubstr("got count -1 for rank 1"));
    EXPECT_THAT(gather({std::int64_t{1} << 62, 1, 1}), HasSubstr("got count 4611686018427387904 for rank 0"));
    EXPECT_THAT(gather({2, 0, 0}), HasSubstr("send and receive of rank 0 overlap without being in place"));
    args[1].send = nullptr;
    EXPECT_THAT(gather({0, 2, 0}), HasSubstr("rank 1 passed a null pointer for 8 bytes"));
    EXPECT_THAT(what_of([&] { broadcast(comm_, args, 1, 3, dtype::f32, nullptr); }), HasSubstr("from rank 3 of 3"));
    EXPECT_THAT(what_of([&] {
                    broadcast(comm_, {args.data(), 2}, 1, 0, dtype::f32, nullptr);
                }),
                HasSubstr("got 2 arguments, this communicator drives 3 ranks"));
    EXPECT_THAT(what_of([&] { reduce_scatter_v(comm_, args, counts, dtype::fp8_e4m3, nullptr); }),
                HasSubstr("unsupported: reduce_scatter_v of fp8_e4m3"));
    communicator empty;
    EXPECT_THAT(what_of([&] { broadcast(empty, args, 1, 0, dtype::f32, nullptr); }),
                HasSubstr("an empty communicator"));
    communicator loopback = communicator::loopback(rt_, 3);
    EXPECT_THAT(what_of([&] { broadcast(loopback, args, 1, 0, dtype::f32, nullptr); }),
                HasSubstr("unsupported: broadcast on a loopback communicator"));
}

}  // namespace
}  // namespace epjit
