// SPDX-License-Identifier: Apache-2.0
// One rank's part of a benched layer: its memory, its routings, and the calls.
#pragma once

#include "epjit/jit/hash.hpp"
#include "tools/bench/machine.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace epjit::tools {

struct bench_shape {
    std::int32_t tokens = 4096, hidden = 7168, topk = 8, experts = 256;
    std::string routing = "uniform";  ///< or "zipf": popularity 1 / (1 + e)
    bool fp8 = false;                 ///< rows are fp8 with f32 scales already; combine stays bf16
    epjit::layout rows = layout::expert_major;
    epjit::mode mode = mode::fixed;
    std::int32_t alignment = 1;
    std::int32_t num_sms = 0;
    std::int32_t expansion_sms = 0;
    plan_source source = plan_source::automatic;
    bool low_latency = false;  ///< all calls are bounded by the low-latency limit
    std::int32_t sets = 1;     ///< routings that calls may change between
    bool window = false;       ///< into the output that the exchange lends
    bool apart = false;        ///< no promises: a dispatch that follows its plan, weights that came with the rows
    bool varied = false;       ///< every row has other values, so that result_digest() says something

    [[nodiscard]] std::string text() const;  ///< "T=4096 H=7168 K=8 E=256 uniform bf16 expert_major static"
    [[nodiscard]] dtype dispatch_type() const noexcept { return fp8 ? dtype::fp8_e4m3 : dtype::bf16; }
    [[nodiscard]] scale_type scales() const noexcept { return fp8 ? scale_type::f32 : scale_type::none; }
};

/// Ids [T,K] of one rank: K distinct experts in each row. The same arguments give the same ids everywhere.
std::vector<std::int64_t> draw_ids(const bench_shape& shape, int rank, int set);

/// The routings of all ranks and what they come to.
struct bench_routing {
    bench_routing(const bench_shape& shape, int ranks);
    std::vector<std::vector<std::vector<std::int64_t>>> ids;  ///< [set][rank], each [T,K]
    std::vector<rank_rows> rows;                              ///< [rank], of set 0
    std::vector<std::int32_t> capacity;  ///< [rank] enough for every set; masked: rows per slot, R * T
};

/// Made and used by its rank's thread while the other ranks do the same: making it is collective.
class bench_layer {
   public:
    /// @throws unsupported_error where `kind` is not there.
    bench_layer(bench_rank& me, int rank, const bench_shape& shape, const bench_routing& routing, exchange_kind kind);

    /// A plan of routing `set`, in the memory of the plan before where the mode allows it.
    void plan(int set);
    void dispatch();
    void combine();

    /// Of what the last dispatch and combine wrote that is defined: the combined tokens, and of fp8, which combine does
    /// not read, the dispatched rows. Waits for the stream.
    [[nodiscard]] jit::digest result_digest() const;

   private:
    void make_tensors();
    /// Dispatch brings the weights too, and combine promises that they are the same.
    [[nodiscard]] bool weights_once() const noexcept {
        return shape_.low_latency && !shape_.apart && shape_.rows != layout::flat;
    }
    bench_rank& me_;
    const bench_shape& shape_;
    exchange exchange_;
    plan_options options_;
    std::vector<plan_args> args_;  ///< [set]
    std::vector<host::device_buffer> ids_;
    host::device_buffer input_, scales_, rows_, row_scales_, given_, weights_, result_;
    epjit::plan plan_;
    dispatch_args dispatch_;
    combine_args combine_;
    std::int64_t output_rows_ = 0;
};

}  // namespace epjit::tools
