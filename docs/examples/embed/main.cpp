// SPDX-License-Identifier: Apache-2.0
// One MoE layer over four ranks, on the CPU: dispatch the tokens to their experts, run the experts, combine.
// The host exchange drives all four ranks from one thread; on a GPU the same calls take a stream and device memory.
#include <cstdint>
#include <cstdio>
#include <epjit/epjit.hpp>
#include <vector>

namespace {

constexpr int ranks = 4, hidden = 64, experts = 8, topk = 2, tokens = 3;

// What one rank owns. Plain vectors: inputs and outputs are the caller's memory.
struct rank_memory {
    std::vector<float> x, weights, rows, out;
    std::vector<std::int64_t> ids;
};

// Token t of rank r is a row of the constant t + r + 1; it goes to the experts (r + t) and (r + t + 3) modulo 8.
std::vector<rank_memory> make_tokens() {
    std::vector<rank_memory> memory(ranks);
    for (int r = 0; r < ranks; ++r) {
        rank_memory& m = memory[r];
        for (int t = 0; t < tokens; ++t) {
            m.x.insert(m.x.end(), hidden, static_cast<float>(t + r + 1));
            m.ids.insert(m.ids.end(), {(r + t) % experts, (r + t + 3) % experts});
            m.weights.insert(m.weights.end(), {0.75F, 0.25F});
        }
        m.out.resize(m.x.size());
    }
    return memory;
}

epjit::tensor_view view_of(std::vector<float>& values) {
    return {.data = values.data(),
            .type = epjit::dtype::f32,
            .rows = static_cast<std::int64_t>(values.size()) / hidden,
            .columns = hidden};
}

// Expert e multiplies its rows by e + 1. By default rank r holds the experts from 2 r on, in its slots 0 and 1.
void run_experts(const epjit::plan& plan, std::vector<rank_memory>& memory) {
    for (int r = 0; r < ranks; ++r) {
        const epjit::plan_view view = plan.view(r);
        for (int slot = 0; slot < view.num_slots; ++slot) {
            const auto factor = static_cast<float>(r * experts / ranks + slot + 1);
            const std::int64_t first = view.offsets[slot] * hidden, count = view.counts[slot] * hidden;
            for (std::int64_t i = first; i < first + count; ++i)
                memory[r].rows[i] *= factor;
        }
    }
}

// How many output elements differ from 0.75 (e1 + 1) x + 0.25 (e2 + 1) x; every term here is exact in f32.
int count_wrong(const std::vector<rank_memory>& memory) {
    int wrong = 0;
    for (int r = 0; r < ranks; ++r) {
        for (int t = 0; t < tokens; ++t) {
            const auto first = static_cast<float>((r + t) % experts + 1);
            const auto second = static_cast<float>((r + t + 3) % experts + 1);
            const float expected = (0.75F * first + 0.25F * second) * static_cast<float>(t + r + 1);
            for (int h = 0; h < hidden; ++h)
                wrong += memory[r].out[t * hidden + h] != expected ? 1 : 0;
        }
    }
    return wrong;
}

// H, E, K, the largest T of any call, and the element types: f32 throughout.
epjit::exchange_config layer_config() {
    return {.hidden = hidden,
            .num_experts = experts,
            .topk = topk,
            .max_tokens_per_rank = tokens,
            .input_type = epjit::dtype::f32,
            .dispatch_type = epjit::dtype::f32,
            .combine_type = epjit::dtype::f32};
}

// One argument struct for each driven rank, in rank order.
std::vector<epjit::plan_args> routing_of(std::vector<rank_memory>& memory) {
    std::vector<epjit::plan_args> args;
    for (rank_memory& m : memory)
        args.push_back({.routing = m.ids.data(), .num_tokens = tokens});
    return args;
}

std::vector<epjit::dispatch_args> dispatch_of(std::vector<rank_memory>& memory) {
    std::vector<epjit::dispatch_args> args;
    for (rank_memory& m : memory)
        args.push_back({.input = view_of(m.x), .output = view_of(m.rows)});
    return args;
}

std::vector<epjit::combine_args> combine_of(std::vector<rank_memory>& memory) {
    std::vector<epjit::combine_args> args;
    for (rank_memory& m : memory)
        args.push_back({.rows = view_of(m.rows), .weights = m.weights.data(), .output = view_of(m.out)});
    return args;
}

int run() {
    const epjit::stream_t stream = nullptr;  // the host exchange has none
    std::vector<rank_memory> memory = make_tokens();

    epjit::runtime runtime;
    epjit::communicator comm = epjit::communicator::host(runtime, ranks);
    epjit::exchange moe(comm, layer_config());

    epjit::plan plan = moe.make_plan(routing_of(memory), {}, stream);
    for (int r = 0; r < ranks; ++r)
        memory[r].rows.resize(plan.view(r).rows * hidden);
    moe.dispatch(plan, dispatch_of(memory), {}, stream);  // rows now lie by expert, on the rank that holds it
    run_experts(plan, memory);
    moe.combine(plan, combine_of(memory), {}, stream);  // weighted sums, back in token order

    const int wrong = count_wrong(memory);
    std::printf("epjit %.*s: one layer over %d ranks, %d wrong values\n",
                static_cast<int>(epjit::runtime::version().size()), epjit::runtime::version().data(), ranks, wrong);
    return wrong == 0 ? 0 : 1;
}

}  // namespace

int main() {
    try {
        return run();
    } catch (const epjit::error& e) {
        std::fprintf(stderr, "%s error: %s\n", epjit::name(e.kind()), e.what());
        return 2;
    }
}
