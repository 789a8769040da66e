// SPDX-License-Identifier: Apache-2.0
// What a dispatch and a combine cost on each exchange, before anything runs: bytes over each link, and microseconds.
// docs/scaling.md explains the formulas. Inputs are equal on every rank, and the routing is not among them: tokens are
// taken to choose their K experts independently, all ranks alike.
#pragma once

#include "epjit/types.hpp"

#include <cstdint>
#include <vector>

namespace epjit::host {

/// Rates of one GPU and its links; 1 GB/s is 1e9 bytes a second. Defaults were measured between two H200s over NVLink
/// (design.md), except those marked as assumed.
struct link_rates {
    double copy_engine_gbps = 391;    ///< NVLink, each way: the floor
    double store_gbps = 364;          ///< kernels that store into peers, enough SMs
    double store_gbps_per_sm = 46;    ///< the same, one SM
    double copy_gbps = 4100;          ///< local memory, read and written: the floor
    double expand_gbps = 3700;        ///< kernels that read a row and write it to several places: 90 % of a copy
    double expand_gbps_per_sm = 100;  ///< the same, one SM
    double flag_us = 2.7;             ///< a flag to a peer and back
    double launch_us = 2.5;
    double packet_us = 4;      ///< a kernel of packets behind another, without the time of their bytes
    double stage_us = 2;       ///< from a row's arrival in staging to its copies, at the end of a kernel (assumed)
    double network_gbps = 50;  ///< between hosts, for each GPU: a 400 Gb/s link (assumed)
    double network_us = 10;    ///< the first byte between hosts through NCCL, beyond NVLink's (assumed)
    double peer_us = 0.2;      ///< each further peer of a grouped NCCL call (assumed)
};

/// How often a token's row leaves its rank.
enum class crossing : std::uint8_t {
    once_per_rank,  ///< to each rank that holds one of its experts; the rank copies it to its slots
    as_packets,     ///< the same of few tokens on lsa, in packets that announce themselves
    once_per_slot,  ///< to each of its experts, straight to its place; not on flat
    once_per_host,  ///< between hosts to each host that holds one of its experts, then once per rank inside
    to_every_rank,  ///< all rows everywhere
};

struct workload {
    std::int32_t ranks = 1;         ///< R
    std::int32_t hosts = 1;         ///< M, each with R / M ranks
    std::int32_t topk = 1;          ///< K
    std::int64_t tokens = 0;        ///< T of each rank
    double dispatch_row_bytes = 0;  ///< of a dispatched row, scales included
    double combine_row_bytes = 0;   ///< of a row given to combine
    layout rows = layout::expert_major;
    epjit::mode mode = mode::exact;
    std::int32_t num_sms = 0;          ///< 0: as many as help
    std::int32_t staged_launches = 1;  ///< lsa: that a call takes whose rows are staged on their way
    bool low_latency = false;          ///< lsa: tokens go as packets
};

/// Bytes that one GPU moves in one operation.
struct traffic {
    double nvlink_bytes = 0;   ///< leaving the GPU inside its host
    double network_bytes = 0;  ///< leaving the GPU towards other hosts
    double local_bytes = 0;    ///< read and written by kernels in the GPU's own memory
    double wasted_bytes = 0;   ///< of the first two: space of fixed slots that no row fills
    double us = 0;             ///< predicted, launch to last flag
};

struct prediction {
    exchange_kind exchange = exchange_kind::host;
    epjit::host::crossing crossing = crossing::once_per_rank;
    traffic dispatch, combine;
    [[nodiscard]] double us() const noexcept { return dispatch.us + combine.us; }
};

/// Distinct values among `draws` independent draws from `values` equally likely ones: n(1 - (1 - 1/n)^k).
double expected_distinct(double values, double draws) noexcept;

/// Microseconds of a grouped ncclSend/ncclRecv of `bytes` each way between two GPUs: measured points, joined by lines.
double nccl_us(double bytes) noexcept;

/// Of lsa (once_per_rank, as_packets or once_per_slot; one host), sendrecv (the first and the last), dense
/// (to_every_rank) or hybrid (once_per_host). Other pairs and a workload without ranks give zeros.
prediction predict(exchange_kind exchange, crossing rows_cross, const workload& work, const link_rates& rates);

/// A dispatch of lsa into outputs that every rank lends. `direct`: to every place of a row, straight; else once per
/// rank, staged there and expanded, on flat too. Zeros for several hosts and without ranks.
traffic predict_window_dispatch(bool direct, const workload& work, const link_rates& rates) noexcept;

/// Every pair that could carry `work`: lsa only on one host, hybrid only between several, packets where it asks for
/// them.
std::vector<prediction> predict_all(const workload& work, const link_rates& rates);

/// What no implementation beats for this dispatch or combine on one host: the bytes that must cross NVLink at the copy
/// engine's rate, or the rows that must be read and written, whichever is longer.
double floor_us(const workload& work, const link_rates& rates) noexcept;

/// Whether a row should cross once per rank or once per slot on lsa and sendrecv, by the predicted time of dispatch.
crossing choose_crossing(exchange_kind exchange, const workload& work, const link_rates& rates);

/// "once per rank", for tables.
const char* name(crossing c) noexcept;

}  // namespace epjit::host
