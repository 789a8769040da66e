// SPDX-License-Identifier: Apache-2.0
// Three ranks of an lsa exchange against a stub NCCL and a fake driver, and what they launch.
#pragma once

#include "epjit/epjit.hpp"
#include "host/exchange/layouts.hpp"
#include "tests/nccl/support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <vector>

namespace epjit::tests {

using testing::Each;
namespace kernels = templates;

constexpr int num_ranks = 3;
constexpr std::int32_t hidden = 64, topk = 2, max_tokens = 10, row_bytes = hidden * 2;
constexpr std::array<std::int32_t, num_ranks> tokens_of{10, 3, 0};

template <class F>
inline F* fake(const char* name) {
    static void* const library = dlopen(EPJIT_FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<F*>(dlsym(library, name));
}

/// What was launched since it was made.
class seen_launches {
   public:
    /// Arguments of the kernels whose name contains `kernel`, in order.
    template <class Args>
    [[nodiscard]] std::vector<Args> of(const char* kernel) const {
        std::vector<Args> found;
        each(kernel, [&](const unsigned*, const void* args) {
            std::memcpy(static_cast<void*>(&found.emplace_back()), args, sizeof(Args));
        });
        return found;
    }
    /// Those of rank 0.
    template <class Args>
    [[nodiscard]] std::vector<Args> of_rank_0(const char* kernel) const {
        std::vector<Args> found = of<Args>(kernel);
        std::erase_if(found, [](const Args& a) { return a.link.me != 0; });
        return found;
    }
    /// Their blocks.
    [[nodiscard]] std::vector<unsigned> blocks_of(const char* kernel) const {
        std::vector<unsigned> found;
        each(kernel, [&](const unsigned* shape, const void*) { found.push_back(shape[0]); });
        return found;
    }
    /// How they were launched: 0 after the kernel in front, 1 cooperatively, 2 before its end.
    [[nodiscard]] std::vector<unsigned> modes_of(const char* kernel) const {
        std::vector<unsigned> found;
        each(kernel, [&](const unsigned* shape, const void*) { found.push_back(shape[3]); });
        return found;
    }

   private:
    template <class Visit>
    void each(const char* kernel, const Visit& visit) const {
        const std::size_t end = fake<std::size_t()>("fake_cuda_num_launches")();
        for (std::size_t i = first_; i < end; ++i) {
            unsigned shape[4];
            const void* args = nullptr;
            const char* name =
                fake<const char*(std::size_t, unsigned*, const void**)>("fake_cuda_launch")(i, shape, &args);
            if (std::strstr(name, kernel) != nullptr) {
                visit(shape, args);
            }
        }
    }

    std::size_t first_ = fake<std::size_t()>("fake_cuda_num_launches")();
};

/// A rank with memory for its calls.
class rank_of_three {
   public:
    rank_of_three(int rank, communicator& comm, exchange_config config = config_of(4))
        : tokens(tokens_of[static_cast<std::size_t>(rank)]), ex(comm, config) {
        args.routing = ids.data();
        args.num_tokens = tokens;
        args.capacity = num_ranks * max_tokens * topk;
        options.mode = mode::fixed;
        p = ex.make_plan({&args, 1}, options, nullptr);
    }
    /// Room for `staged` tokens of every rank.
    static exchange_config config_of(std::int32_t staged) {
        exchange_config c;
        c.kind = exchange_kind::lsa;
        c.hidden = hidden;
        c.num_experts = 6;
        c.topk = topk;
        c.max_tokens_per_rank = max_tokens;
        c.backward = true;
        c.staging_bytes = std::int64_t{num_ranks} * staged * row_bytes;
        return c;
    }
    /// The same, with calls of up to four tokens a rank on the low-latency path; staging holds all that there are.
    static exchange_config config_of_few() {
        exchange_config c = config_of(max_tokens);
        c.ll_max_tokens_per_rank = 4;
        return c;
    }
    [[nodiscard]] tensor_view tensor(std::int64_t rows) {
        tensor_view v;
        v.data = memory.data();
        v.rows = rows;
        v.columns = hidden;
        return v;
    }
    [[nodiscard]] dispatch_args dispatch() {
        dispatch_args d;
        d.input = tensor(args.num_tokens);
        d.output = tensor(args.capacity);
        d.row_source = sources.data();
        return d;
    }
    [[nodiscard]] combine_args combine() {
        combine_args c;
        c.rows = tensor(args.capacity);
        c.output = tensor(args.num_tokens);
        return c;
    }
    /// From here on calls are bounded by `bound` tokens a rank; 0: by none, and this rank brings all of its own.
    void bring_at_most(std::int32_t bound) {
        options.token_bound = bound;
        args.num_tokens = bound != 0 ? std::min(tokens, bound) : tokens;
    }
    /// A whole dispatch and a whole combine.
    void dispatch_and_combine(const plan& of) {
        const dispatch_args d = dispatch();
        ex.dispatch(of, {&d, 1}, {}, nullptr);
        const combine_args c = combine();
        ex.combine(of, {&c, 1}, {}, nullptr);
    }

    std::int32_t tokens;
    exchange ex;
    plan p;
    plan_args args;
    plan_options options;

   private:
    std::vector<std::int64_t> ids = std::vector<std::int64_t>(max_tokens * topk, 0);
    std::vector<std::int32_t> sources = std::vector<std::int32_t>(num_ranks * max_tokens * topk * 2);
    std::vector<std::byte> memory = std::vector<std::byte>(num_ranks * max_tokens * topk * row_bytes);
};

/// Three ranks make an exchange, `calls` are issued by each; then `check` runs once, while all of them are alive.
inline void with_ranks(const std::function<void(rank_of_three&)>& calls, const std::function<void()>& check,
                       const char* profile = nullptr, const exchange_config& config = rank_of_three::config_of(4)) {
    const variable compiler("EPJIT_NVRTC_LIBRARY", EPJIT_FAKE_NVRTC_A), tuning("EPJIT_PROFILE", profile);
    const outcomes errors = run_ranks("2.30.7", num_ranks, [&](int rank, communicator& comm, runtime&) {
        rank_of_three r(rank, comm, config);
        r.ex.prepare();
        nccl_of(comm).barrier_host();
        calls(r);
        nccl_of(comm).barrier_host();
        if (rank == 0) {
            check();
        }
        nccl_of(comm).barrier_host();
    });
    EXPECT_THAT(errors, Each(""));
}

}  // namespace epjit::tests
