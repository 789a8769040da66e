// SPDX-License-Identifier: Apache-2.0
// Calls of lsa whose rows do not fit the memory that they travel through, against a stub NCCL and a fake driver: what
// is launched for which tokens, and that what a rank writes is what its peer reads.
#include "tests/nccl/lsa_ranks.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <vector>

namespace epjit {
namespace {

using namespace tests;
using testing::AllOf;
using testing::HasSubstr;
constexpr std::array<std::int32_t, 3> windows{0, 4, 8};  ///< the first token of each

/// Tuning that makes every call one of several launches.
constexpr const char* steps_text =
    R"({"epjit_profile": 1, "entries": [{"knobs": {"dispatch_launches": 2, "combine_launches": 2}}]})";

/// The windows that ranks reach, from the steps of their calls.
class window_places {
   public:
    explicit window_places(const kernels::rank_link& link) { add(link); }
    explicit window_places(const seen_launches& seen) {
        for (const auto& a : seen.of<kernels::sync_args>("sync_kernel")) {
            add(a.link);
        }
    }
    void add(const kernels::rank_link& link) { links_[link.me] = link; }
    /// Where `p` lies in the window of `rank`, as `me` sees it.
    [[nodiscard]] std::int64_t place(std::int32_t me, std::int32_t rank, const void* p) const {
        const kernels::rank_link& link = links_.at(me);
        const auto* base = me == rank
                               ? reinterpret_cast<const std::uint8_t*>(link.poison) - kernels::window_poison_offset
                               : link.peers[rank];
        return static_cast<const std::uint8_t*>(p) - base;
    }

   private:
    std::map<std::int32_t, kernels::rank_link> links_;
};

/// The launches of a whole call, by rank and window, each of the right tokens; where the ranks' windows lie is added
/// to `where`.
template <class Args>
std::map<std::pair<int, int>, Args> by_window(const std::vector<Args>& launches, window_places& where) {
    std::map<std::pair<int, int>, Args> found;
    std::array<int, num_ranks> count{};
    for (const Args& l : launches) {
        where.add(l.link);
        const auto me = static_cast<std::size_t>(l.link.me);
        const int window = count[me]++;
        const std::int32_t first = windows.at(static_cast<std::size_t>(window));
        EXPECT_EQ(l.list.first_token, first);
        EXPECT_EQ(l.list.window, 4);
        EXPECT_EQ(l.num_tokens, first + std::clamp(tokens_of[me] - first, 0, 4));
        found[{l.link.me, window}] = l;
    }
    return found;
}

/// Places of one window of a rank's memory that are written or read: (from, token) to the place.
using places = std::map<std::pair<std::int32_t, std::int32_t>, std::int64_t>;

/// No two rows of a window share memory, and all lie in the staging.
void expect_apart(const places& rows, std::int64_t staging, std::int64_t bytes) {
    std::set<std::int64_t> starts;
    for (const auto& [what, place] : rows) {
        EXPECT_GE(place, staging);
        EXPECT_LE(place + row_bytes, staging + bytes) << "rank " << what.first << ", token " << what.second;
        EXPECT_TRUE(starts.insert(place).second);
    }
    std::int64_t last = -row_bytes;
    for (const std::int64_t start : starts) {
        EXPECT_GE(start, last + row_bytes);
        last = start;
    }
}

TEST(token_windows, one_launch_of_a_dispatch_for_each_and_rows_are_read_where_they_were_written) {
    const seen_launches seen;
    with_ranks(
        [](rank_of_three& r) {
            const dispatch_args d = r.dispatch();
            r.ex.dispatch(r.p, {&d, 1}, {}, nullptr);
        },
        [&] {
            const auto launches = seen.of<kernels::dispatch_args<8>>("dispatch_kernel");
            ASSERT_EQ(launches.size(), num_ranks * windows.size());
            window_places where(launches[0].link);
            auto by_rank = by_window(launches, where);
            for (const auto& [key, l] : by_rank) {
                EXPECT_EQ(l.list.first_token % l.chunk, 0);
                EXPECT_EQ(l.fill_last_slot != 0, key.second == 0) << "rows without a token are filled once";
            }
            std::int64_t staging = -1;
            for (int w = 0; w < 3; ++w) {
                for (int reader = 0; reader < num_ranks; ++reader) {
                    places written;
                    for (int writer = 0; writer < num_ranks; ++writer) {
                        const auto& in = by_rank[{reader, w}].ranks[writer];
                        EXPECT_EQ(in.by_token, 1);
                        for (std::int32_t t = windows[static_cast<std::size_t>(w)];
                             writer != reader && t < windows[static_cast<std::size_t>(w)] + 4; ++t) {
                            const auto& out = by_rank[{writer, w}].ranks[reader];
                            const std::int64_t place = where.place(
                                writer, reader, static_cast<const std::uint8_t*>(out.output) + t * out.output_stride);
                            EXPECT_EQ(place,
                                      where.place(reader, reader,
                                                  static_cast<const std::uint8_t*>(in.input) + t * in.input_stride));
                            written[{writer, t}] = place;
                        }
                    }
                    const std::int64_t lowest =
                        std::min_element(written.begin(), written.end(), [](const auto& a, const auto& b) {
                            return a.second < b.second;
                        })->second;
                    staging = staging < 0 ? lowest - (reader == 0 ? 4 * row_bytes : 0) : staging;
                    expect_apart(written, staging, std::int64_t{num_ranks} * 4 * row_bytes);
                }
            }
        });
}

TEST(token_windows, sums_of_a_combine_are_found_at_their_tokens) {
    const seen_launches seen;
    with_ranks(
        [](rank_of_three& r) {
            const combine_args c = r.combine();
            r.ex.combine(r.p, {&c, 1}, {}, nullptr);
        },
        [&] {
            const auto launches = seen.of<kernels::combine_args<8>>("combine_kernel");
            ASSERT_EQ(launches.size(), num_ranks * windows.size());
            window_places where(launches[0].link);
            auto by_rank = by_window(launches, where);
            for (int w = 0; w < 3; ++w) {
                for (int owner = 0; owner < num_ranks; ++owner) {
                    for (int holder = 0; holder < num_ranks; ++holder) {
                        const std::int32_t t = windows[static_cast<std::size_t>(w)] + 3;
                        const auto& out = by_rank[{holder, w}].ranks[owner];
                        const auto& in = by_rank[{owner, w}].ranks[holder];
                        if (owner != holder) {
                            EXPECT_EQ(where.place(holder, owner,
                                                  static_cast<const std::uint8_t*>(out.output) + t * out.output_stride),
                                      where.place(owner, owner,
                                                  static_cast<const std::uint8_t*>(in.rows) + t * in.row_stride));
                        }
                    }
                }
            }
        });
}

TEST(token_windows, calls_of_several_launches_send_and_read_by_token_too) {
    const profile_file profile(steps_text);
    const seen_launches seen;
    with_ranks(
        [](rank_of_three& r) {
            const dispatch_args d = r.dispatch();
            r.ex.dispatch(r.p, {&d, 1}, {}, nullptr);
        },
        [&] {
            const window_places where(seen);
            const auto found = seen.of<kernels::window_lines_args>("window_lines_kernel");
            EXPECT_EQ(found.size(), num_ranks * windows.size());
            std::map<std::pair<int, int>, kernels::scatter_args<8>> sends, reads;  // rank, window
            std::array<int, num_ranks> sent{}, read{};
            for (const auto& l : seen.of<kernels::scatter_args<8>>("scatter")) {
                auto& n = l.list.lines == nullptr ? sent : read;
                auto& all = l.list.lines == nullptr ? sends : reads;
                all[{l.list.me, n[static_cast<std::size_t>(l.list.me)]++}] = l;
            }
            EXPECT_THAT(sent, testing::ElementsAre(3, 1, 0)) << "windows in which a rank has tokens";
            EXPECT_THAT(read, Each(3));
            for (const auto& [key, s] : sends) {
                const auto& [writer, w] = key;
                EXPECT_EQ(s.list.numbering, kernels::row_numbering::token);
                const std::int32_t first = windows[static_cast<std::size_t>(w)];
                EXPECT_EQ(s.num_tokens, std::min(4, tokens_of[static_cast<std::size_t>(writer)] - first));
                const auto& before = sends[{writer, 0}];
                EXPECT_EQ(s.entries - before.entries, first * topk);
                EXPECT_EQ(static_cast<const std::uint8_t*>(s.ranks[writer].input) -
                              static_cast<const std::uint8_t*>(before.ranks[writer].input),
                          first * row_bytes);
                for (int reader = 0; reader < num_ranks; ++reader) {
                    const auto& r = reads[{reader, w}];
                    EXPECT_EQ(r.list.window, 0) << "the list is narrowed already";
                    EXPECT_EQ(r.list.line_skip, r.list.line_first + num_ranks + 1);
                    const auto& in = r.ranks[writer];
                    EXPECT_EQ(in.by_token, 1);
                    if (reader != writer) {
                        EXPECT_EQ(where.place(writer, reader, s.ranks[reader].output),
                                  where.place(reader, reader,
                                              static_cast<const std::uint8_t*>(in.input) + first * in.input_stride));
                    }
                }
            }
        },
        profile.path());
}

TEST(token_windows, sums_and_gradients_of_several_launches_come_back_once_for_every_token) {
    const profile_file profile(steps_text);
    const seen_launches seen;
    with_ranks(
        [](rank_of_three& r) {
            const combine_args c = r.combine();
            r.ex.combine(r.p, {&c, 1}, {}, nullptr);
            weight_gradient_args g;
            std::vector<float> out(static_cast<std::size_t>(max_tokens) * topk);
            g.rows = c.rows;
            g.gradient = c.output;
            g.output = out.data();
            r.ex.weight_gradients(r.p, {&g, 1}, nullptr);
        },
        [&] {
            std::array<int, num_ranks> summed{}, finished{};
            for (const auto& l : seen.of<kernels::gather_args<8>>("gather_kernel")) {
                const auto me = static_cast<std::size_t>(l.list.me);
                if (l.list.lines != nullptr) {
                    ++summed[me];
                    continue;
                }
                const std::int32_t first = windows[static_cast<std::size_t>(finished[me]++)];
                EXPECT_EQ(l.list.first_token, first);
                EXPECT_EQ(l.list.window, 4);
                EXPECT_EQ(l.num_tokens, tokens_of[me]);
            }
            EXPECT_THAT(summed, Each(3));
            EXPECT_THAT(finished, testing::ElementsAre(3, 1, 0));
            std::array<int, num_ranks> lines{}, tokens{};
            for (const auto& l : seen.of<kernels::gather_args<8>>("weight_gradient_kernel")) {
                auto& n = l.list.lines != nullptr ? lines : tokens;
                ++n[static_cast<std::size_t>(l.list.me)];
            }
            EXPECT_THAT(lines, Each(3));
            EXPECT_THAT(tokens, testing::ElementsAre(1, 1, 0));
            // Every rank has taken the same steps.
            std::array<int, num_ranks> steps{};
            for (const auto& a : seen.of<kernels::sync_args>("sync_kernel")) {
                steps[static_cast<std::size_t>(a.link.me)] += a.signal;
            }
            EXPECT_THAT(steps, Each(steps[0]));
        },
        profile.path());
}

TEST(token_windows, halves_and_lent_rows_of_a_call_of_several_are_refused_by_the_name_of_the_field) {
    with_ranks(
        [](rank_of_three& r) {
            const auto refused = [](const auto& call) {
                try {
                    call();
                } catch (const config_error& e) {
                    return std::string(e.what());
                }
                return std::string("nothing was refused");
            };
            const dispatch_args d = r.dispatch();
            const combine_args c = r.combine();
            const auto named = [](const char* call) {
                return AllOf(HasSubstr(call), HasSubstr("up to 10 tokens a rank"), HasSubstr("rows of 4 at a time"),
                             HasSubstr("exchange_config::halves"));
            };
            EXPECT_THAT(refused([&] { r.ex.dispatch_send(r.p, {&d, 1}, {}, nullptr); }), named("dispatch_send"));
            EXPECT_THAT(refused([&] { r.ex.combine_send(r.p, {&c, 1}, {}, nullptr); }), named("combine_send"));
            r.ex.dispatch(r.p, {&d, 1}, {}, nullptr);
            EXPECT_THAT(refused([&] { (void)r.ex.lend_rows(r.p, 0, 1); }), named("lend_rows"));
            // A smaller bound fits.
            r.bring_at_most(4);
            const plan small = r.ex.make_plan({&r.args, 1}, r.options, nullptr);
            const dispatch_args few = r.dispatch();
            r.ex.dispatch_send(small, {&few, 1}, {}, nullptr);
            r.ex.dispatch_receive(small, {&few, 1}, {}, nullptr);
        },
        [] {});
}

TEST(token_windows, a_dispatch_straight_into_lent_outputs_is_one_launch_with_places_for_all_weights) {
    exchange_config config = rank_of_three::config_of(4);
    config.window_rows = num_ranks * max_tokens * topk;
    const seen_launches seen;
    with_ranks(
        [](rank_of_three& r) {
            r.options.layout = layout::flat;
            const plan flat = r.ex.make_plan({&r.args, 1}, r.options, nullptr);
            const std::vector<float> weights(static_cast<std::size_t>(max_tokens) * topk);
            std::vector<float> arrived(static_cast<std::size_t>(r.args.capacity) * topk);
            dispatch_args d = r.dispatch();
            d.output = r.ex.window_output(0, 0);
            d.weights = weights.data();
            d.local_weights = arrived.data();
            dispatch_options into;
            into.into_window = true;
            r.ex.dispatch(flat, {&d, 1}, into, nullptr);
        },
        [&] {
            EXPECT_EQ(seen.of<kernels::dispatch_args<8>>("dispatch_kernel").size(), num_ranks) << "staged ones too";
            const auto launches = seen.of<kernels::dispatch_args<8>>("direct_dispatch_kernel");
            ASSERT_EQ(launches.size(), num_ranks);
            window_places where(launches[0].link);
            for (const auto& l : launches) {
                where.add(l.link);
                EXPECT_EQ(l.list.window, 0);
                EXPECT_EQ(l.list.line_skip, nullptr);
                EXPECT_EQ(l.num_tokens, tokens_of[static_cast<std::size_t>(l.link.me)]);
            }
            const auto place = [&](const auto& writer, std::int32_t reader, const void* p) {
                return where.place(writer.link.me, reader, p);
            };
            for (const auto& reader : launches) {
                const std::int32_t to = reader.link.me;
                for (const auto& writer : launches) {
                    const std::int32_t from = writer.link.me;
                    if (from == to) {
                        continue;
                    }
                    EXPECT_EQ(place(writer, to, writer.ranks[to].output), place(reader, to, reader.ranks[to].output));
                    EXPECT_EQ(place(writer, to, writer.ranks[to].local_weights),
                              place(reader, to, reader.ranks[from].weights));
                    for (std::int32_t other = from + 1; other < num_ranks; ++other) {
                        if (other != to) {
                            EXPECT_GE(reader.ranks[other].weights - reader.ranks[from].weights, max_tokens * topk);
                        }
                    }
                }
            }
        },
        nullptr, config);
}

}  // namespace
}  // namespace epjit
