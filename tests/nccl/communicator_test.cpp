// SPDX-License-Identifier: Apache-2.0
// Communicators of real ranks: how they are made, what travels over them, and how they end.
#include "host/nccl/communicator.hpp"

#include "epjit/exchange.hpp"
#include "host/exchange/backend.hpp"
#include "host/nccl/compare.hpp"
#include "host/nccl/watchdog.hpp"
#include "host/sendrecv/stamps.hpp"
#include "tests/nccl/support.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <dlfcn.h>
#include <numeric>
#include <optional>
#include <thread>

namespace epjit {
namespace {

using namespace tests;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* version = "2.28.3";

std::string what_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const error& e) {
        return std::string(name(e.kind())) + ": " + e.what();
    }
    return "no error";
}

void set_fake_cuda(const char* name, int value) {
    void* driver = dlopen(EPJIT_FAKE_CUDA, RTLD_NOW | RTLD_NOLOAD);
    reinterpret_cast<void (*)(int)>(dlsym(driver, name))(value);
}
void set_events_pending(int pending) {
    set_fake_cuda("fake_cuda_set_events_pending", pending);
}

TEST(nccl_communicator, ranks_of_one_id_meet_and_gather_host_memory) {
    for (const char* v : {"2.18.5", "2.28.3", "2.30.7"}) {
        const outcomes errors = run_ranks(v, 4, [](int rank, communicator& comm, runtime&) {
            EXPECT_EQ(comm.num_ranks(), 4);
            EXPECT_EQ(comm.num_driven(), 1);
            EXPECT_EQ(comm.first_driven(), rank);
            EXPECT_EQ(comm.kind(), exchange_kind::automatic);
            for (int size : {1, 3, 5000}) {
                std::vector<int> mine(size, 100 + rank), all(4 * size);
                nccl_of(comm).all_gather_host(mine.data(), all.data(), mine.size() * sizeof(int));
                for (int r = 0; r < 4; ++r) {
                    EXPECT_EQ(all[r * size + size - 1], 100 + r);
                }
            }
            nccl_of(comm).barrier_host();
            nccl_of(comm).warm();
        });
        EXPECT_THAT(errors, Each("")) << v;
    }
}

TEST(nccl_communicator, data_moves_on_a_blocking_child_where_nccl_can_split) {
    const int before = stub_get(version, "blocking_splits");
    EXPECT_THAT(run_ranks(version, 2, [](int, communicator&, runtime&) {}), Each(""));
    EXPECT_EQ(stub_get(version, "blocking_splits"), before + 2);
    const variable off("EPJIT_NCCL_BLOCKING", "0");
    EXPECT_THAT(run_ranks(version, 2,
                          [](int rank, communicator& comm, runtime&) {
                              const int mine = rank;
                              std::array<int, 2> all{};
                              nccl_of(comm).all_gather(&mine, all.data(), sizeof mine, nullptr);
                              EXPECT_THAT(all, ElementsAre(0, 1));
                          }),
                Each(""));
    EXPECT_EQ(stub_get(version, "blocking_splits"), before + 2);
}

TEST(nccl_communicator, uneven_messages_reach_their_ranks) {
    const outcomes errors = run_ranks(version, 3, [](int rank, communicator& comm, runtime&) {
        // Rank a sends 10 * a + b + 1 bytes to rank b; nothing goes from 2 to 0.
        const auto size = [](int from, int to) { return from == 2 && to == 0 ? 0 : 10 * from + to + 1; };
        std::vector<std::vector<char>> out(3), in(3);
        std::vector<host::peer_transfer> transfers;
        for (int peer = 0; peer < 3; ++peer) {
            out[peer].assign(size(rank, peer), static_cast<char>('a' + 3 * rank + peer));
            in[peer].assign(size(peer, rank), '?');
            transfers.push_back({peer, out[peer].data(), out[peer].size(), in[peer].data(), in[peer].size()});
        }
        nccl_of(comm).exchange(transfers, nullptr);
        for (int peer = 0; peer < 3; ++peer) {
            EXPECT_THAT(in[peer], Each(static_cast<char>('a' + 3 * peer + rank)));
        }
    });
    EXPECT_THAT(errors, Each(""));
}

TEST(nccl_communicator, one_rank_alone_needs_no_other) {
    EXPECT_THAT(run_ranks(version, 1,
                          [](int, communicator& comm, runtime&) {
                              int mine = 7, all = 0;
                              nccl_of(comm).all_gather_host(&mine, &all, sizeof mine);
                              EXPECT_EQ(all, 7);
                              nccl_of(comm).warm();
                          }),
                Each(""));
}

TEST(nccl_communicator, all_gpus_of_a_process_are_made_by_one_thread) {
    runtime rt = stub_runtime(version);
    const std::array<int, 3> devices{0, 0, 0};
    std::array<communicator, 3> comms;
    EXPECT_FALSE(comms[0]);
    communicator::local(rt, devices, comms);
    std::vector<std::thread> threads;
    std::array<std::array<int, 3>, 3> all{};
    for (int r = 0; r < 3; ++r) {
        threads.emplace_back([&, r] { nccl_of(comms[r]).all_gather_host(&r, all[r].data(), sizeof r); });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_THAT(all, Each(ElementsAre(0, 1, 2)));
    EXPECT_EQ(comms[2].first_driven(), 2);
    EXPECT_THAT(what_of([&] {
                    communicator::local(rt, devices, {comms.data(), 2});
                }),
                HasSubstr("3 devices and room for 2 communicators"));
}

TEST(nccl_communicator, a_launcher_needs_nothing_but_its_variables) {
    const variable size("WORLD_SIZE", "1"), rank("RANK", "0"), local("LOCAL_RANK", "5"), id("NCCL_COMM_ID", nullptr);
    runtime rt = stub_runtime(version);
    communicator comm = communicator::from_launcher(rt);
    EXPECT_EQ(comm.num_ranks(), 1);
    EXPECT_EQ(comm.state().context->device(), 0) << "5 modulo the one GPU";
}

TEST(nccl_communicator, bad_arguments_are_refused_before_nccl_sees_them) {
    runtime rt = stub_runtime(version);
    std::array<std::byte, 128> id{};
    EXPECT_THAT(what_of([&] { communicator::from_unique_id(rt, id, 2, 2, 0); }), HasSubstr("rank 2 of 2"));
    EXPECT_THAT(what_of([&] { communicator::from_unique_id(rt, id, 0, 1, 9); }), HasSubstr("device 9 does not exist"));
    EXPECT_THAT(what_of([&] { communicator::from_nccl(rt, nullptr, 0); }), HasSubstr("communicator is null"));
    runtime none = stub_runtime("9.9.9");
    EXPECT_THAT(what_of([&] { communicator::unique_id(none, id); }), HasSubstr("library: NCCL was not found"));
}

TEST(nccl_communicator, a_rank_that_never_comes_is_an_error_within_the_limit) {
    runtime rt = stub_runtime(version, 150);
    std::array<std::byte, 128> id{};
    communicator::unique_id(rt, id);
    const int aborts = stub_get(version, "aborts");
    EXPECT_THAT(what_of([&] { communicator::from_unique_id(rt, id, 1, 2, 0); }),
                AllOf(HasSubstr("timeout: rank 1 of 2: connecting (ncclCommInitRankConfig) was not done after 150 ms"),
                      HasSubstr("EPJIT_FIRST_WAIT_TIMEOUT_MS")));
    EXPECT_EQ(stub_get(version, "aborts"), aborts + 1) << "what was begun is taken down";
}

TEST(nccl_communicator, a_failed_start_names_phase_rank_and_nccls_own_text) {
    const stub_switch fail(version, "fail_init", 1);
    EXPECT_THAT(
        run_ranks(version, 1, [](int, communicator&, runtime&) {})[0],
        AllOf(HasSubstr("nccl: connecting (ncclCommInitRankConfig) on rank 0 of 1 failed with ncclSystemError (2)"),
              HasSubstr("last error: no socket interface found")));
}

TEST(nccl_communicator, a_gather_without_a_peer_ends_and_the_communicator_is_gone) {
    const outcomes errors = run_ranks(
        version, 2,
        [](int rank, communicator& comm, runtime&) {
            if (rank == 0) {
                const std::string first = what_of([&] { nccl_of(comm).barrier_host(); });
                EXPECT_THAT(first, AllOf(HasSubstr("timeout: rank 0 of 2: exchanging host data"), HasSubstr("200 ms")));
                EXPECT_EQ(what_of([&] { nccl_of(comm).check(); }), first) << "the text is kept";
                EXPECT_EQ(what_of([&] { nccl_of(comm).all_gather(nullptr, nullptr, 0, nullptr); }), first);
            }
        },
        200);
    EXPECT_THAT(errors, Each(""));
}

// Freeing device memory, as an abort does, waits for every kernel: also for that of the other communicator.
TEST(nccl_communicator, work_on_one_communicator_does_not_hold_up_the_abort_of_the_other) {
    const stub_switch waits(version, "abort_waits", 1);
    const auto start = std::chrono::steady_clock::now();
    const outcomes errors = run_ranks(
        version, 2,
        [](int rank, communicator& comm, runtime&) {
            if (rank == 0) {
                EXPECT_THAT(what_of([&] { nccl_of(comm).barrier_host(); }), HasSubstr("timeout: rank 0 of 2"));
            }
        },
        200);
    EXPECT_THAT(errors, Each(""));
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8)) << "an abort was given up";
}

TEST(nccl_watchdog, work_that_does_not_end_is_aborted_at_the_limit) {
    runtime rt = stub_runtime(version, 100);
    log_lines log;
    rt = stub_runtime(version, 100, &log);
    std::array<communicator, 1> comms;
    communicator::local(rt, std::array<int, 1>{0}, comms);
    host::nccl_communicator& nccl = nccl_of(comms[0]);
    const host::device_buffer words(nccl.context(), 2 * sizeof(std::uint32_t));
    host::fill_bytes(nccl.context(), words.data(), 0, words.bytes(), nullptr);
    nccl.tell_on_failure(words.as<std::uint32_t>());
    nccl.tell_on_failure(words.as<std::uint32_t>() + 1);
    nccl.forget(words.as<std::uint32_t>() + 1);
    const auto told = [&](int which) {
        std::uint32_t seen[2] = {};
        host::copy_to_host(nccl.context(), seen, words.data(), sizeof seen, nullptr);
        host::synchronize(nccl.context(), nullptr);
        return seen[which] != 0;
    };
    nccl.watch("combine", nullptr);
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    EXPECT_FALSE(told(0));
    EXPECT_EQ(what_of([&] { nccl.check(); }), "no error") << "what ends is no failure";
    set_events_pending(1);
    nccl.watch("dispatch", nullptr);
    std::string text = "no error";
    for (int i = 0; i < 400 && text == "no error"; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        text = what_of([&] { nccl.check(); });
    }
    set_events_pending(0);
    EXPECT_THAT(text, AllOf(HasSubstr("timeout: rank 0 of 1: dispatch was not done after"), HasSubstr("limit 100 ms"),
                            HasSubstr("was aborted")));
    for (int i = 0; i < 100 && !told(0); ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_TRUE(told(0)) << "kernels that follow find out";
    EXPECT_FALSE(told(1)) << "forgotten";
    comms[0] = communicator();  // ends the watchdog
    EXPECT_THAT(log.lines, ElementsAre(HasSubstr("dispatch was not done"))) << "one line";
}

/// One rank with two groups captured on a stream, as an exchange issues them.
struct captured_groups {
    explicit captured_groups(int limit_ms) : rt(stub_runtime(version, limit_ms, &log)) {
        communicator::local(rt, std::array<int, 1>{0}, comms);
        stream = host::gpu_stream(nccl_of(comms[0]).context());
        groups.emplace(comms[0].state().nccl);
        host::stream_capture capture(nccl_of(comms[0]).context(), stream.get());
        for (const char* phase : {"dispatch", "combine"}) {
            groups->begin(phase, stream.get());
            groups->end(stream.get());
        }
        graph = capture.end();
    }
    std::string failure() {
        return what_of([&] { nccl_of(comms[0]).check(); });
    }

    log_lines log;
    runtime rt;
    std::array<communicator, 1> comms;
    host::gpu_stream stream;
    std::optional<host::watched_groups> groups;
    host::gpu_graph graph;
};

TEST(nccl_watchdog, a_replay_that_stops_inside_a_group_is_aborted_at_the_limit) {
    captured_groups c(100);
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    EXPECT_EQ(c.failure(), "no error") << "captured, not yet replayed";
    // Inside, ended, outside; and the same again.
    set_fake_cuda("fake_cuda_set_replay_hangs_after", 4);
    c.graph.launch(c.stream.get());
    std::string text = "no error";
    for (int i = 0; i < 400 && text == "no error"; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        text = c.failure();
    }
    set_fake_cuda("fake_cuda_set_replay_hangs_after", -1);
    EXPECT_THAT(text, AllOf(HasSubstr("timeout: rank 0 of 1: combine, replayed, was not done after"),
                            HasSubstr("limit 100 ms"), HasSubstr("was aborted")));
}

TEST(nccl_watchdog, replays_that_end_are_no_failure_however_closely_they_follow) {
    captured_groups c(100);
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(400);
    // Whenever one looks, a group is being replayed.
    set_fake_cuda("fake_cuda_set_replay_hangs_after", 1);
    while (std::chrono::steady_clock::now() < until) {
        set_fake_cuda("fake_cuda_set_replay_hangs_after", -1);
        c.graph.launch(c.stream.get());
        set_fake_cuda("fake_cuda_set_replay_hangs_after", 1);
        c.graph.launch(c.stream.get());
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    set_fake_cuda("fake_cuda_set_replay_hangs_after", -1);
    c.graph.launch(c.stream.get());
    EXPECT_EQ(c.failure(), "no error");
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    EXPECT_EQ(c.failure(), "no error") << "nothing is under way";
}

TEST(nccl_watchdog, a_driver_that_cannot_record_words_leaves_replays_unwatched_and_says_so) {
    const variable none("FAKE_CUDA_NO_WORDS", "1");
    captured_groups c(100);
    EXPECT_THAT(c.log.lines, ElementsAre(HasSubstr("replays of this graph are not watched")));
}

TEST(nccl_watchdog, groups_outside_of_a_capture_are_watched_as_they_are_issued) {
    captured_groups c(100);
    set_events_pending(1);
    c.groups->begin("make_plan (lines)", c.stream.get());
    c.groups->end(c.stream.get());
    std::string text = "no error";
    for (int i = 0; i < 400 && text == "no error"; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        text = c.failure();
    }
    set_events_pending(0);
    EXPECT_THAT(text, HasSubstr("make_plan (lines) was not done after"));
}

TEST(nccl_watchdog, an_error_that_nccl_reports_later_is_kept) {
    runtime rt = stub_runtime("2.29.2");
    std::array<communicator, 1> comms;
    communicator::local(rt, std::array<int, 1>{0}, comms);
    std::string text = "no error";
    {
        const stub_switch broken("2.29.2", "async_error", host::nccl_remote_error);
        for (int i = 0; i < 400 && text == "no error"; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
            text = what_of([&] { nccl_of(comms[0]).check(); });
        }
    }
    EXPECT_THAT(text,
                AllOf(HasSubstr("nccl: rank 0 of 1: NCCL reported ncclRemoteError (6)"), HasSubstr("make a new")));
}

/// A communicator of the "caller's", made by hand, for each rank of a thread group.
class borrowed : public testing::Test {
   protected:
    outcomes run(int ranks, const std::function<void(int, ncclComm*, runtime&)>& body) {
        const auto api = host::open_nccl(stub(version));
        host::nccl_unique_id id;
        api->get_unique_id(&id);
        outcomes errors(ranks);
        std::vector<std::thread> threads;
        for (int r = 0; r < ranks; ++r) {
            threads.emplace_back([&, r] {
                host::nccl_config config;
                config.blocking = 1;
                ncclComm* comm = nullptr;
                api->comm_init(&comm, ranks, id, r, &config);
                try {
                    runtime rt = stub_runtime(version, 500);
                    body(r, comm, rt);
                } catch (const error& e) {
                    errors[r] = std::string(name(e.kind())) + ": " + e.what();
                }
                if (!abandoned_) {
                    api->comm_destroy(comm);
                }
            });
        }
        for (std::thread& t : threads) {
            t.join();
        }
        return errors;
    }

    std::atomic<bool> abandoned_{false};  ///< a call is still inside the stub: its communicator stays
};

TEST_F(borrowed, communicators_work_on_a_child_and_stay_the_callers) {
    const outcomes errors = run(3, [](int rank, ncclComm* comm, runtime& rt) {
        communicator mine = communicator::from_nccl(rt, comm, 0);
        EXPECT_EQ(mine.num_ranks(), 3);
        EXPECT_EQ(mine.first_driven(), rank);
        EXPECT_NE(nccl_of(mine).handle(), comm);
        nccl_of(mine).barrier_host();
    });
    EXPECT_THAT(errors, Each(""));
}

TEST_F(borrowed, groups_are_made_at_once_in_the_order_of_their_lists) {
    const outcomes errors = run(5, [](int rank, ncclComm* comm, runtime& rt) {
        const std::vector<int> group = rank % 2 == 1 ? std::vector<int>{3, 1} : std::vector<int>{0, 2};  // 4 is outside
        communicator mine = communicator::from_nccl(rt, comm, 0, group);
        EXPECT_EQ(static_cast<bool>(mine), rank != 4);
        if (!mine) {
            return;
        }
        std::array<int, 2> all{};
        nccl_of(mine).all_gather_host(&rank, all.data(), sizeof rank);
        EXPECT_THAT(all, testing::ElementsAreArray(group));
        EXPECT_EQ(group[mine.first_driven()], rank);
    });
    EXPECT_THAT(errors, Each(""));
}

TEST_F(borrowed, bad_lists_and_devices_are_refused) {
    const outcomes errors = run(1, [](int, ncclComm* comm, runtime& rt) {
        EXPECT_THAT(what_of([&] {
                        communicator::from_nccl(rt, comm, 0, std::vector<int>{0, 1});
                    }),
                    HasSubstr("rank 1 was listed, the borrowed communicator has 1"));
        EXPECT_THAT(what_of([&] {
                        communicator::from_nccl(rt, comm, 0, std::vector<int>{0, 0});
                    }),
                    HasSubstr("rank 0 was listed twice"));
    });
    EXPECT_THAT(errors, Each(""));
    EXPECT_THAT(run(2,
                    [](int rank, ncclComm* comm, runtime& rt) {
                        // Rank 1 lists itself alone, rank 0 expects both.
                        const std::vector<int> list = rank == 0 ? std::vector<int>{0, 1} : std::vector<int>{1};
                        communicator::from_nccl(rt, comm, 0, list);
                    })[0],
                HasSubstr("rank 0 listed 2 ranks, 1 ranks of the borrowed communicator joined"));
}

TEST_F(borrowed, a_rank_that_does_not_split_holds_nobody) {
    std::atomic<bool> timed_out{false};
    abandoned_ = true;
    const outcomes errors = run(2, [&](int rank, ncclComm* comm, runtime& rt) {
        if (rank == 0) {
            EXPECT_THAT(what_of([&] { communicator::from_nccl(rt, comm, 0); }),
                        AllOf(HasSubstr("timeout: rank 0 of 2: making a child of the borrowed communicator"),
                              HasSubstr("still inside NCCL")));
            timed_out = true;
            return;
        }
        while (!timed_out) {
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        communicator::from_nccl(rt, comm, 0);  // frees the call that rank 0 left inside NCCL
    });
    EXPECT_THAT(errors[0], "");
}

TEST_F(borrowed, communicators_need_a_library_that_can_split) {
    runtime rt = stub_runtime("2.18.5");
    EXPECT_THAT(what_of([&] { communicator::from_nccl(rt, reinterpret_cast<ncclComm*>(0x10), 0); }),
                HasSubstr("unsupported: this build of NCCL 2.18.5 has no ncclCommSplit"));
}

// What NCCL connects or loads at a first call is there before a kernel can wait for it.
TEST(nccl_exchanges, connect_every_pair_once_and_run_their_gathers_when_they_are_made) {
    for (const exchange_kind kind : {exchange_kind::sendrecv, exchange_kind::dense}) {
        const int sends = stub_get(version, "sends");
        const outcomes errors = run_ranks(version, 3, [&](int, communicator& comm, runtime&) {
            exchange_config config;
            config.kind = kind;
            config.hidden = 1024;
            config.num_experts = 8;
            config.topk = 2;
            config.max_tokens_per_rank = 32;
            const exchange first(comm, config);
            nccl_of(comm).barrier_host();
            EXPECT_EQ(stub_get(version, "sends") - sends, 6) << "one for each pair";
            nccl_of(comm).barrier_host();
            const exchange second(comm, config);
        });
        EXPECT_THAT(errors, Each("")) << name(kind);
        EXPECT_EQ(stub_get(version, "sends") - sends, 6) << "once for a communicator";
        constexpr int rows = 32 * 1024 * 2;
        if (kind == exchange_kind::dense) {
            EXPECT_EQ(stub_get(version, "largest_gather"), rows);
        } else {
            EXPECT_LT(stub_get(version, "largest_gather"), rows);
        }
    }
}

/// What the ranks' stamps say after each has put its own and all have been gathered.
outcomes stamp(const std::function<void(int, communicator&, host::plan_stamps&)>& put) {
    return run_ranks(version, 3, [&](int rank, communicator& comm, runtime&) {
        host::nccl_communicator& nccl = nccl_of(comm);
        host::plan_stamps first(comm.state(), 2);
        host::plan_stamps second(comm.state(), 2);
        const auto plan = [&](host::plan_stamps& stamps) {
            const host::gather_in_place g = stamps.gather(1);
            nccl.all_gather(static_cast<std::byte*>(g.all) + static_cast<std::size_t>(rank) * g.bytes, g.all, g.bytes,
                            nullptr);
            stamps.fetch(1, nullptr);
        };
        for (host::plan_stamps* stamps : {&first, &second}) {
            stamps->put(1, 64, mode::exact, layout::flat, plan_source::counts, nullptr);
            plan(*stamps);
            stamps->check("sendrecv");
        }
        put(rank, comm, second);
        plan(second);
        nccl.barrier_host();
        second.check("sendrecv");
    });
}

TEST(plan_stamps, that_differ_are_named_on_every_rank) {
    EXPECT_THAT(stamp([](int, communicator&, host::plan_stamps& s) {
                    s.put(1, 32, mode::fixed, layout::masked, plan_source::counts, nullptr);
                }),
                Each(""));
    const outcomes errors = stamp([](int rank, communicator&, host::plan_stamps& s) {
        s.put(1, rank == 1 ? 16 : 64, mode::fixed, layout::masked, plan_source::counts, nullptr);
    });
    for (int rank = 0; rank < 3; ++rank) {
        EXPECT_THAT(errors[rank],
                    AllOf(HasSubstr("config: exchange 'sendrecv', lane 1: rank "),
                          HasSubstr("exchange 2 of its communicator, lane 1, at most 64 tokens, static, masked"),
                          HasSubstr("exchange 2 of its communicator, lane 1, at most 16 tokens, static, masked"),
                          HasSubstr("issue the same calls")))
            << rank;
    }
}

TEST(plan_stamps, tell_counts_from_gathered_ids) {
    const outcomes errors = stamp([](int rank, communicator&, host::plan_stamps& s) {
        s.put(1, 64, mode::exact, layout::flat, rank == 2 ? plan_source::gathered : plan_source::counts, nullptr);
    });
    EXPECT_THAT(errors, Each(AllOf(HasSubstr("source counts"), HasSubstr("source gathered"))));
}

TEST(plan_stamps, tell_exchanges_apart_whose_gathers_meet) {
    const outcomes errors = run_ranks(version, 2, [](int rank, communicator& comm, runtime&) {
        host::plan_stamps first(comm.state(), 1);
        host::plan_stamps second(comm.state(), 1);
        host::plan_stamps& mine = rank == 0 ? first : second;
        mine.put(0, 64, mode::exact, layout::flat, plan_source::counts, nullptr);
        const host::gather_in_place g = mine.gather(0);
        nccl_of(comm).all_gather(static_cast<std::byte*>(g.all) + static_cast<std::size_t>(rank) * g.bytes, g.all,
                                 g.bytes, nullptr);
        mine.fetch(0, nullptr);
        mine.check("dense");
    });
    EXPECT_THAT(errors, Each(AllOf(HasSubstr("exchange 1 of its communicator"), HasSubstr("exchange 2 of its"))));
}

host::resolved_config config_for(int ranks) {
    host::resolved_config c;
    c.config.hidden = 64;
    c.config.num_experts = 8;
    c.config.topk = 2;
    c.config.max_tokens_per_rank = 16;
    c.num_ranks = ranks;
    c.placement = host::resolve(placement{}, 8, ranks);
    c.rank_hosts.assign(ranks, 0);
    return c;
}

TEST(config_comparison, equal_configs_pass_and_a_difference_is_named_on_every_rank) {
    struct difference {
        const char* field;
        std::function<void(host::resolved_config&)> change;
        const char* text;
    };
    const std::vector<difference> cases{
        {"none", [](host::resolved_config&) {}, ""},
        {"hidden", [](host::resolved_config& c) { c.config.hidden = 128; }, "hidden is 64 on rank 0 and 128 on rank 2"},
        {"dtype", [](host::resolved_config& c) { c.config.combine_type = dtype::f32; },
         "combine_type is bf16 on rank 0 and f32 on rank 2"},
        {"kind", [](host::resolved_config& c) { c.config.kind = exchange_kind::lsa; },
         "kind is auto on rank 0 and lsa on rank 2"},
        {"bounds", [](host::resolved_config& c) { c.config.max_tokens_per_rank = 17; },
         "max_tokens_per_rank is 16 on rank 0 and 17 on rank 2"},
        {"low-latency bound", [](host::resolved_config& c) { c.config.ll_max_tokens_per_rank = 8; },
         "ll_max_tokens_per_rank is 0 on rank 0 and 8 on rank 2"},
        {"experts", [](host::resolved_config& c) { c.config.num_experts = 9; },
         "num_experts is 8 on rank 0 and 9 on rank 2"},
        {"topk", [](host::resolved_config& c) { c.config.topk = 1; }, "topk is 2 on rank 0 and 1 on rank 2"},
        {"routing", [](host::resolved_config& c) { c.config.routing = routing_form::sparse; },
         "routing is dense on rank 0 and sparse on rank 2"},
        {"lanes", [](host::resolved_config& c) { c.config.lanes = 2; }, "lanes is 1 on rank 0 and 2 on rank 2"},
        {"expansion", [](host::resolved_config& c) { c.config.expansion_sms = 5; },
         "expansion_sms is 0 on rank 0 and 5 on rank 2"},
        {"window", [](host::resolved_config& c) { c.config.window_rows = 5; },
         "window_rows is 0 on rank 0 and 5 on rank 2"},
        {"profile",
         [](host::resolved_config& c) {
             jit::knobs values;
             values.gather_threads = 64;
             c.knobs = jit::tuned_knobs::always(values);
         },
         "knobs is a table with digest"},
        {"halves", [](host::resolved_config& c) { c.config.halves = true; }, "halves is 0 on rank 0 and 1 on rank 2"},
        {"staging_bytes", [](host::resolved_config& c) { c.config.staging_bytes = 4096; },
         "staging_bytes is 0 on rank 0 and 4096 on rank 2"},
        {"placement",
         [](host::resolved_config& c) { std::swap(c.placement.slot_expert[0], c.placement.slot_expert[1]); },
         "placement.slot_expert is a table with digest"},
        {"hosts", [](host::resolved_config& c) { c.rank_hosts[1] = 1; }, "rank_hosts is a table with digest"}};
    for (const difference& d : cases) {
        const outcomes errors = run_ranks("2.30.7", 3, [&](int rank, communicator& comm, runtime&) {
            host::resolved_config c = config_for(3);
            if (rank == 2) {
                d.change(c);
            }
            host::compare_configs(nccl_of(comm), c);
        });
        if (*d.text == '\0') {
            EXPECT_THAT(errors, Each(""));
            continue;
        }
        EXPECT_THAT(errors, Each(AllOf(HasSubstr("config: exchange_config differs between ranks"), HasSubstr(d.text))));
        EXPECT_EQ(errors[0], errors[2]) << "the same text everywhere";
    }
}

TEST(config_comparison, ranks_of_two_versions_of_the_library_are_told_apart_first) {
    const outcomes errors = run_ranks("2.30.7", 2, [](int rank, communicator& comm, runtime&) {
        host::resolved_config c = config_for(2);
        c.config.hidden += rank;
        std::vector<host::config_field> fields = host::config_fields(c);
        if (rank == 1) {
            fields[0].value ^= 1;
            fields[0].text = "99.1.0";
        }
        host::compare_fields(nccl_of(comm), fields);
    });
    EXPECT_THAT(
        errors,
        Each(HasSubstr(fmt::format("library version is {} on rank 0 and 99.1.0 on rank 1", runtime::version()))));
}

}  // namespace
}  // namespace epjit
