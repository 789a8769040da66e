// SPDX-License-Identifier: Apache-2.0
// A team's warp that loads rows into the ring, in the order in which they are summed, and waits for what is missing.
#pragma once

#include "exchange/combine_find.cuh"
#include "exchange/combine_team.cuh"
#include "exchange/flags.cuh"
#include "exchange/line_terms.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

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

#endif
#endif

}  // namespace epjit::templates
