// SPDX-License-Identifier: Apache-2.0
// What every form of a whole combine between ranks needs: its blocks' parts, the walk over the peers' lines.
#pragma once

#include "base/device.cuh"
#include "exchange/dispatch_layout.cuh"
#include "exchange/flags.cuh"
#include "exchange/window_lines.cuh"
#include "rows/gather_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// The arguments as the row functions take them.
struct combine_phase : gather_head {
    const gather_rank* ranks;
};

/// A block's part of the combine.
struct combine_part {
    bool sends;  ///< sums lines of the peers; else finishes this rank's tokens
    i32 block;   ///< of those with this part
    i32 blocks;

    template <class Args>
    __device__ __forceinline__ explicit combine_part(const Args& args) {
        const i32 after_weights = static_cast<i32>(blockIdx.x) - args.weight_blocks;
        sends = after_weights < args.senders;
        block = sends ? after_weights : after_weights - args.senders;
        blocks = sends ? args.senders : static_cast<i32>(gridDim.x) - args.weight_blocks - args.senders;
    }
};

/// Lines of the peers, every `step`-th from `first` on: the first line of each peer, the second of each, and so on,
/// because owners want a token's sums from all of them at about the same time. Called by whole warps.
class line_walk {
   public:
    i32 source = 0;
    i32 line = 0;  ///< of those of the source that are listed

    __device__ __forceinline__ line_walk(const combine_phase& phase, i32 first, i32 step)
        : next_(first), step_(step), peers_(phase.list.num_ranks - 1) {
        i32 most = 0;
#pragma unroll 1
        for (i32 p = static_cast<i32>(lane_idx()); p <= peers_; p += 32) {
            most = p != phase.list.me ? max_of(most, lines_of(phase, p)) : most;
        }
#pragma unroll
        for (i32 d = 16; d > 0; d /= 2) {
            most = max_of(most, __shfl_xor_sync(full_warp, most, d));
        }
        most_ = most;
        // Where a step skips whole rounds of the peers, the walk must turn by itself, or it would keep to one of them.
        turns_ = peers_ > 1 && step % peers_ == 0;
    }

    /// Goes to the next line. False: none is left.
    __device__ __forceinline__ bool advance(const combine_phase& phase) {
        if (most_ == 0) {
            return false;
        }
#pragma unroll 1
        for (; line = next_ / peers_, line < most_; next_ += step_, ++round_) {
            source = phase.list.me + 1 + (next_ + (turns_ ? round_ : 0)) % peers_;
            source -= source > peers_ ? peers_ + 1 : 0;
            if (line < lines_of(phase, source)) {
                next_ += step_;
                ++round_;
                return true;
            }
        }
        return false;
    }

   private:
    i32 next_;
    i32 step_;
    i32 peers_;
    i32 most_ = 0;  ///< lines of the peer that has most
    i32 round_ = 0;
    bool turns_;
};

#endif

}  // namespace epjit::templates
