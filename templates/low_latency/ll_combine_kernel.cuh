// SPDX-License-Identifier: Apache-2.0
// Combine of few tokens between ranks that store into each other's windows: weights go to the holders of the rows and
// sums come back as packets that announce themselves.
//
// Cost model: a token's partial sums cross once a rank in 4/3 of their bytes; one flight over the link, two where
// weights travel. Launches: 1. SMs: a block a line and a block a token, up to what fits. In the grid: blocks that send
// weights wait for nothing, blocks that send sums for the peers' weights, blocks that finish tokens for the peers'
// sums.
#pragma once

#include "base/convert.cuh"
#include "base/device.cuh"
#include "exchange/line_terms.cuh"
#include "low_latency/packets.cuh"
#include "rows/gather_common.cuh"
#include "rows/gather_kernel.cuh"

namespace epjit::templates {

#if defined(__CUDACC__)

/// One rank's part as the row functions take it.
struct own_sum_phase : gather_head {
    struct rank_entry {
        i32 host;
    };
    struct rank_hosts {
        const u8* hosts;
        __device__ __forceinline__ rank_entry operator[](i32 r) const { return {hosts[r]}; }
    } ranks;

    __device__ __forceinline__ explicit own_sum_phase(const ll_combine_args& args)
        : gather_head(args), ranks{args.hosts} {}
};

template <gather_config Config>
struct sum_packets {
    static constexpr packet_record record = sum_record(Config.hidden, Config.type);
    static constexpr i32 units = record.units();
    static constexpr i32 words = record.unit_words();
    static constexpr i64 plane = static_cast<i64>(units) * packet_size;
    static_assert(record.unit_packets == 2 && words == 6);
};

/// Rows of one sum: in memory, or packets where `source` is a peer.
template <gather_config Config>
struct packet_terms {
    row_terms<Config> rows;
    i32 source[Config.topk];  ///< of rows.term[n]: the peer whose packets they are, -1: a row
};

/// A unit of the token's sum: rows are loaded, packets awaited, both added in the declared order.
template <gather_config Config>
__device__ __forceinline__ bool sum_unit(const packet_terms<Config>& terms, sum_order order, i32 unit, bool wide,
                                         const rank_link& link, u32 step, u32 (&result)[sum_packets<Config>::words]) {
    using packets = sum_packets<Config>;
    constexpr i32 batch = min_of(Config.topk, 2);
    using values_type = unpacked<Config.type, 8>;
    constexpr i32 per_piece = values_type::count;
    constexpr i32 count = 3 * per_piece;
    ordered_sum<Config.type, count> sum;
    bool ok = true;
#pragma unroll 1
    for (i32 first = 0; first < terms.rows.count; first += batch) {
        u32 rows[batch][packets::words] = {};
#pragma unroll
        for (i32 n = 0; n < batch; ++n) {
            if (first + n < terms.rows.count && terms.source[first + n] < 0) {
                load_words(terms.rows.term[first + n].row, unit * packets::words * 4, packets::record.row_bytes, wide,
                           rows[n]);
            }
        }
        const i32 end = min_of(first + batch, terms.rows.count);
#pragma unroll 1
        for (i32 n = first; n < end; ++n) {
            const row_term& term = terms.rows.term[n];
            if (terms.source[n] >= 0) {
                ok = await_packets<2>(term.row + unit * packet_size, packets::plane, link, terms.source[n], step,
                                      lane_op::combine, rows[0]) &&
                     ok;
            }
            if (term.boundary != 0) {
                sum.close(term.boundary == 2);
            }
            float values[count];
#pragma unroll
            for (i32 p = 0; p < 3; ++p) {
                values_type v;
                v.unpack(packet<8>{uint2{rows[0][2 * p], rows[0][2 * p + 1]}});
#pragma unroll
                for (i32 i = 0; i < per_piece; ++i) {
                    values[p * per_piece + i] = v.values[i];
                }
            }
            sum.add(values, term.weight);
#pragma unroll
            for (i32 m = 0; m + 1 < batch; ++m) {
#pragma unroll
                for (i32 w = 0; w < packets::words; ++w) {
                    rows[m][w] = rows[m + 1][w];
                }
            }
        }
    }
    sum.close(true);
#pragma unroll
    for (i32 p = 0; p < 3; ++p) {
        values_type v;
#pragma unroll
        for (i32 i = 0; i < per_piece; ++i) {
            v.values[i] = sum.total[p * per_piece + i];
        }
        const uint2 packed = v.pack().v;
        result[2 * p] = packed.x;
        result[2 * p + 1] = packed.y;
    }
    return ok;
}

/// The weights of lines of this step.
__device__ __forceinline__ weight_area weights_of(const ll_combine_args& args, const packet_step& at, i32 topk) {
    weight_area area = args.line_weights;
    const i64 words = static_cast<i64>(at.parity()) * args.link.num_ranks * area.lines * topk;
    area.own += words;
    area.offset += words * static_cast<i64>(sizeof(u64));
    return area;
}

/// The rows of a peer's line. By one warp.
template <gather_config Config>
__device__ inline bool resolve_peer_line(const ll_combine_args& args, const own_sum_phase& phase, const packet_step& at,
                                         i32 source, i32 position, packet_terms<Config>& out) {
    bool ok = true;
    const row_term* term = resolve_line<Config>(args, weights_of(args, at, Config.topk), phase, args.own, source,
                                                position, at.step, out.rows, ok);
    if (term != nullptr) {
        out.source[term - out.rows.term] = -1;
    }
    return __all_sync(full_warp, ok);
}

/// The parts of a token of this rank. By one warp.
template <gather_config Config>
__device__ inline void resolve_own_token(const ll_combine_args& args, const own_sum_phase& phase, const packet_step& at,
                                         i32 token, packet_terms<Config>& out) {
    awaited_sum awaited;
    const row_term* term =
        resolve_token<Config>(args, phase, args.own, token, out.rows, awaited, [&](i32 source, i32 position) {
            return record_from(args.sums, args.link, at.parity(), source, position,
                               sum_packets<Config>::record.bytes());
        });
    if (term != nullptr) {
        out.source[term - out.rows.term] = awaited.source;
    }
}

/// Every `step`-th sum from number `first` on, a block each: of the peers' lines, to their owners, or of this rank's
/// tokens.
template <gather_config Config>
__device__ inline void make_sums(const ll_combine_args& args, own_sum_phase& phase, const packet_step& at, bool lines,
                                 i32 first, i32 step, packet_terms<Config>& terms) {
    using packets = sum_packets<Config>;
    if (lines) {
        prefetch_line<Config.topk>(args, first);
    }
    bool ok = lines ? at.may_write(args.link, lane_op::combine) : !shows_failure(at.signs, args.link, lane_op::combine);
    phase.order = lines ? sum_order::per_rank : phase.order;
    i32 n = first;
#pragma unroll 1
    for (i32 r = lines ? 1 : 0; r < (lines ? args.link.num_ranks : 1); ++r) {
        // Every rank starts with the one after it, so that no link is wanted by all at once.
        const i32 source =
            args.link.me + r < args.link.num_ranks ? args.link.me + r : args.link.me + r - args.link.num_ranks;
        const i32 count = lines ? args.list.line_first[source + 1] - args.list.line_first[source] : args.num_tokens;
#pragma unroll 1
        for (; n < count; n += step) {
            if (threadIdx.x < 32 && ok) {
                if (lines) {
                    ok = resolve_peer_line<Config>(args, phase, at, source, n, terms);
                } else {
                    resolve_own_token<Config>(args, phase, at, n, terms);
                }
            }
            if (__syncthreads_and(ok ? 1 : 0) == 0) {
                return;
            }
            u8* to = lines ? record_at(args.sums, args.link, at.parity(), source, n, packets::record.bytes())
                           : static_cast<u8*>(args.own.output) + static_cast<i64>(n) * args.own.output_stride;
#pragma unroll 1
            for (i32 unit = static_cast<i32>(threadIdx.x); unit < packets::units; unit += Config.threads) {
                u32 words[packets::words];
                ok =
                    sum_unit<Config>(terms, phase.order, unit, args.vector_bytes >= 8, args.link, at.step, words) && ok;
                if (lines) {
                    send_packets<2>(to + unit * packet_size, packets::plane, at.step, words);
                } else if (ok) {
                    store_words(to, unit * packets::words * 4, packets::record.row_bytes, args.vector_bytes >= 8,
                                words);
                }
            }
            __syncthreads();
        }
        n -= count;
    }
}

template <gather_config Config>
__global__ void __launch_bounds__(Config.threads, 1) ll_combine_kernel(const __grid_constant__ ll_combine_args args) {
    __shared__ packet_terms<Config> terms;
    wait_for_kernel_before();
    const packet_step at(args.link, lane_area::sum_packets);
    own_sum_phase phase(args);
    const i32 block = static_cast<i32>(blockIdx.x);
    begin_step(args.link, at, lane_op::combine);
    if (block < args.weight_blocks) {
        if (at.may_write(args.link, lane_op::combine)) {
            send_line_weights<Config.topk>(args, weights_of(args, at, Config.topk), args.own, at.step,
                                           block * Config.threads + static_cast<i32>(threadIdx.x),
                                           args.weight_blocks * Config.threads);
        }
    } else {
        const i32 owners = args.weight_blocks + args.senders;
        const bool lines = block < owners;
        make_sums<Config>(args, phase, at, lines, block - (lines ? args.weight_blocks : owners),
                          lines ? args.senders : static_cast<i32>(gridDim.x) - owners, terms);
    }
    end_step(args.link, at, lane_area::sum_packets);
}

#endif

}  // namespace epjit::templates
