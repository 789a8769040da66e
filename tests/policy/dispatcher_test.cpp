// SPDX-License-Identifier: Apache-2.0
// The choice of an exchange, by tables: facts in, exchange and reasons out.
#include "host/dispatcher/dispatcher.hpp"

#include "epjit/error.hpp"
#include "host/nccl/api.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace epjit::host {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr exchange_set everything = exchange_set{}
                                        .with(exchange_kind::host)
                                        .with(exchange_kind::loopback)
                                        .with(exchange_kind::lsa)
                                        .with(exchange_kind::sendrecv)
                                        .with(exchange_kind::dense)
                                        .with(exchange_kind::hybrid);

/// Ranks with a GPU each and windows inside hosts; `hosts[i]` ranks on host i.
exchange_question real_ranks(const std::vector<std::int32_t>& hosts) {
    exchange_question q;
    q.built = everything;
    q.facts.num_ranks = 0;
    for (std::size_t host = 0; host < hosts.size(); ++host) {
        q.facts.num_ranks += hosts[host];
        q.facts.rank_hosts.insert(q.facts.rank_hosts.end(), static_cast<std::size_t>(hosts[host]),
                                  static_cast<std::int32_t>(host));
    }
    q.facts.have_gpu = true;
    q.facts.real_ranks = true;
    q.facts.have_windows = true;
    return q;
}

/// deepseek-v3: H 7168, K 8, bf16.
exchange_question with_model(exchange_question q, std::int64_t tokens) {
    q.largest.topk = 8;
    q.largest.tokens = tokens;
    q.largest.dispatch_row_bytes = 14336;
    q.largest.combine_row_bytes = 14336;
    return q;
}

std::string against(const exchange_choice& choice, exchange_kind kind) {
    for (const why_not& other : choice.others) {
        if (other.exchange == kind) {
            return other.reason;
        }
    }
    return "it was taken";
}

template <class Error>
std::string message_of(const exchange_question& q) {
    try {
        choose_exchange(q);
    } catch (const Error& e) {
        return e.what();
    }
    return "no such error";
}

TEST(dispatcher, automatic_choice_follows_the_topology) {
    struct row {
        const char* what;
        std::vector<std::int32_t> hosts;
        bool windows, one_domain;
        exchange_kind expected;
        const char* fallback;  ///< in its text; null: none
    };
    const row table[] = {
        {"one host", {8}, true, false, exchange_kind::lsa, nullptr},
        {"two ranks", {2}, true, false, exchange_kind::lsa, nullptr},
        {"one rank", {1}, true, false, exchange_kind::lsa, nullptr},
        {"one rank without windows needs no peer", {1}, false, false, exchange_kind::sendrecv, nullptr},
        {"no windows", {8}, false, false, exchange_kind::sendrecv, "sendrecv instead of lsa: no symmetric windows"},
        {"two hosts", {8, 8}, true, false, exchange_kind::hybrid, nullptr},
        {"two hosts of two", {2, 2}, true, false, exchange_kind::hybrid, nullptr},
        {"one NVLink domain over two hosts", {4, 4}, true, true, exchange_kind::lsa, nullptr},
        {"a rank on each host", {1, 1, 1}, true, false, exchange_kind::sendrecv, nullptr},
        {"two hosts without windows", {8, 8}, false, false, exchange_kind::sendrecv, "sendrecv instead of hybrid"},
        {"uneven hosts", {2, 3}, true, false, exchange_kind::sendrecv, "hosts of 2 to 3 ranks"},
    };
    for (const row& r : table) {
        SCOPED_TRACE(r.what);
        exchange_question q = real_ranks(r.hosts);
        q.facts.have_windows = r.windows;
        q.facts.one_domain = r.one_domain;
        q.facts.no_windows_reason = r.windows ? "" : "ncclCommWindowRegister returned NULL";
        const exchange_choice choice = choose_exchange(q);
        EXPECT_EQ(name(choice.exchange), name(r.expected));
        EXPECT_FALSE(choice.reason.empty());
        if (r.fallback != nullptr) {
            EXPECT_THAT(choice.fallback, HasSubstr(r.fallback));
        } else {
            EXPECT_THAT(choice.fallback, IsEmpty());
        }
        ASSERT_EQ(choice.others.size(), 5U);
        for (const why_not& other : choice.others) {
            EXPECT_FALSE(other.reason.empty()) << name(other.exchange);
            EXPECT_THAT(other.reason, Not(HasSubstr("\n")));
            EXPECT_NE(other.exchange, choice.exchange);
        }
    }
}

TEST(dispatcher, reasons_name_what_was_missing) {
    exchange_question q = real_ranks({8});
    q.facts.have_windows = false;
    q.facts.no_windows_reason = "ncclCommWindowRegister gave no window";
    EXPECT_THAT(against(choose_exchange(q), exchange_kind::lsa), HasSubstr("ncclCommWindowRegister gave no window"));
    EXPECT_THAT(against(choose_exchange(q), exchange_kind::hybrid), HasSubstr("one host"));
    EXPECT_THAT(against(choose_exchange(q), exchange_kind::loopback), HasSubstr("each rank has a GPU"));

    q = real_ranks({4, 4});
    EXPECT_THAT(against(choose_exchange(q), exchange_kind::lsa), HasSubstr("2 hosts"));
    EXPECT_THAT(against(choose_exchange(q), exchange_kind::sendrecv), HasSubstr("hybrid is preferred"));
    const exchange_choice known = choose_exchange(with_model(q, 4096));
    EXPECT_THAT(against(known, exchange_kind::sendrecv), AllOf(HasSubstr("predicted"), HasSubstr("hybrid")));
    const exchange_choice many = choose_exchange(with_model(real_ranks(std::vector<std::int32_t>(64, 8)), 4096));
    EXPECT_EQ(many.exchange, exchange_kind::hybrid);
    EXPECT_THAT(against(many, exchange_kind::sendrecv), HasSubstr("preferred for static mode: "));
}

TEST(dispatcher, an_nccl_without_windows_is_named_in_the_fallback) {
    exchange_question q = real_ranks({8});
    q.facts.have_windows = false;
    q.facts.no_windows_reason = "NCCL 2.26.5 has no symmetric windows";
    const exchange_choice choice = choose_exchange(q);
    EXPECT_EQ(choice.exchange, exchange_kind::sendrecv);
    EXPECT_THAT(choice.fallback, HasSubstr("NCCL 2.26.5 has no symmetric windows"));
}

TEST(dispatcher, what_is_not_built_is_passed_over_and_said) {
    exchange_question q = real_ranks({8});
    q.built = exchange_set{}.with(exchange_kind::host).with(exchange_kind::loopback).with(exchange_kind::sendrecv);
    const exchange_choice choice = choose_exchange(q);
    EXPECT_EQ(choice.exchange, exchange_kind::sendrecv);
    EXPECT_THAT(choice.fallback, HasSubstr("lsa: not in this version"));
    q.wanted = exchange_kind::lsa;
    EXPECT_THAT(message_of<unsupported_error>(q), HasSubstr("exchange 'lsa' is not in this version"));
    q = real_ranks({8});
    q.built = exchange_set{}.with(exchange_kind::host);
    EXPECT_THAT(message_of<unsupported_error>(q), HasSubstr("not in this version"));
}

TEST(dispatcher, dense_by_itself_only_for_few_tokens_on_few_ranks_without_windows) {
    struct row {
        std::vector<std::int32_t> hosts;
        bool windows;
        std::int64_t tokens;
        exchange_kind expected;
    };
    const row table[] = {
        {{2}, false, 1, exchange_kind::dense},
        {{4}, false, 2, exchange_kind::dense},
        {{2}, false, 4096, exchange_kind::sendrecv},
        {{8}, false, 4096, exchange_kind::sendrecv},
        {{2}, true, 1, exchange_kind::lsa},
        {std::vector<std::int32_t>(64, 1), true, 512, exchange_kind::sendrecv},
    };
    for (const row& r : table) {
        exchange_question q = real_ranks(r.hosts);
        q.facts.have_windows = r.windows;
        const exchange_choice choice = choose_exchange(with_model(q, r.tokens));
        EXPECT_EQ(name(choice.exchange), name(r.expected)) << r.hosts.size() << " hosts, " << r.tokens << " tokens";
        if (choice.exchange == exchange_kind::dense) {
            EXPECT_THAT(choice.reason, HasSubstr("predicted"));
        }
    }
}

TEST(dispatcher, a_name_overrides_what_is_preferred) {
    for (const exchange_kind kind :
         {exchange_kind::lsa, exchange_kind::sendrecv, exchange_kind::dense, exchange_kind::hybrid}) {
        exchange_question q = with_model(real_ranks({8}), 4096);
        q.wanted = kind;
        const exchange_choice choice = choose_exchange(q);
        EXPECT_EQ(name(choice.exchange), name(kind));
        EXPECT_EQ(choice.reason, "asked for by name");
        EXPECT_THAT(choice.fallback, IsEmpty());
    }
    exchange_question q = real_ranks({8});
    q.wanted = exchange_kind::sendrecv;
    EXPECT_EQ(against(choose_exchange(q), exchange_kind::lsa), "sendrecv was asked for");
}

TEST(dispatcher, a_name_does_not_override_what_the_ranks_can_do) {
    exchange_question q = real_ranks({8, 8});
    q.wanted = exchange_kind::lsa;
    EXPECT_THAT(message_of<unsupported_error>(q), AllOf(HasSubstr("16 ranks are on 2 hosts"), HasSubstr("hybrid")));
    q.facts.have_windows = false;
    q.facts.no_windows_reason = "NULL window";
    q.wanted = exchange_kind::hybrid;
    EXPECT_THAT(message_of<unsupported_error>(q),
                AllOf(HasSubstr("'hybrid'"), HasSubstr("NULL window"), HasSubstr("sendrecv")));
    q = real_ranks({8});
    q.wanted = exchange_kind::host;
    EXPECT_THAT(message_of<config_error>(q), HasSubstr("communicator::host"));
}

TEST(dispatcher, one_thread_that_drives_all_ranks_takes_loopback_or_host) {
    exchange_question q;
    q.facts.no_gpu_reason = "libcuda.so.1: not found";
    const exchange_choice without = choose_exchange(q);
    EXPECT_EQ(without.exchange, exchange_kind::host);
    ASSERT_EQ(without.others.size(), 5U);
    EXPECT_THAT(against(without, exchange_kind::loopback), HasSubstr("libcuda.so.1: not found"));
    q.facts.have_gpu = true;
    EXPECT_EQ(choose_exchange(q).exchange, exchange_kind::loopback);
    EXPECT_THAT(against(choose_exchange(q), exchange_kind::host), HasSubstr("loopback is preferred"));
    q.facts.have_gpu = false;
    q.wanted = exchange_kind::loopback;
    EXPECT_THAT(message_of<unsupported_error>(q), HasSubstr("needs a GPU"));
    q.built = everything;
    q.wanted = exchange_kind::lsa;
    EXPECT_THAT(message_of<unsupported_error>(q), AllOf(HasSubstr("one GPU for each"), HasSubstr("torchrun")));
}

TEST(dispatcher, a_communicator_of_one_kind_leaves_no_choice) {
    exchange_question q;
    q.communicator = exchange_kind::host;
    EXPECT_EQ(choose_exchange(q).reason, "the communicator is host");
    EXPECT_EQ(against(choose_exchange(q), exchange_kind::lsa).empty(), false);
    q.wanted = exchange_kind::loopback;
    EXPECT_THAT(message_of<config_error>(q), HasSubstr("on a 'host' communicator"));
    q.built = everything;
    q.wanted = exchange_kind::sendrecv;
    EXPECT_THAT(message_of<config_error>(q), HasSubstr("communicator::from_nccl"));
}

TEST(dispatcher, the_path_follows_the_bound_that_all_ranks_share) {
    struct row {
        std::int32_t ll_max, max_tokens, bound;
        exchange_path expected;
    };
    const row table[] = {
        {0, 128, 0, exchange_path::high_throughput},  {0, 128, 1, exchange_path::high_throughput},
        {128, 128, 0, exchange_path::low_latency},    {128, 4096, 0, exchange_path::high_throughput},
        {128, 4096, 128, exchange_path::low_latency}, {128, 4096, 129, exchange_path::high_throughput},
        {128, 4096, 1, exchange_path::low_latency},
    };
    for (const row& r : table) {
        EXPECT_EQ(choose_path(r.ll_max, r.max_tokens, r.bound), r.expected)
            << r.ll_max << " " << r.max_tokens << " " << r.bound;
    }
    EXPECT_EQ(name(exchange_path::low_latency), "low latency");
}

TEST(dispatcher, versions_are_written_as_nccl_counts_them) {
    EXPECT_EQ(nccl_version_text(22809), "2.28.9");
    EXPECT_EQ(nccl_version_text(2708), "2.7.8");
}

}  // namespace
}  // namespace epjit::host
