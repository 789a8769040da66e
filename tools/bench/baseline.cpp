// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/baseline.hpp"

#include "host/exchange/communicator_state.hpp"

#include <algorithm>

namespace epjit::tools {
namespace {

/// First expert of rank `rank`; the first E mod R ranks hold one more.
std::int32_t first_expert(std::int32_t experts, std::int32_t ranks, std::int32_t rank) {
    return rank * (experts / ranks) + std::min(rank, experts % ranks);
}

exchange_config permute_config(std::int32_t hidden, std::int32_t experts, std::int32_t topk, std::int64_t tokens) {
    exchange_config c;
    c.hidden = hidden;
    c.num_experts = experts;
    c.topk = topk;
    c.max_tokens_per_rank = static_cast<std::int32_t>(tokens);
    return c;
}

host::device_buffer rows_of(const bench_rank& me, std::int64_t rows, std::int32_t hidden) {
    host::device_buffer b(me.context, static_cast<std::size_t>(rows * hidden * 2));
    host::fill_bytes(me.context, b.data(), 0x3c, b.bytes(), me.stream.get());
    return b;
}

tensor_view view_of(const host::device_buffer& b, std::int64_t rows, std::int32_t hidden) {
    tensor_view v;
    v.data = b.data();
    v.rows = rows;
    v.columns = hidden;
    return v;
}

}  // namespace

baseline_counts count_baseline(const std::vector<std::vector<std::int64_t>>& ids, std::int32_t experts, int rank) {
    const auto ranks = static_cast<std::int32_t>(ids.size());
    baseline_counts c{std::vector<std::int64_t>(ids.size(), 0), std::vector<std::int64_t>(ids.size(), 0), {}};
    const auto count_of = [&](std::int32_t source, std::int32_t expert) {
        return std::count(ids[source].begin(), ids[source].end(), expert);
    };
    const std::int32_t mine = first_expert(experts, ranks, rank), end = first_expert(experts, ranks, rank + 1);
    for (std::int32_t other = 0; other < ranks; ++other) {
        const std::int32_t last = first_expert(experts, ranks, other + 1);
        for (std::int32_t e = first_expert(experts, ranks, other); e < last; ++e) {
            c.sent[other] += count_of(rank, e);
        }
        for (std::int32_t e = mine; e < end; ++e) {
            const auto n = count_of(other, e);
            c.received[other] += n;
            c.arriving_slots.insert(c.arriving_slots.end(), static_cast<std::size_t>(n), e - mine);
        }
    }
    return c;
}

nccl_baseline::nccl_baseline(bench_rank& me, int rank, const bench_shape& shape, const bench_routing& routing,
                             runtime& rt)
    : me_(me),
      alone_(communicator::loopback(rt, 1, me.context->device())),
      tokens_(shape.tokens),
      hidden_(shape.hidden),
      sorted_rows_(std::int64_t{shape.tokens} * shape.topk),
      arriving_rows_(std::max<std::int64_t>(1, routing.rows[static_cast<std::size_t>(rank)].placed)),
      sort_(alone_, permute_config(shape.hidden, shape.experts, shape.topk, shape.tokens)),
      regroup_(alone_, permute_config(shape.hidden, shape.experts, 1, arriving_rows_)),
      input_(rows_of(me, tokens_, hidden_)),
      sorted_(rows_of(me, sorted_rows_, hidden_)),
      arrived_(rows_of(me, arriving_rows_, hidden_)),
      output_(rows_of(me, arriving_rows_, hidden_)),
      back_(rows_of(me, arriving_rows_, hidden_)),
      returned_(rows_of(me, sorted_rows_, hidden_)),
      result_(rows_of(me, tokens_, hidden_)) {
    const baseline_counts counts = count_baseline(routing.ids.front(), shape.experts, rank);
    ids_ = host::to_device<std::int64_t>(me.context, routing.ids.front()[static_cast<std::size_t>(rank)]);
    std::vector<std::int64_t> slots = counts.arriving_slots;
    slots.resize(static_cast<std::size_t>(arriving_rows_), -1);  // where nothing arrives, one row that goes nowhere
    slots_ = host::to_device<std::int64_t>(me.context, slots);
    weights_ = host::to_device<float>(me.context, std::vector<float>(static_cast<std::size_t>(sorted_rows_), 0.125F));
    make_transfers(counts, std::int64_t{hidden_} * 2);
    sort_.prepare();
    regroup_.prepare();
    plan(0);
    dispatch();
    combine();
    me.stream.synchronize();
}

void nccl_baseline::make_transfers(const baseline_counts& counts, std::int64_t row_bytes) {
    std::int64_t sent = 0, received = 0;
    for (std::size_t other = 0; other < counts.sent.size(); ++other) {
        const auto send_bytes = static_cast<std::size_t>(counts.sent[other] * row_bytes);
        const auto receive_bytes = static_cast<std::size_t>(counts.received[other] * row_bytes);
        host::peer_transfer t;
        t.peer = static_cast<std::int32_t>(other);
        t.send = sorted_.as<std::byte>() + sent * row_bytes;
        t.send_bytes = send_bytes;
        t.receive = arrived_.as<std::byte>() + received * row_bytes;
        t.receive_bytes = receive_bytes;
        out_.push_back(t);
        t.send = back_.as<std::byte>() + received * row_bytes;
        t.send_bytes = receive_bytes;
        t.receive = returned_.as<std::byte>() + sent * row_bytes;
        t.receive_bytes = send_bytes;
        home_.push_back(t);
        sent += counts.sent[other];
        received += counts.received[other];
    }
}

void nccl_baseline::plan(int) {
    plan_options options;
    options.mode = mode::fixed;
    const plan_args tokens{ids_.data(), tokens_, static_cast<std::int32_t>(sorted_rows_)};
    const auto arriving = static_cast<std::int32_t>(arriving_rows_);
    const plan_args rows{slots_.data(), arriving, arriving};
    sort_plan_ = sort_.make_plan({&tokens, 1}, options, me_.stream.get(), std::move(sort_plan_));
    regroup_plan_ = regroup_.make_plan({&rows, 1}, options, me_.stream.get(), std::move(regroup_plan_));
}

void nccl_baseline::dispatch() {
    dispatch_args sorting, regrouping;
    sorting.input = view_of(input_, tokens_, hidden_);
    sorting.output = view_of(sorted_, sorted_rows_, hidden_);
    sort_.dispatch(sort_plan_, {&sorting, 1}, {}, me_.stream.get());
    me_.comm.state().nccl->exchange(out_, me_.stream.get());
    regrouping.input = view_of(arrived_, arriving_rows_, hidden_);
    regrouping.output = view_of(output_, arriving_rows_, hidden_);
    regroup_.dispatch(regroup_plan_, {&regrouping, 1}, {}, me_.stream.get());
}

void nccl_baseline::combine() {
    combine_args ungrouping, summing;
    ungrouping.rows = view_of(output_, arriving_rows_, hidden_);
    ungrouping.output = view_of(back_, arriving_rows_, hidden_);
    regroup_.combine(regroup_plan_, {&ungrouping, 1}, {}, me_.stream.get());
    me_.comm.state().nccl->exchange(home_, me_.stream.get());
    summing.rows = view_of(returned_, sorted_rows_, hidden_);
    summing.weights = weights_.as<float>();
    summing.output = view_of(result_, tokens_, hidden_);
    sort_.combine(sort_plan_, {&summing, 1}, {}, me_.stream.get());
}

}  // namespace epjit::tools
