// SPDX-License-Identifier: Apache-2.0
// What a user would write with NCCL and two permutes: the yardstick beside the exchanges.
#pragma once

#include "host/nccl/communicator.hpp"
#include "tools/bench/layer.hpp"

#include <cstdint>
#include <vector>

namespace epjit::tools {

/// Rows of rank `rank` that go to each rank's experts and come from each rank's tokens, one for each (token, expert).
struct baseline_counts {
    std::vector<std::int64_t> sent, received;  ///< [R]
    std::vector<std::int64_t> arriving_slots;  ///< [N] local expert of each row as it arrives: by source, then expert
};
baseline_counts count_baseline(const std::vector<std::vector<std::int64_t>>& ids, std::int32_t experts, int rank);

/// Dispatch: rows copied in the order of their experts, a grouped ncclSend and ncclRecv of every rank's part, and what
/// arrives copied again in the order of the local experts. Combine: the way back, weights applied in the last step. A
/// row crosses once for each expert that wants it. The permutes are this library's own. Counts are known beforehand, so
/// nothing is exchanged or waited for on their behalf: a user's program is slower still.
class nccl_baseline {
   public:
    nccl_baseline(bench_rank& me, int rank, const bench_shape& shape, const bench_routing& routing, runtime& rt);

    void plan(int set);  ///< both permutes' plans; the bench has one set
    void dispatch();
    void combine();

   private:
    void make_transfers(const baseline_counts& counts, std::int64_t row_bytes);
    bench_rank& me_;
    communicator alone_;  ///< this rank's GPU by itself
    std::int32_t tokens_, hidden_;
    std::int64_t sorted_rows_, arriving_rows_;
    exchange sort_, regroup_;
    host::device_buffer ids_, slots_, weights_;
    host::device_buffer input_, sorted_, arrived_, output_, back_, returned_, result_;
    std::vector<host::peer_transfer> out_, home_;
    epjit::plan sort_plan_, regroup_plan_;
};

}  // namespace epjit::tools
