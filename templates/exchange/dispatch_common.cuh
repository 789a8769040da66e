// SPDX-License-Identifier: Apache-2.0
// What both halves of a dispatch between windows share: their view of the arguments, and rows that no bulk copy may
// touch.
#pragma once

#include "base/device.cuh"
#include "exchange/dispatch_layout.cuh"
#include "exchange/telling.cuh"
#include "exchange/window_lines.cuh"
#include "rows/scatter_bulk_kernel.cuh"
#include "rows/scatter_common.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// What a stage holds: a line of the list and its source, or a token and its chunk.
struct line_place {
    i32 n = 0;
    i32 rank = 0;
};

/// The dispatch as the row functions take it, in shared memory: what loops read over and over would come from the L2
/// time and again, since each acquire empties the L1.
template <scatter_config Config>
struct dispatch_phase : scatter_head {
    scatter_rank ranks[Config.num_ranks];
    i32 lines[window_numbers(Config.num_ranks)];   ///< list.line_first, in a window list.line_skip too
    sent_list sent[dispatch_send_movers(Config)];  ///< of a sending block, by its movers
    bool metadata;                                 ///< something is written beside the rows of this rank
    static_assert(sizeof(scatter_head) + sizeof(ranks) <= dispatch_static_bytes(Config.num_ranks));

    /// From the arguments, before the kernel in front has ended. Called by the block, which meets before it is read.
    template <class Args>
    __device__ __forceinline__ void take(const Args& args, bool sends) {
        const i32 thread = static_cast<i32>(threadIdx.x);
        if (thread == 0) {
            static_cast<scatter_head&>(*this) = args;
            list.line_first = lines;
            list.line_skip = args.list.window != 0 ? lines + list.num_ranks + 1 : nullptr;
            if (sends) {
                list.lines = nullptr;  // what is sent is known by its entries
            }
            const scatter_rank& own = args.ranks[args.link.me];
            metadata = own.row_source != nullptr || own.row_weights != nullptr || own.local_ids != nullptr ||
                       own.local_weights != nullptr;
        }
        for (i32 r = thread; r < args.link.num_ranks; r += dispatch_threads(Config)) {
            ranks[r] = args.ranks[r];
        }
        if (thread < dispatch_send_movers(Config)) {
            sent[thread].begin();
        }
    }
    /// What the plan's kernel has written. Called by the block, which meets before it is read.
    template <class Args>
    __device__ __forceinline__ void take_lines(const Args& args) {
        if (args.list.window != 0) {
            find_window_lines<Config.topk>(args, lines);
            return;
        }
        for (i32 r = static_cast<i32>(threadIdx.x); r <= args.link.num_ranks; r += dispatch_threads(Config)) {
            lines[r] = args.list.line_first[r];
        }
    }
};

/// A mover of one of `Movers` warps that share a block's stages. Where a row goes is loaded beside it, so that nobody
/// waits for that either.
template <scatter_config Config, i32 Movers>
using dispatch_mover =
    row_mover<Config, Config.stages / Movers, bulk_scale_bytes(Config), dispatch_note_bytes(Config.topk)>;

/// Whether bulk copies may take scales beside the rows, from and to every rank. Called by whole warps.
template <scatter_config Config>
__device__ __forceinline__ bool scales_move_along(const dispatch_phase<Config>& phase) {
    u64 bits = 0;
    if constexpr (bulk_scale_bytes(Config) != 0) {
#pragma unroll 1
        for (i32 p = static_cast<i32>(lane_idx()); p < phase.list.num_ranks; p += 32) {
            const scatter_rank& r = phase.ranks[p];
            bits |= reinterpret_cast<u64>(r.input_scales) | reinterpret_cast<u64>(r.output_scales) |
                    static_cast<u64>(r.input_scale_stride) | static_cast<u64>(r.output_scale_stride);
        }
    }
    return bulk_scale_bytes(Config) != 0 && __all_sync(full_warp, bits % 16 == 0);
}

/// A row, and its scales where they are asked for, in its source's tensors.
struct row_source {
    const u8* row = nullptr;
    const u8* scales = nullptr;

    row_source() = default;
    __device__ __forceinline__ row_source(const scatter_rank& from, i32 number, bool with_scales)
        : row(static_cast<const u8*>(from.input) + static_cast<i64>(number) * from.input_stride),
          scales(with_scales
                     ? static_cast<const u8*>(from.input_scales) + static_cast<i64>(number) * from.input_scale_stride
                     : nullptr) {}
};

/// Scales of a token's rows where they did not move with the rows.
template <scatter_config Config>
__device__ __forceinline__ void copy_other_scales(const dispatch_phase<Config>& phase, const token_entries& t,
                                                  bool moved) {
    if constexpr (Config.scales != group_scale::none) {
        if (!moved) {
            copy_scales<Config>(phase, t);
        }
    }
}

#endif
#endif

}  // namespace epjit::templates
