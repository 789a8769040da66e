// SPDX-License-Identifier: Apache-2.0
// Combine between ranks with rows in shared memory: bulk copies bring them far ahead of the sums and take the sums
// away. A team of a block is a warp that finds rows, one that waits for what is missing and starts their loads, warps
// that sum stage by stage, and a warp that stores the sums; one warp more tells the peers of them. They meet at
// barriers in shared memory and never all at once.
//
// Cost model: as combine_kernel; the ring keeps some 190 KB of rows in flight per SM.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "exchange/combine_common.cuh"
#include "exchange/line_terms.cuh"
#include "exchange/telling.cuh"
#include "rows/gather_kernel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// What a stage means to the sum.
inline constexpr u32 ends_rank = 1;  ///< the partial sum of a rank, after this row
inline constexpr u32 ends_host = 2;  ///< and of a host
inline constexpr u32 ends_sum = 4;
inline constexpr u32 has_no_row = 8;      ///< of a sum of nothing
inline constexpr u32 stays_outside = 16;  ///< the row is at `row`, no copy may touch it
inline constexpr u32 ends_work = 32;
inline constexpr u32 is_spent = 64;  ///< the row at `row` is written before it is read again

/// What is beside the row of a stage.
struct alignas(16) ring_term {
    float weight;
    u32 marks;
    i32 owner;  ///< rank of the token
    i32 item;   ///< row of the owner's output
    const u8* row;
    u64 reserved;
};
static_assert(sizeof(ring_term) + 16 == combine_stage_extra);

/// Where a sum goes. An owner below 0 ends the work.
struct alignas(16) sum_place {
    i32 owner;
    i32 item;
};
static_assert(sizeof(sum_place) + 16 == combine_sum_extra);

/// Shared memory of a team. A stage goes round: `empty` (all warps that sum have arrived), loaded, `full` (announced
/// by the feeder, its bytes there); so does a sum on its way out.
template <gather_config Config>
struct combine_team {
    static constexpr combine_team_shape shape = combine_team_of(Config);
    static constexpr i32 stages = shape.stages;
    static constexpr i32 row_bytes = shape.row_bytes;
    static constexpr i32 sum_warps = shape.summers / 32;
    static_assert(row_bytes % 16 == 0 && stages >= 2, "bulk copies move multiples of 16 bytes");
    static_assert(shape.summers % 32 == 0 && Config.teams >= 1);

    u8* rows;  ///< the stages', then those of the sums
    ring_term* terms;
    u64* full;
    u64* empty;
    u64* sum_full;
    u64* sum_empty;
    sum_place* places;

    __device__ __forceinline__ combine_team(u8* memory, i32 team) {
        rows = memory + team * combine_team_bytes(Config);
        terms = reinterpret_cast<ring_term*>(rows + (stages + shape.sum_rows) * row_bytes);
        places = reinterpret_cast<sum_place*>(terms + stages);
        full = reinterpret_cast<u64*>(places + shape.sum_rows);
        empty = full + stages;
        sum_full = empty + stages;
        sum_empty = sum_full + shape.sum_rows;
    }

    __device__ __forceinline__ u8* sum_row(i32 side) const { return rows + (stages + side) * row_bytes; }

    /// Called by one thread.
    __device__ __forceinline__ void init() const {
#pragma unroll 1
        for (i32 s = 0; s < stages; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], sum_warps);
        }
#pragma unroll 1
        for (i32 s = 0; s < shape.sum_rows; ++s) {
            mbarrier_init(&sum_full[s], sum_warps);
            mbarrier_init(&sum_empty[s], 1);
        }
        fence_barrier_init();
    }
};

/// A lane's term of the sum that is fed.
struct feeder_term {
    bool used;
    bool waits;  ///< for a peer's sum
    const u8* row;
    float weight;
    term_place at;
};

/// The warp that fills the ring. What it waits for in the ring depends on earlier sums alone.
template <gather_config Config>
class ring_feeder {
   public:
    using team_type = combine_team<Config>;

    /// `outside`: this rank's rows cannot be copied.
    __device__ __forceinline__ ring_feeder(const team_type& team, bool outside) : team_(team), outside_(outside) {}

    /// Feeds the terms of one sum, as many at a time as there are stages; a sum of nothing takes one. Rows that are
    /// there are under way before `arrive` waits for what is missing. False: it did not come, and the work has ended.
    template <class Arrive>
    __device__ __forceinline__ bool push(feeder_term& t, i32 owner, i32 item, const Arrive& arrive) {
        const bool empty = t.at.count == 0;
        const i32 count = max_of(t.at.count, 1);
        const bool feeds = t.used || (empty && lane_idx() == 0);
        bool ok = true;
#pragma unroll 1
        for (i32 first = 0; first < count && ok; first += team_type::stages) {
            const i32 size = min_of(count - first, team_type::stages);
            const i32 ahead = t.at.place - first;
            const bool inside = feeds && ahead >= 0 && ahead < size;
            const bool copied = !empty && (t.waits || !outside_);
#pragma unroll 1
            for (i32 late = 0; late < 2; ++late) {
                if (late != 0 && first == 0) {
                    ok = __all_sync(full_warp, arrive(t));
                }
                load(t, ahead, inside && t.waits == (late != 0), copied && ok);
            }
            if (inside) {
                announce(ahead, ok ? marks_of(t, empty) : ends_work, t, owner, item);
            }
            if (!ok && inside && copied && !t.waits) {
                mbarrier_wait(&team_.full[stage_of(ahead)], round_of(ahead));  // no copy outlives the block
            }
            __syncwarp();
            round_ = round_of(size);
            stage_ = stage_of(size);
        }
        return ok;
    }

   private:
    __device__ __forceinline__ i32 stage_of(i32 ahead) const {
        return stage_ + ahead - (stage_ + ahead >= team_type::stages ? team_type::stages : 0);
    }
    __device__ __forceinline__ u32 round_of(i32 ahead) const {
        return round_ ^ (stage_ + ahead >= team_type::stages ? 1u : 0u);
    }
    __device__ __forceinline__ u32 marks_of(const feeder_term& t, bool empty) const {
        const u32 ends = t.at.closing == 0 ? 0u : t.at.closing == 1 ? ends_rank : ends_rank | ends_host;
        const u32 where =
            !t.waits ? (outside_ ? stays_outside : 0u) : (reinterpret_cast<u64>(t.row) % 128 == 0 ? is_spent : 0u);
        const bool last = t.at.place == t.at.count - 1;
        return empty ? has_no_row | ends_rank | ends_host | ends_sum : ends | where | (last ? ends_sum : 0u);
    }

    /// Starts the copies of the lanes that want one: each when its stage is free, which is awaited whether it is copied
    /// or not, by the lane that will announce it.
    __device__ __forceinline__ void load(const feeder_term& t, i32 ahead, bool wanted, bool copied) const {
        if (wanted) {
            const i32 stage = stage_of(ahead);
            mbarrier_wait(&team_.empty[stage], round_of(ahead) ^ 1);
            if (copied) {
                mbarrier_expect(&team_.full[stage], team_type::row_bytes);
                bulk_load(team_.rows + stage * team_type::row_bytes, t.row, team_type::row_bytes, &team_.full[stage]);
            }
        }
        __syncwarp();
    }

    __device__ __forceinline__ void announce(i32 ahead, u32 marks, const feeder_term& t, i32 owner, i32 item) const {
        const i32 stage = stage_of(ahead);
        team_.terms[stage] = {t.weight, marks, owner, item, t.row, 0};
        mbarrier_arrive(&team_.full[stage]);
    }

    const team_type& team_;
    const bool outside_;
    i32 stage_ = 0;
    u32 round_ = 0;
};

/// What lane k reads ahead of entry k of a line or a token. Nothing here depends on what was loaded.
struct item_part {
    token_part of;               ///< of a line only the row, and the slot as its rank
    u64 weight = 0;              ///< of a line, as far as it has arrived
    float column_weight = 1.0f;  ///< of a token, of its k-th column where the caller's weights have K
};

/// The lines or tokens of a team, one after the other, with what is read of them.
template <gather_config Config>
class item_walk {
   public:
    i32 owner;  ///< rank of the token
    i32 item;   ///< its line's position, or its number
    i32 place;  ///< where its sum goes; lane 0's

    template <class Args>
    __device__ __forceinline__ item_walk(const Args& args, const combine_phase& phase, bool sends, i32 first, i32 step)
        : owner(args.link.me),
          item(args.list.first_token + first - step),
          sends_(sends),
          step_(step),
          weights_(args.own_weight_columns == Config.topk ? phase.ranks[args.link.me].weights : nullptr),
          lines_(phase, first, step) {}

    template <class Args>
    __device__ __forceinline__ bool advance(const Args& args, const combine_phase& phase) {
        item += step_;
        bool more = item < args.num_tokens;
        if (sends_) {
            more = lines_.advance(phase);
            owner = lines_.source;
            item = line_position(phase, owner, lines_.line);
        }
        place = item;
        if (more) {
            read(args);
        }
        return more;
    }

    __device__ __forceinline__ const item_part& part() const { return part_; }

   private:
    template <class Args>
    __device__ __forceinline__ void read(const Args& args) {
        const i32 lane = static_cast<i32>(lane_idx());
        if (!sends_) {
            part_.of = read_token_part<Config>(args, item);
            if (weights_ != nullptr && lane < Config.topk) {
                part_.column_weight = weights_[static_cast<i64>(item) * Config.topk + lane];
            }
        } else if (lane < Config.topk) {
            const u8* at = line_of<Config.topk>(args, owner, item);
            place = args.list.window != 0 ? *reinterpret_cast<const i32*>(at) : item;
            part_.of.entry.row = reinterpret_cast<const i32*>(at)[1 + lane];
            part_.of.entry.rank = reinterpret_cast<const u16*>(at + line_slots_offset(Config.topk))[lane];
            if (args.weighted != 0) {
                part_.weight = ld_relaxed_sys_64(line_weight_at<Config.topk>(args.line_weights, owner, item, lane));
            }
        }
    }

    const bool sends_;
    const i32 step_;
    const float* weights_;  ///< the caller's, where they have K columns
    line_walk lines_;
    item_part part_;
};

/// Where the lane's term is, and whether there is one. `entry` becomes this rank's where the part is of a line.
template <gather_config Config, class Args>
__device__ __forceinline__ feeder_term make_term(const Args& args, const combine_phase& phase, bool sends, i32 item,
                                                 item_part& read) {
    token_part& part = read.of;
    const gather_rank& own = phase.ranks[args.link.me];
    feeder_term t;
    t.weight = 1.0f;
    if (sends) {
        const bool mine = part.entry.rank != static_cast<u16>(no_slot);
        part.entry = {mine ? part.entry.row : -1, mine ? static_cast<u16>(args.link.me) : no_rank, 0};
        t.used = has_own_row(args.layout, part.entry);
    } else {
        t.used = is_summed(args, part);
    }
    t.waits = t.used && part.entry.rank != args.link.me;
    if (!sends && own.weights != nullptr) {
        const bool mine = t.used && !t.waits;
        if (args.own_weight_columns == Config.topk) {
            const float weight = __shfl_sync(full_warp, read.column_weight, part.entry.column & 31);
            t.weight = mine ? weight : 1.0f;
        } else if (mine) {
            t.weight = own.weights[static_cast<i64>(item) * args.own_weight_columns + part.entry.column];
        }
    }
    const gather_rank& holder = phase.ranks[t.waits ? static_cast<i32>(part.entry.rank) : args.link.me];
    t.row = static_cast<const u8*>(holder.rows) +
            static_cast<i64>(t.waits ? part.position : part.entry.row) * holder.row_stride;
    t.at = place_term<Config.topk>(phase, t.used, part.entry.rank);
    return t;
}

/// What the feeder is told of an item, lane by lane: its term, and what the term waits for.
template <gather_config Config>
struct found_item {
    feeder_term term[Config.topk];
    i32 source[Config.topk];    ///< rank whose sum the term waits for,
    i32 position[Config.topk];  ///< and where it lies
    u64 weight[Config.topk];    ///< of a line, as far as it has arrived
    i32 count;
    i32 owner;
    i32 item;
    i32 place;
    i32 there;  ///< 0: the last has been
};

/// Items on their way from the warp that finds rows to the one that loads them, each a chain of accesses and waits of
/// its own. In shared memory, made by begin().
template <gather_config Config>
struct found_items {
    static constexpr i32 most = 4;
    static constexpr i32 ended = 0x40000000;
    found_item<Config> items[most];
    i32 found;
    i32 fed;  ///< or `ended`: the feeder has left

    __device__ __forceinline__ void begin() {
        found = 0;
        fed = 0;
    }
};

static_assert(sizeof(found_item<gather_config{.hidden = 8, .num_ranks = 8, .topk = 8}>) <= 64 * 8 + 32);

/// The warp that finds rows: those of every `step`-th line of the peers or token of this rank. It reads one ahead.
template <gather_config Config, class Args>
__device__ inline void find_items(const Args& args, const combine_phase& phase, found_items<Config>& queue, bool sends,
                                  i32 first, i32 items_step) {
    const i32 lane = static_cast<i32>(lane_idx());
    item_walk<Config> next(args, phase, sends, first, items_step);
    bool next_there = next.advance(args, phase);
#pragma unroll 1
    for (i32 n = 0;; ++n) {
        item_part part = next.part();
        const i32 owner = next.owner;
        const i32 item = next.item;
        const i32 place_read = next.place;
        const bool there = next_there;
        if (there) {
            next_there = next.advance(args, phase);
        }
        const i32 place = __shfl_sync(full_warp, place_read, 0);
        feeder_term t{};
        if (there) {
            t = make_term<Config>(args, phase, sends, item, part);
        }
        i32 fed = ld_acquire_block(&queue.fed);
        while (n - fed >= found_items<Config>::most) {
            sleep_ns(20);
            fed = ld_acquire_block(&queue.fed);
        }
        if (__any_sync(full_warp, fed >= found_items<Config>::ended)) {
            return;
        }
        found_item<Config>& to = queue.items[n % found_items<Config>::most];
        if (lane < Config.topk) {
            to.term[lane] = t;
            to.source[lane] = static_cast<i32>(part.of.entry.rank);
            to.position[lane] = part.of.position;
            to.weight[lane] = part.weight;
        }
        if (lane == 0) {
            to.count = t.at.count;
            to.owner = owner;
            to.item = item;
            to.place = place;
            to.there = there ? 1 : 0;
        }
        __syncwarp();
        if (lane == 0) {
            st_release_block(&queue.found, n + 1);
        }
        if (!there) {
            return;
        }
    }
}

/// The feeder's warp: the terms of what was found. After the last a sum of nothing, for which nothing arrives, ends the
/// work.
template <gather_config Config, class Args>
__device__ inline void feed_sums(const Args& args, const combine_team<Config>& team, found_items<Config>& queue,
                                 bool sends, u32 step) {
    const i32 lane = static_cast<i32>(lane_idx());
    ring_feeder<Config> feeder(team, args.vector_bytes < 16);
    bool goes_on = true;
#pragma unroll 1
    for (i32 n = 0; goes_on; ++n) {
        while (ld_acquire_block(&queue.found) <= n) {
            sleep_ns(20);
        }
        __syncwarp();
        const found_item<Config>& from = queue.items[n % found_items<Config>::most];
        feeder_term t{};
        i32 source = 0;
        i32 position = 0;
        u64 weight = 0;
        if (lane < Config.topk) {
            t = from.term[lane];
            source = from.source[lane];
            position = from.position[lane];
            weight = from.weight[lane];
        }
        t.at.count = from.count;
        const i32 owner = from.owner;
        const i32 item = from.item;
        const i32 place = from.place;
        const bool there = from.there != 0;
        __syncwarp();
        if (lane == 0) {
            st_release_block(&queue.fed, n + 1);
        }
        const auto arrive = [&](feeder_term& term) {
            bool arrived = there;
            if (sends && term.used && args.weighted != 0) {
                const u64* at = line_weight_at<Config.topk>(args.line_weights, owner, item, lane);
                arrived = await_line_weight(args.link, at, weight, owner, step, term.weight);
            } else if (term.waits) {
                arrived = wait_flag(args.flags, args.link, source, position, step, lane_op::combine);
                fence_proxy_async();  // stored by the peer's copy, to be read by ours
            }
            return arrived;
        };
        goes_on = feeder.push(t, owner, place, arrive);
    }
    if (lane == 0) {
        st_release_block(&queue.fed, found_items<Config>::ended);
    }
}

/// A packet of a row that is aligned to its elements only.
template <element Type>
__device__ __forceinline__ void copy_by_element(u8* to, const u8* from) {
    using storage = typename element_of<Type>::storage;
#pragma unroll 1
    for (i32 i = 0; i < 16 / element_bytes(Type); ++i) {
        reinterpret_cast<storage*>(to)[i] = reinterpret_cast<const storage*>(from)[i];
    }
}

/// Sums of one thread: every `threads`-th packet of the row, from its own on.
template <gather_config Config>
class row_sums {
   public:
    using team_type = combine_team<Config>;
    using values_type = unpacked<Config.type, 16>;
    static constexpr i32 threads = team_type::shape.summers;
    static constexpr i32 packets = team_type::row_bytes / 16;
    static constexpr i32 own_packets = ceil_div(packets, threads);

    __device__ __forceinline__ explicit row_sums(i32 thread) : thread_(thread) {}

    __device__ __forceinline__ void add(const ring_term& term, u8* row) {
        if ((term.marks & stays_outside) != 0) {
            each([&](i32, i32 offset) { copy_by_element<Config.type>(row + offset, term.row + offset); });
            fence_proxy_async_shared();  // before a copy fills the stage again
        }
        packet<16> p[own_packets];
        each([&](i32 n, i32 offset) { p[n] = *reinterpret_cast<const packet<16>*>(row + offset); });
        each([&](i32 n, i32) {
            values_type values;
            values.unpack(p[n]);
            sums_[n].add(values.values, term.weight);
        });
    }

    __device__ __forceinline__ void close(bool host_ends) {
#pragma unroll
        for (i32 n = 0; n < own_packets; ++n) {
            sums_[n].close(host_ends);
        }
    }

    /// Writes the token's sum, and once more to `outside` where no copy may. Begins the next.
    __device__ __forceinline__ void take(u8* row, u8* outside) {
        each([&](i32 n, i32 offset) {
            values_type values;
#pragma unroll
            for (i32 i = 0; i < values_type::count; ++i) {
                values.values[i] = sums_[n].total[i];
                sums_[n].total[i] = 0.0f;
            }
            store_packet<16>(row + offset, values.pack());
        });
        if (outside != nullptr) {
            each([&](i32, i32 offset) { copy_by_element<Config.type>(outside + offset, row + offset); });
        }
    }

   private:
    template <class Work>
    __device__ __forceinline__ void each(const Work& work) const {
#pragma unroll
        for (i32 n = 0; n < own_packets; ++n) {
            if ((n + 1) * threads <= packets || thread_ + n * threads < packets) {
                work(n, (thread_ + n * threads) * 16);
            }
        }
    }

    const i32 thread_;
    ordered_sum<Config.type, values_type::count> sums_[own_packets];
};

/// The warps that sum. `output`: this rank's, where no copy may take sums there, else null.
template <gather_config Config>
__device__ inline void sum_stages(const combine_team<Config>& team, i32 thread, const gather_rank* output) {
    using team_type = combine_team<Config>;
    row_sums<Config> sums(thread);
    const bool leads = lane_idx() == 0;
    i32 stage = 0;
    u32 round = 0;
    i32 side = 0;
    u32 side_round = 1;
#pragma unroll 1
    for (;;) {
        mbarrier_wait(&team.full[stage], round);
        const ring_term term = team.terms[stage];
        const bool ends = (term.marks & ends_work) != 0;
        if ((term.marks & (has_no_row | ends_work)) == 0) {
            sums.add(term, team.rows + stage * team_type::row_bytes);
        }
        if ((term.marks & is_spent) != 0) {
            // A peer's sum, copied here: saves the memory a write.
#pragma unroll 1
            for (i32 i = thread * 128; i <= team_type::row_bytes - 128; i += team_type::shape.summers * 128) {
                discard_l2_128(term.row + i);
            }
        }
        __syncwarp();
        if (leads) {
            mbarrier_arrive(&team.empty[stage]);
        }
        stage = stage + 1 == team_type::stages ? 0 : stage + 1;
        round ^= stage == 0 ? 1u : 0u;
        if ((term.marks & ends_rank) != 0) {
            sums.close((term.marks & ends_host) != 0);
        }
        if ((term.marks & (ends_sum | ends_work)) == 0) {
            continue;
        }
        mbarrier_wait(&team.sum_empty[side], side_round);
        if (!ends) {
            sums.take(team.sum_row(side), output == nullptr ? nullptr
                                                            : static_cast<u8*>(output->output) +
                                                                  static_cast<i64>(term.item) * output->output_stride);
        }
        if (thread == 0) {
            team.places[side] = {ends ? -1 : term.owner, term.item};
        }
        fence_proxy_async_shared();  // stored by all threads, to be read by the copy
        __syncwarp();
        if (leads) {
            mbarrier_arrive(&team.sum_full[side]);
        }
        if (ends) {
            return;
        }
        side ^= 1;
        side_round ^= side == 0 ? 1u : 0u;
    }
}

/// The warp that takes sums away: to a peer, noting in `list` what is there, or to this rank's output. `stores`: not,
/// where the threads that sum have stored them.
template <gather_config Config, class Args>
__device__ inline void store_sums(const Args& args, const combine_phase& phase, const combine_team<Config>& team,
                                  bool sends, bool stores, sent_list& list, u32 partials_step) {
    using team_type = combine_team<Config>;
    // The owners have read what this rank sent last. Where one has not, nothing is stored.
    const bool live = !sends || wait_peers(args.link, partials_step, lane_op::none);
    __syncwarp();
    if (lane_idx() == 0) {
        sent_notes notes(list);
        u32 round = 0;
#pragma unroll 1
        for (i32 side = 0;;) {
            mbarrier_wait(&team.sum_full[side], round);
            const sum_place place = team.places[side];
            if (place.owner < 0) {
                break;
            }
            if (live && stores) {
                const gather_rank& owner = phase.ranks[place.owner];
                u8* to = static_cast<u8*>(owner.output) + static_cast<i64>(place.item) * owner.output_stride;
                if (sends) {
                    bulk_store_kept(to, team.sum_row(side), team_type::row_bytes);
                    notes.begin(place.owner, place.item);
                } else {
                    bulk_store(to, team.sum_row(side), team_type::row_bytes);
                }
                bulk_commit();
            }
            bulk_wait_read<0>();
            mbarrier_arrive(&team.sum_empty[side]);
            side ^= 1;
            round ^= side == 0 ? 1u : 0u;
            if (notes.begun() > 0 && !mbarrier_done(&team.sum_full[side], round)) {
                bulk_wait<0>();  // nothing else is to be done
                notes.all_arrived();
            } else if (notes.begun() > 2) {
                bulk_wait<2>();
                notes.arrived(notes.begun() - 2);
            }
        }
        bulk_wait<0>();
        notes.end();
    }
    __syncwarp();
}

/// The part of one block, its teams side by side. All threads call it.
template <gather_config Config, class Args>
__device__ __forceinline__ void combine_by_ring(const Args& args, const combine_phase& phase, const combine_part& part,
                                                u8* memory, sent_list* lists, found_items<Config>* queues, u32 step,
                                                u32 partials_step) {
    using team_type = combine_team<Config>;
    constexpr i32 team_threads = team_type::shape.threads;
    const i32 number = static_cast<i32>(threadIdx.x) / team_threads;
    const i32 thread = static_cast<i32>(threadIdx.x) % team_threads;
    if (number == Config.teams) {
        if (part.sends) {
            tell_peers(args.link, args.flags, lists, Config.teams, step);
        }
        return;
    }
    const team_type team(memory, number);
    const bool outside = !part.sends && args.vector_bytes < 16;
    if (thread < team_type::shape.summers) {
        sum_stages<Config>(team, thread, outside ? &phase.ranks[args.link.me] : nullptr);
    } else if (thread < team_type::shape.summers + 32) {
        feed_sums<Config>(args, team, queues[number], part.sends, step);
    } else if (thread < team_type::shape.summers + 64) {
        store_sums<Config>(args, phase, team, part.sends, !outside, lists[number], partials_step);
    } else {
        find_items<Config>(args, phase, queues[number], part.sends, number * part.blocks + part.block,
                           Config.teams * part.blocks);
    }
}

#endif
#endif

}  // namespace epjit::templates
