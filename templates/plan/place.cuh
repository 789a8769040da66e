// SPDX-License-Identifier: Apache-2.0
// Second half of a plan: block counts of all keys become row bases, counts and offsets; entries become rows.
#pragma once

#include "base/device.cuh"
#include "plan/count.cuh"
#include "plan/plan_layout.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// Rows of a rank's output.
template <plan_config Config, class Args>
__device__ __forceinline__ i32 capacity_of(const Args& args, i32 rank) {
    if constexpr (Config.exchange) {
        const u32* message = args.counts + static_cast<i64>(rank) * plan_message_words(plan_shared<Config>::keys);
        return static_cast<i32>(
            reinterpret_cast<const plan_message_tail*>(message + plan_shared<Config>::keys)->capacity);
    } else {
        return args.ranks[rank].capacity;
    }
}

/// From every block's counts: adds the totals of the keys to `shared.bases` and the rows in the blocks before this one
/// to `shared.counts`, both zero before. Threads share a key where there are more threads than keys; the order of
/// integer sums does not matter.
template <plan_config Config, class Args>
__device__ __forceinline__ void sum_block_counts(const Args& args, plan_shared<Config>& shared, i32 used_keys) {
    const i32 blocks = static_cast<i32>(gridDim.x);
    const i32 parts = max_of(1, Config.threads / used_keys);
#pragma unroll 1
    for (i32 item = static_cast<i32>(threadIdx.x); item < used_keys * parts; item += Config.threads) {
        const i32 key = item % used_keys;
        u32 before = 0;
        u32 total = 0;
#pragma unroll 8
        for (i32 b = item / used_keys; b < blocks; b += parts) {
            const u32 count = args.block_counts[b * plan_shared<Config>::keys + key];
            total += count;
            before += b < static_cast<i32>(blockIdx.x) ? count : 0;
        }
        atomicAdd(&shared.counts[key], before);
        atomicAdd(&shared.bases[key], static_cast<i32>(total));
    }
    __syncthreads();
}

/// Exclusive sum over the block of each thread's `value`; also the sum of all. Called by all threads.
template <i32 Threads>
__device__ i32 block_exclusive_sum(i32 value) {
    __shared__ i32 warp_sums[Threads / 32];
    const i32 lane = static_cast<i32>(lane_idx());
    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    i32 inclusive = value;
#pragma unroll
    for (i32 d = 1; d < 32; d *= 2) {
        const i32 other = __shfl_up_sync(full_warp, inclusive, d);
        inclusive += lane >= d ? other : 0;
    }
    if (lane == 31) {
        warp_sums[warp] = inclusive;
    }
    __syncthreads();
    const i32 before = __reduce_add_sync(full_warp, lane < warp ? warp_sums[lane] : 0);
    __syncthreads();
    return before + inclusive - value;
}

/// What one slot's rows come to.
struct slot_extent {
    i32 count;   ///< after capacity
    i32 offset;  ///< first row after clipping
};

/// Expert-major: `starts` [S+1] of the slots' aligned segments of `rows` [S] rows, one after the other and unclipped. A
/// start counts from the first slot of all; a rank's own starts follow by subtracting that of its first slot.
template <plan_config Config>
__device__ void scan_segments(const i32* rows, i32* starts, i32 alignment) {
    constexpr i32 per_thread = ceil_div(Config.num_slots, Config.threads);
    const i32 first = static_cast<i32>(threadIdx.x) * per_thread;
    i32 sum = 0;
#pragma unroll 1
    for (i32 i = 0; i < per_thread; ++i) {
        const i32 slot = first + i;
        if (slot < Config.num_slots) {
            sum += ceil_div(rows[slot], alignment) * alignment;
        }
    }
    i32 start = block_exclusive_sum<Config.threads>(sum);
#pragma unroll 1
    for (i32 i = 0; i < per_thread; ++i) {
        const i32 slot = first + i;
        if (slot < Config.num_slots) {
            starts[slot] = start;
            start += ceil_div(rows[slot], alignment) * alignment;
            if (slot == Config.num_slots - 1) {
                starts[Config.num_slots] = start;
            }
        }
    }
    __syncthreads();
}

/// The same of a plan's counts, `masks` (unused by now) holding the starts.
template <plan_config Config, class Args>
__device__ __forceinline__ void scan_segments(const Args& args, plan_shared<Config>& shared) {
    scan_segments<Config>(shared.bases, reinterpret_cast<i32*>(shared.masks), args.alignment);
}

/// Where slots lie, in whichever memory is near.
struct slot_places {
    const u16* slot_rank;   ///< [S]
    const i32* rank_first;  ///< [R+1]
};

/// Writes the plan's counts and offsets, to host memory too when asked, from the `totals` of all keys, the `starts` of
/// expert-major segments and each rank's capacity. Returns the rows that this thread's keys drop.
template <plan_config Config, class Capacity>
__device__ __forceinline__ u32 write_counts(const plan_head& args, const slot_places& places, const i32* totals,
                                            const i32* starts, const Capacity& capacity_of_rank) {
    u32 dropped = 0;
#pragma unroll 1
    for (i32 slot = static_cast<i32>(threadIdx.x); slot < Config.num_slots; slot += Config.threads) {
        const i32 rank = places.slot_rank[slot];
        const i32 local = slot - places.rank_first[rank];
        const i32 capacity = capacity_of_rank(rank);
        const i32 total = totals[slot];
        i32 count = total;
        i32 offset = 0;
        if (args.layout == row_layout::masked) {
            count = min_of(total, capacity);
            offset = local * capacity;
        } else if (args.layout == row_layout::expert_major) {
            const i32 start = starts[slot] - starts[places.rank_first[rank]];
            count = max_of(0, min_of(total, capacity - start));
            offset = min_of(start, capacity);
        }
        dropped += static_cast<u32>(total - count);
        if (args.layout == row_layout::flat) {
            atomicAdd(&args.slot_counts[slot], total);  // other blocks take away what did not fit
        } else {
            args.slot_counts[slot] = count;
            if (args.host_counts != nullptr) {
                args.host_counts[slot] = count;
            }
        }
        args.slot_offsets[slot + rank] = offset;
    }
#pragma unroll 1
    for (i32 rank = static_cast<i32>(threadIdx.x); rank < Config.num_ranks; rank += Config.threads) {
        const i32 first = places.rank_first[rank];
        const i32 last = places.rank_first[rank + 1];
        const i32 capacity = capacity_of_rank(rank);
        i32 rows = 0;
        if (args.layout == row_layout::masked) {
            rows = (last - first) * capacity;
        } else if (args.layout == row_layout::flat) {
            const i32 total = totals[Config.num_slots + rank];
            rows = min_of(total, capacity);
            dropped += static_cast<u32>(total - rows);
        } else {
            rows = min_of(starts[last] - starts[first], capacity);
        }
        args.slot_offsets[last + rank] = rows;
        args.rank_rows[rank] = rows;
        if (args.host_counts != nullptr) {
            args.host_counts[Config.num_slots + rank] = rows;
        }
    }
    return dropped;
}

/// Adds the tokens that want each slot, of all ranks and whether or not their rows fit, to what the caller counts in.
/// Calls on other streams may add to the same memory.
template <plan_config Config, class Args>
__device__ __forceinline__ void add_slot_tokens(const Args& args, const i32* totals) {
    constexpr i32 driven = Config.exchange ? 1 : Config.num_ranks;
    if (driven == 1 && args.ranks[0].slot_tokens == nullptr) {
        return;
    }
#pragma unroll 1
    for (i32 i = static_cast<i32>(threadIdx.x); i < driven * Config.num_slots; i += Config.threads) {
        u64* tokens = args.ranks[i / Config.num_slots].slot_tokens;
        const i32 slot = i % Config.num_slots;
        if (tokens != nullptr) {
            atomicAdd(&tokens[slot], static_cast<u64>(totals[slot]));
        }
    }
}

/// The last block does it.
template <plan_config Config, class Args>
__device__ void publish_counts(const Args& args, const plan_shared<Config>& shared) {
    // An exchange's ranks all have the same counts and come to the same sum.
    const u32 dropped = write_counts<Config>(args, {args.slot_rank, args.rank_first}, shared.bases,
                                             reinterpret_cast<const i32*>(shared.masks),
                                             [&args](i32 rank) { return capacity_of<Config>(args, rank); });
    if (dropped != 0) {
        atomicAdd(&args.device_status->dropped_rows, dropped);
    }
    add_slot_tokens<Config>(args, shared.bases);
}

/// Adds the row bases to one used entry and drops it when it lies beyond the capacity. `position`: of an exchange.
template <plan_config Config, class Args>
__device__ __forceinline__ void place_entry(const Args& args, const plan_shared<Config>& shared, plan_entry& entry,
                                            i32 slot, i32& position) {
    const i32 key = args.layout == row_layout::flat ? Config.num_slots + entry.rank : slot;
    i32 row = entry.row + static_cast<i32>(shared.counts[key]);
    const i32 capacity = capacity_of<Config>(args, entry.rank);
    if constexpr (Config.exchange) {
        if (args.layout == row_layout::flat) {
            row += shared.lines_before[entry.rank];
        }
        position += static_cast<i32>(shared.counts[Config.num_slots + entry.rank]);
    }
    bool fits = row < capacity;
    if (args.layout == row_layout::masked) {
        row += (slot - args.rank_first[entry.rank]) * capacity;
    } else if (args.layout == row_layout::expert_major) {
        const i32* starts = reinterpret_cast<const i32*>(shared.masks);
        row += starts[slot] - starts[args.rank_first[entry.rank]];
        fits = row < capacity;
    } else if (!fits && !Config.exchange) {
        atomicAdd(&args.slot_counts[slot], -1);
    }
    entry.row = fits ? row : -1;
}

/// Adds the row bases to the entries of the block's tokens and drops what lies beyond the capacity. Each thread reads
/// back entries that its own block wrote.
template <plan_config Config, class Args>
__device__ void place_tokens(const Args& args, const plan_shared<Config>& shared, i32 first, i32 last) {
    const i64 end = static_cast<i64>(last) * Config.topk;
#pragma unroll 1
    for (i64 i = static_cast<i64>(first) * Config.topk + threadIdx.x; i < end; i += Config.threads) {
        plan_entry entry = args.entries[i];
        if (entry.rank == no_rank) {
            continue;
        }
        i32 position = 0;
        place_entry(args, shared, entry, args.entry_slots[i], position);
        args.entries[i].row = entry.row;
    }
}

#endif

}  // namespace epjit::templates
