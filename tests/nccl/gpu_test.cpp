// SPDX-License-Identifier: Apache-2.0
// The real NCCL between real GPUs: threads of one process, and processes that a launcher's variables bring together.
// One self-contained program, so that it can be carried to a machine with several GPUs; it skips where there are fewer.
#include "epjit/collectives.hpp"
#include "epjit/communicator.hpp"
#include "epjit/error.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/nccl/communicator.hpp"
#include "tests/nccl/support.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <spawn.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

extern char** environ;

namespace epjit {
namespace {

using namespace tests;
using host::device_buffer;
using host::symmetric_window;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;

constexpr int limit_ms = 60'000;

runtime real_runtime(int wait_ms = limit_ms) {
    runtime_options options;
    options.cache_path = "";
    options.wait_timeout_ms = wait_ms;
    options.first_wait_timeout_ms = wait_ms;
    return runtime(options);
}

/// How many GPUs there are, at most 4; the reason to skip when fewer than two or no NCCL.
int usable_gpus(std::string& why_not) {
    try {
        runtime rt = real_runtime();
        const int found = rt.state().driver()->num_devices;
        rt.state().nccl();
        if (found < 2) {
            why_not = fmt::format("needs 2 GPUs, there is {}", found);
        }
        return std::min(found, 4);
    } catch (const error& e) {
        why_not = e.message();
        return 0;
    }
}

class real_nccl : public testing::Test {
   protected:
    void SetUp() override {
        std::string why_not;
        ranks_ = usable_gpus(why_not);
        if (!why_not.empty()) {
            GTEST_SKIP() << why_not;
        }
    }

    /// A thread for each GPU; what each threw.
    outcomes run(const std::function<void(int, communicator&)>& body, int wait_ms = limit_ms) {
        runtime rt = real_runtime(wait_ms);
        std::vector<int> devices(ranks_);
        std::iota(devices.begin(), devices.end(), 0);
        std::vector<communicator> comms(ranks_);
        communicator::local(rt, devices, comms);
        outcomes errors(ranks_);
        std::vector<std::thread> threads;
        for (int r = 0; r < ranks_; ++r) {
            threads.emplace_back([&, r] {
                try {
                    body(r, comms[r]);
                } catch (const error& e) {
                    errors[r] = std::string(name(e.kind())) + ": " + e.what();
                }
                comms[r] = communicator();
            });
        }
        for (std::thread& t : threads) {
            t.join();
        }
        return errors;
    }

    int ranks_ = 0;
};

std::vector<float> pattern(int from, int to, std::size_t count) {
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) {
        values[i] = static_cast<float>(1000 * from + 100 * to) + static_cast<float>(i % 97);
    }
    return values;
}

/// Uneven parts to and from every peer, on device memory.
struct parts {
    std::vector<device_buffer> out, in;
    std::vector<host::peer_transfer> transfers;
    std::vector<std::size_t> counts;

    parts(const host::nccl_communicator& comm) {
        for (int peer = 0; peer < comm.size(); ++peer) {
            const auto size = [](int from, int to) { return static_cast<std::size_t>(1 + 5000 * from + 77 * to); };
            const std::vector<float> values = pattern(comm.rank(), peer, size(comm.rank(), peer));
            out.push_back(host::to_device<float>(comm.context(), values));
            counts.push_back(size(peer, comm.rank()));
            in.emplace_back(comm.context(), counts.back() * sizeof(float));
            transfers.push_back({peer, out.back().data(), out.back().bytes(), in.back().data(), in.back().bytes()});
        }
    }
    void expect_arrived(const host::nccl_communicator& comm, stream_t stream) const {
        for (int peer = 0; peer < comm.size(); ++peer) {
            EXPECT_EQ(host::to_host<float>(comm.context(), in[peer].data(), counts[peer], stream),
                      pattern(peer, comm.rank(), counts[peer]))
                << "rank " << comm.rank() << " from " << peer;
        }
    }
};

void check_everything(int rank, communicator& comm) {
    host::nccl_communicator& nccl = nccl_of(comm);
    const int ranks = comm.num_ranks();
    std::vector<int> seen(ranks);
    nccl.all_gather_host(&rank, seen.data(), sizeof rank);
    for (int r = 0; r < ranks; ++r) {
        EXPECT_EQ(seen[r], r);
    }
    nccl.warm();
    const host::gpu_stream stream(nccl.context());
    const parts p(nccl);
    for (int i = 0; i < 3; ++i) {
        nccl.exchange(p.transfers, stream.get());
        nccl.watch("exchange", stream.get());
    }
    p.expect_arrived(nccl, stream.get());

    std::vector<std::int64_t> counts(ranks, 300);
    counts[0] = 0;
    const auto total = static_cast<std::size_t>(300 * (ranks - 1));
    const device_buffer mine = host::to_device<float>(nccl.context(), pattern(rank, 0, 300));
    const device_buffer all(nccl.context(), total * sizeof(float));
    const collective_args gather{mine.data(), all.data()};
    all_gather_v(comm, {&gather, 1}, counts, dtype::f32, stream.get());
    std::vector<float> expected;
    for (int r = 1; r < ranks; ++r) {
        const std::vector<float> part = pattern(r, 0, 300);
        expected.insert(expected.end(), part.begin(), part.end());
    }
    EXPECT_EQ(host::to_host<float>(nccl.context(), all.data(), total, stream.get()), expected);
    const collective_args scatter{all.data(), mine.data()};
    reduce_scatter_v(comm, {&scatter, 1}, counts, dtype::f32, stream.get());
    if (rank > 0) {
        std::vector<float> sum = pattern(rank, 0, 300);
        for (float& v : sum) {
            v *= static_cast<float>(ranks);
        }
        EXPECT_EQ(host::to_host<float>(nccl.context(), mine.data(), 300, stream.get()), sum);
    }
    const collective_args from_last{mine.data(), all.data()};
    broadcast(comm, {&from_last, 1}, 300, ranks - 1, dtype::f32, stream.get());
    EXPECT_EQ(host::to_host<float>(nccl.context(), all.data(), 1, stream.get())[0],
              static_cast<float>(1000 * (ranks - 1) * ranks));
    nccl.check();
}

void check_window(int rank, communicator& comm) {
    host::nccl_communicator& nccl = nccl_of(comm);
    const std::size_t bytes = 3 << 20;
    const symmetric_window window(comm.state().nccl, bytes);
    const host::gpu_stream stream(nccl.context());
    EXPECT_EQ(window.reachable().size(), static_cast<std::size_t>(comm.num_ranks()));
    const auto zero = host::to_host<std::uint8_t>(nccl.context(), window.local(), bytes, stream.get());
    EXPECT_THAT(zero, Each(0));
    const device_buffer mine = host::to_device<float>(nccl.context(), pattern(rank, 0, 1000));
    nccl.barrier_host();
    for (const int r : window.reachable()) {
        auto* to = static_cast<float*>(window.peer(r)) + 1000 * rank;
        host::copy_on_device(nccl.context(), to, mine.data(), 4000, stream.get());
    }
    stream.synchronize();
    nccl.barrier_host();
    for (const int r : window.reachable()) {
        const auto* from = static_cast<const float*>(window.local()) + 1000 * r;
        EXPECT_EQ(host::to_host<float>(nccl.context(), from, 1000, stream.get()), pattern(r, 0, 1000));
    }
    nccl.barrier_host();
}

TEST_F(real_nccl, threads_of_a_process_exchange_data) {
    EXPECT_THAT(run(check_everything), Each(""));
}

TEST_F(real_nccl, data_also_moves_on_a_non_blocking_communicator) {
    const variable off("EPJIT_NCCL_BLOCKING", "0");
    EXPECT_THAT(run(check_everything), Each(""));
}

TEST_F(real_nccl, windows_reach_every_gpu_of_the_machine) {
    const std::string reason = host::no_windows_reason(*real_runtime().state().nccl());
    const outcomes errors = run([](int rank, communicator& comm) {
        for (int i = 0; i < 3; ++i) {
            check_window(rank, comm);
        }
    });
    if (reason.empty()) {
        EXPECT_THAT(errors, Each(""));
    } else {
        EXPECT_THAT(errors, Each(HasSubstr(reason)));
    }
}

TEST_F(real_nccl, exchanges_are_captured_and_replayed) {
    EXPECT_THAT(run([](int, communicator& comm) {
                    host::nccl_communicator& nccl = nccl_of(comm);
                    nccl.warm();
                    const host::gpu_stream stream(nccl.context());
                    const parts p(nccl);
                    const host::driver_api& driver = nccl.context()->api();
                    const host::scoped_context current(*nccl.context());
                    host::cu_graph graph = nullptr;
                    host::cu_graph_exec exec = nullptr;
                    driver.check(driver.stream_begin_capture(stream.get(), host::capture_mode::thread_local_),
                                 "capture");
                    nccl.exchange(p.transfers, stream.get());
                    nccl.watch("captured", stream.get());
                    driver.check(driver.stream_end_capture(stream.get(), &graph), "end of capture");
                    driver.check(driver.graph_instantiate(&exec, graph, 0), "instantiate");
                    for (int i = 0; i < 3; ++i) {
                        for (const device_buffer& in : p.in) {
                            host::fill_bytes(nccl.context(), in.data(), 0xee, in.bytes(), stream.get());
                        }
                        driver.check(driver.graph_launch(exec, stream.get()), "launch");
                        p.expect_arrived(nccl, stream.get());
                    }
                    driver.check(driver.graph_exec_destroy(exec), "destroy");
                    driver.check(driver.graph_destroy(graph), "destroy");
                    nccl.barrier_host();
                }),
                Each(""));
}

TEST_F(real_nccl, work_without_a_peer_is_aborted_at_the_limit) {
    const outcomes errors = run(
        [](int rank, communicator& comm) {
            host::nccl_communicator& nccl = nccl_of(comm);
            nccl.warm();
            const auto begin = std::chrono::steady_clock::now();
            if (rank == 0) {
                const host::gpu_stream stream(nccl.context());
                const device_buffer memory(nccl.context(), 1 << 20);
                const host::peer_transfer lonely{1, nullptr, 0, memory.data(), memory.bytes()};
                nccl.exchange({&lonely, 1}, stream.get());
                nccl.watch("a receive that nobody sends", stream.get());
                for (;;) {
                    nccl.check();
                    std::this_thread::sleep_for(std::chrono::milliseconds(5));
                    ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
                }
            }
            std::this_thread::sleep_for(std::chrono::seconds(4));
        },
        2000);
    EXPECT_THAT(errors[0],
                AllOf(HasSubstr("timeout: rank 0 of"), HasSubstr("a receive that nobody sends was not done")));
    EXPECT_THAT(errors[1], "");
}

TEST_F(real_nccl, a_rank_that_never_comes_is_an_error_within_the_limit) {
    runtime rt = real_runtime(1500);
    std::array<std::byte, 128> id{};
    communicator::unique_id(rt, id);
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_THROW(communicator::from_unique_id(rt, id, 0, 2, 0), timeout_error);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

// A caller's communicator, all of it in another order and in groups of one; it serves its owner before and after.
TEST_F(real_nccl, a_borrowed_communicator_and_its_groups_exchange_data) {
    EXPECT_THAT(run([](int rank, communicator& comm) {
                    host::nccl_communicator& owners = nccl_of(comm);
                    const int ranks = comm.num_ranks();
                    std::vector<int> turned(ranks);
                    for (int i = 0; i < ranks; ++i) {
                        turned[i] = ranks - 1 - i;
                    }
                    runtime rt = real_runtime();
                    {
                        communicator mine = communicator::from_nccl(rt, owners.handle(), rank, turned);
                        EXPECT_EQ(mine.first_driven(), ranks - 1 - rank);
                        check_everything(mine.first_driven(), mine);
                    }
                    {
                        communicator alone = communicator::from_nccl(rt, owners.handle(), rank, std::vector<int>{rank});
                        EXPECT_EQ(alone.num_ranks(), 1);
                        nccl_of(alone).barrier_host();
                    }
                    check_everything(rank, comm);
                }),
                Each(""));
}

TEST_F(real_nccl, communicators_are_made_and_closed_again_and_again) {
    for (int i = 0; i < 3; ++i) {
        EXPECT_THAT(run([](int, communicator& comm) { nccl_of(comm).barrier_host(); }), Each(""));
    }
}

/// What a child process does, see processes_that_a_launcher_starts_meet.
TEST(launched, rank) {
    if (std::getenv("EPJIT_TEST_LAUNCHED") == nullptr) {
        GTEST_SKIP() << "only in the processes of another test";
    }
    runtime rt = real_runtime();
    communicator comm = communicator::from_launcher(rt);
    check_everything(comm.first_driven(), comm);
    if (host::no_windows_reason(nccl_of(comm).api()).empty() && std::getenv("NCCL_HOSTID") == nullptr) {
        check_window(comm.first_driven(), comm);
    }
    EXPECT_EQ(std::getenv("NCCL_COMM_ID"), nullptr);
}

int spawn_rank(int rank, int size, const std::vector<std::string>& more) {
    std::vector<std::string> variables{fmt::format("RANK={}", rank),
                                       fmt::format("WORLD_SIZE={}", size),
                                       fmt::format("LOCAL_RANK={}", rank),
                                       "MASTER_ADDR=127.0.0.1",
                                       "MASTER_PORT=23456",
                                       "EPJIT_TEST_LAUNCHED=1"};
    variables.insert(variables.end(), more.begin(), more.end());
    std::vector<char*> all;
    for (std::string& v : variables) {
        all.push_back(v.data());
    }
    for (char** v = environ; *v != nullptr; ++v) {
        all.push_back(*v);
    }
    all.push_back(nullptr);
    std::string filter = "--gtest_filter=launched.rank", program = "nccl_gpu_test";
    std::array<char*, 3> arguments{program.data(), filter.data(), nullptr};
    pid_t child = 0;
    return posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, arguments.data(), all.data()) == 0 ? child : -1;
}

int wait_for(int child) {
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(real_nccl, processes_that_a_launcher_starts_meet) {
    std::vector<int> children;
    for (int r = 0; r < ranks_; ++r) {
        children.push_back(spawn_rank(r, ranks_, {}));
    }
    for (const int child : children) {
        EXPECT_EQ(wait_for(child), 0);
    }
}

TEST_F(real_nccl, two_ranks_share_a_gpu_as_two_hosts) {
    std::vector<int> children;
    for (int r = 0; r < 2 * ranks_; ++r) {
        children.push_back(spawn_rank(r, 2 * ranks_, {fmt::format("NCCL_HOSTID=host{}", r / ranks_)}));
    }
    for (const int child : children) {
        EXPECT_EQ(wait_for(child), 0);
    }
}

}  // namespace
}  // namespace epjit
