// SPDX-License-Identifier: Apache-2.0
// A team's warp that finds rows: which of them a line or a token wants, and what is waited for first. A chain of
// accesses for each, which its own warp goes through ahead of the loads.
#pragma once

#include "exchange/combine_common.cuh"
#include "exchange/combine_team.cuh"
#include "exchange/line_terms.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

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

#endif
#endif

}  // namespace epjit::templates
