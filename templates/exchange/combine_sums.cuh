// SPDX-License-Identifier: Apache-2.0
// A team's warps that sum rows stage by stage.
#pragma once

#include "base/convert.cuh"
#include "exchange/combine_team.cuh"
#include "rows/gather_kernel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

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

#endif
#endif

}  // namespace epjit::templates
