// SPDX-License-Identifier: Apache-2.0
// The same random layers through the C and the C++ interface on the host exchange: every byte that comes out is equal.
#include "epjit/epjit.hpp"
#include "tests/c/support.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace epjit::tests {
namespace {

/// What one driven rank brings, and where its results go.
struct rank_data {
    std::int32_t tokens = 0, capacity = 0;
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    std::vector<std::uint16_t> x, gradient;
};
struct rank_result {
    std::vector<std::int32_t> counts, offsets, row_source, local_ids;
    std::vector<float> row_weights, local_weights, from_rows, from_gradients;
    std::vector<std::uint16_t> rows, out;
    std::vector<std::uint64_t> slot_tokens;
    std::int64_t num_rows = 0;
    bool operator==(const rank_result& o) const {
        // Bytes, as NaNs and zeros of both signs count.
        const auto same = [](const auto& a, const auto& b) {
            return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0);
        };
        return same(counts, o.counts) && same(offsets, o.offsets) && same(row_source, o.row_source) &&
               same(local_ids, o.local_ids) && same(row_weights, o.row_weights) &&
               same(local_weights, o.local_weights) && same(from_rows, o.from_rows) &&
               same(from_gradients, o.from_gradients) && same(rows, o.rows) && same(out, o.out) &&
               same(slot_tokens, o.slot_tokens) && num_rows == o.num_rows;
    }
};

struct job {
    std::int32_t hidden = 0, experts = 0, topk = 0, max_tokens = 0, alignment = 1;
    layout rows = layout::expert_major;
    mode when = mode::exact;
    reduction sum = reduction::per_rank;
    bool weigh_input = false, halves = false, zero_tail = false;
    std::vector<rank_data> ranks;
    std::vector<std::int32_t> hosts;
    [[nodiscard]] bool flat() const { return rows == layout::flat; }
    [[nodiscard]] std::string text() const {
        return fmt::format("R={} H={} E={} K={} T<={} {} {} {} align {} weigh_input {} halves {}", ranks.size(), hidden,
                           experts, topk, max_tokens, name(rows), name(when), name(sum), alignment, weigh_input,
                           halves);
    }
};

/// What each rank has counted so far: a plan adds to it.
std::vector<std::vector<std::uint64_t>> counted_before(const job& j) {
    std::vector<std::vector<std::uint64_t>> tokens;
    for (std::size_t r = 0; r < j.ranks.size(); ++r) {
        tokens.emplace_back(static_cast<std::size_t>(j.experts), 7 + r);
    }
    return tokens;
}

job draw(std::mt19937_64& random) {
    const auto upto = [&](std::int32_t n) { return static_cast<std::int32_t>(random() % n); };
    job j;
    j.ranks.resize(1 + upto(6));
    j.experts = 1 + upto(20);
    j.topk = 1 + upto(std::min(j.experts, 4));
    j.hidden = 1 + upto(40);
    j.max_tokens = 1 + upto(12);
    j.rows = static_cast<layout>(upto(3));
    j.when = static_cast<mode>(upto(2));
    j.sum = static_cast<reduction>(upto(j.flat() ? 2 : 3));
    j.alignment = j.rows == layout::expert_major ? 1 + upto(4) : 1;
    j.weigh_input = !j.flat() && upto(2) != 0;
    j.halves = upto(2) != 0;
    j.zero_tail = upto(2) != 0;
    for (std::size_t r = 0; r < j.ranks.size(); ++r) {
        j.hosts.push_back(static_cast<std::int32_t>(r / 2));
        rank_data& d = j.ranks[r];
        d.tokens = upto(j.max_tokens + 1);
        for (std::int32_t i = 0; i < d.tokens * j.topk; ++i) {
            d.ids.push_back(upto(j.experts + 2) - 1);  // -1 and one that is out of range among them
            d.weights.push_back(static_cast<float>(upto(1000)) / 512.0F);
        }
        for (std::int32_t i = 0; i < d.tokens * j.hidden; ++i) {
            d.x.push_back(static_cast<std::uint16_t>(0x3f00 + upto(0x200)));
            d.gradient.push_back(static_cast<std::uint16_t>(0xbf00 + upto(0x200)));
        }
    }
    return j;
}

/// Rows of an output, and buffers of that size full of one poison on both sides.
rank_result make_result(const job& j, const rank_data& d, std::int64_t rows) {
    rank_result o;
    o.num_rows = rows;
    o.rows.assign(rows * j.hidden, 0x7e7e);
    o.out.assign(d.tokens * j.hidden, 0x7e7e);
    o.row_source.assign(2 * rows, 77);
    (j.flat() ? o.local_ids : o.row_source).resize(j.flat() ? rows * j.topk : 2 * rows, 77);
    (j.flat() ? o.local_weights : o.row_weights).assign(j.flat() ? rows * j.topk : rows, 7.5F);
    if (!j.flat()) {
        o.from_rows.assign(d.tokens * j.topk, 7.5F);
        o.from_gradients = o.from_rows;
    }
    return o;
}

template <class View>
void keep_counts(rank_result& o, const View& v) {
    o.counts.assign(v.counts, v.counts + v.num_slots);
    o.offsets.assign(v.offsets, v.offsets + v.num_slots + 1);
}

std::int64_t output_rows(const job& j, std::int64_t exact_rows, std::int32_t slots, std::int32_t capacity) {
    return j.rows == layout::masked ? std::int64_t{slots} * capacity : j.when == mode::exact ? exact_rows : capacity;
}

/// The layer through C++; also fills the capacities from worst_case_rows.
std::vector<rank_result> through_cpp(job& j) {
    const auto num = j.ranks.size();
    runtime_options quiet;
    quiet.cache_path = "";
    runtime rt(quiet);
    communicator comm = communicator::host(rt, static_cast<int>(num));
    exchange_config c;
    c.hidden = j.hidden;
    c.num_experts = j.experts;
    c.topk = j.topk;
    c.max_tokens_per_rank = j.max_tokens;
    c.rank_hosts = j.hosts.data();
    exchange ex(comm, c);
    plan_options o;
    o.mode = j.when;
    o.layout = j.rows;
    o.ids = id_type::i32;
    o.alignment = j.alignment;
    std::vector<plan_args> args(num);
    auto tokens = counted_before(j);
    for (std::size_t r = 0; r < num; ++r) {
        const auto worst = ex.worst_case_rows(static_cast<int>(r), o);
        j.ranks[r].capacity = static_cast<std::int32_t>(
            j.rows == layout::masked ? static_cast<std::int64_t>(num) * j.max_tokens : worst + 1);
        args[r] = {j.ranks[r].ids.data(), j.ranks[r].tokens, j.ranks[r].capacity, tokens[r].data()};
    }
    const plan p = ex.make_plan(args, o, nullptr);
    const auto view_of = [&](std::vector<std::uint16_t>& data) {
        return tensor_view{data.data(), dtype::bf16, static_cast<std::int64_t>(data.size()) / j.hidden, j.hidden};
    };
    std::vector<rank_result> results;
    std::vector<dispatch_args> d(num);
    std::vector<combine_args> m(num);
    std::vector<weight_gradient_args> g(num);
    for (std::size_t r = 0; r < num; ++r) {
        const plan_view v = p.view(static_cast<int>(r));
        results.push_back(make_result(j, j.ranks[r], output_rows(j, v.rows, v.num_slots, j.ranks[r].capacity)));
        keep_counts(results.back(), v);
        results.back().slot_tokens = tokens[r];
    }
    for (std::size_t r = 0; r < num; ++r) {
        rank_result& to = results[r];
        d[r] = {view_of(j.ranks[r].x),
                j.ranks[r].weights.data(),
                view_of(to.rows),
                to.row_source.data(),
                j.flat() ? nullptr : to.row_weights.data(),
                j.flat() ? to.local_ids.data() : nullptr,
                j.flat() ? to.local_weights.data() : nullptr};
        m[r] = {view_of(to.rows), j.flat() ? nullptr : j.ranks[r].weights.data(), view_of(to.out)};
        g[r] = {view_of(to.rows), view_of(j.ranks[r].gradient), nullptr, to.from_rows.data()};
    }
    const dispatch_options with{j.weigh_input, true, j.zero_tail, 0};
    if (j.halves) {
        ex.dispatch_send(p, d, with, nullptr);
        ex.dispatch_receive(p, d, with, nullptr);
        ex.combine_send(p, m, {j.sum, 0}, nullptr);
        ex.combine_receive(p, m, {j.sum, 0}, nullptr);
    } else {
        ex.dispatch(p, d, with, nullptr);
        ex.combine(p, m, {j.sum, 0}, nullptr);
    }
    if (!j.flat()) {
        ex.weight_gradients(p, g, nullptr);
        for (std::size_t r = 0; r < num; ++r) {
            g[r] = {{}, {}, results[r].row_weights.data(), results[r].from_gradients.data()};
        }
        ex.weight_gradients(p, g, nullptr);
    }
    return results;
}

epjit_tensor tensor_of(const job& j, std::vector<std::uint16_t>& data) {
    epjit_tensor t{};
    t.data = data.data();
    t.rows = static_cast<std::int64_t>(data.size()) / j.hidden;
    t.columns = j.hidden;
    return t;
}

void move_through_c(job& j, epjit_exchange* ex, epjit_plan* p, std::vector<rank_result>& results) {
    const auto num = static_cast<std::uint32_t>(j.ranks.size());
    std::vector<epjit_dispatch_args> d(num, sized<epjit_dispatch_args>());
    std::vector<epjit_combine_args> m(num, sized<epjit_combine_args>());
    std::vector<epjit_weight_gradient_args> g(num, sized<epjit_weight_gradient_args>()), made = g;
    for (std::uint32_t r = 0; r < num; ++r) {
        rank_data& from = j.ranks[r];
        rank_result& to = results[r];
        d[r].input = tensor_of(j, from.x);
        d[r].weights = from.weights.data();
        d[r].output = tensor_of(j, to.rows);
        d[r].row_source = to.row_source.data();
        d[r].row_weights = j.flat() ? nullptr : to.row_weights.data();
        d[r].local_ids = j.flat() ? to.local_ids.data() : nullptr;
        d[r].local_weights = j.flat() ? to.local_weights.data() : nullptr;
        m[r].rows = tensor_of(j, to.rows);
        m[r].weights = j.flat() ? nullptr : from.weights.data();
        m[r].output = tensor_of(j, to.out);
        g[r].rows = tensor_of(j, to.rows);
        g[r].gradient = tensor_of(j, from.gradient);
        g[r].output = to.from_rows.data();
        made[r].row_gradients = to.row_weights.data();
        made[r].output = to.from_gradients.data();
    }
    epjit_dispatch_options with;
    epjit_combine_options sum;
    ASSERT_OK(epjit_dispatch_options_init(&with, sizeof with));
    ASSERT_OK(epjit_combine_options_init(&sum, sizeof sum));
    with.weigh_input = j.weigh_input ? 1 : 0;
    with.zero_tail = j.zero_tail ? 1 : 0;
    sum.reduction = static_cast<epjit_reduction>(j.sum);
    if (j.halves) {
        ASSERT_OK(epjit_dispatch_send(ex, p, d.data(), num, &with, nullptr));
        ASSERT_OK(epjit_dispatch_receive(ex, p, d.data(), num, &with, nullptr));
        ASSERT_OK(epjit_combine_send(ex, p, m.data(), num, &sum, nullptr));
        ASSERT_OK(epjit_combine_receive(ex, p, m.data(), num, &sum, nullptr));
    } else {
        ASSERT_OK(epjit_dispatch(ex, p, d.data(), num, &with, nullptr));
        ASSERT_OK(epjit_combine(ex, p, m.data(), num, &sum, nullptr));
    }
    if (!j.flat()) {
        ASSERT_OK(epjit_weight_gradients(ex, p, g.data(), num, nullptr));
        ASSERT_OK(epjit_weight_gradients(ex, p, made.data(), num, nullptr));
    }
}

std::vector<rank_result> through_c(job& j) {
    const auto num = static_cast<std::uint32_t>(j.ranks.size());
    std::vector<rank_result> results;
    const handle<epjit_runtime> rt = make_runtime(quiet_options());
    epjit_communicator* comm = nullptr;
    EXPECT_OK(epjit_communicator_host(rt.get(), static_cast<std::int32_t>(num), &comm));
    const handle<epjit_communicator> communicator(comm);
    epjit_exchange_config c;
    EXPECT_OK(epjit_exchange_config_init(&c, sizeof c));
    c.hidden = j.hidden;
    c.num_experts = j.experts;
    c.topk = j.topk;
    c.max_tokens_per_rank = j.max_tokens;
    c.rank_hosts = j.hosts.data();
    epjit_exchange* ex = nullptr;
    EXPECT_OK(epjit_exchange_create(comm, &c, &ex));
    const handle<epjit_exchange> exchange(ex);
    epjit_plan_options o;
    EXPECT_OK(epjit_plan_options_init(&o, sizeof o));
    o.mode = static_cast<epjit_mode>(j.when);
    o.layout = static_cast<epjit_layout>(j.rows);
    o.ids = EPJIT_ID_I32;
    o.alignment = j.alignment;
    std::vector<epjit_plan_args> args(num, sized<epjit_plan_args>());
    auto tokens = counted_before(j);
    for (std::uint32_t r = 0; r < num; ++r) {
        args[r].routing = j.ranks[r].ids.data();
        args[r].num_tokens = j.ranks[r].tokens;
        args[r].capacity = j.ranks[r].capacity;
        args[r].slot_tokens = tokens[r].data();
    }
    epjit_plan* p = nullptr;
    EXPECT_OK(epjit_make_plan(ex, args.data(), num, &o, nullptr, &p));
    const handle<epjit_plan> plan(p);
    for (std::uint32_t r = 0; r < num; ++r) {
        epjit_plan_view v = sized<epjit_plan_view>();
        EXPECT_OK(epjit_plan_get_view(p, static_cast<std::int32_t>(r), &v));
        results.push_back(make_result(j, j.ranks[r], output_rows(j, v.rows, v.num_slots, j.ranks[r].capacity)));
        keep_counts(results.back(), v);
        results.back().slot_tokens = tokens[r];
        EXPECT_EQ(v.host_counts != nullptr, j.when == mode::exact);
    }
    move_through_c(j, ex, p, results);
    epjit_plan_status status = sized<epjit_plan_status>();
    EXPECT_OK(epjit_plan_get_status(p, &status));
    EXPECT_EQ(status.dropped_rows, 0u);
    return results;
}

TEST(c_layer, bytes_are_those_of_the_cpp_interface) {
    const std::uint64_t seed = std::random_device{}();
    std::mt19937_64 random(seed);
    for (int i = 0; i < 150; ++i) {
        job j = draw(random);
        SCOPED_TRACE(fmt::format("seed {} case {}: {}", seed, i, j.text()));
        const std::vector<rank_result> expected = through_cpp(j), seen = through_c(j);
        ASSERT_EQ(expected.size(), seen.size());
        for (std::size_t r = 0; r < seen.size(); ++r) {
            ASSERT_TRUE(expected[r] == seen[r]) << "rank " << r;
        }
    }
}

}  // namespace
}  // namespace epjit::tests
