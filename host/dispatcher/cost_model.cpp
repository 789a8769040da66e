// SPDX-License-Identifier: Apache-2.0
#include "host/dispatcher/cost_model.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace epjit::host {
namespace {

constexpr double bytes_per_us(double gbps) {
    return gbps * 1e3;
}

/// The workload in the letters of docs/scaling.md, all for one GPU.
struct letters {
    double R, M, G, K, T;
    double p;           ///< a given rank holds one of a token's experts
    double q;           ///< a given host does
    double final_rows;  ///< rows of the dispatched tensor, in units of T
};

letters letters_of(const workload& w) {
    letters l{};
    l.R = std::max(1, w.ranks);
    l.M = std::clamp(w.hosts, 1, std::max(1, w.ranks));
    l.G = l.R / l.M;
    l.K = std::max(1, w.topk);
    l.T = static_cast<double>(std::max<std::int64_t>(0, w.tokens));
    l.p = expected_distinct(l.R, l.K) / l.R;
    l.q = expected_distinct(l.M, l.K) / l.M;
    l.final_rows = w.rows == layout::flat ? l.R * l.p : l.K;
    return l;
}

double store_us(double bytes, const workload& w, const link_rates& rates) {
    const double limit = w.num_sms > 0 ? rates.store_gbps_per_sm * w.num_sms : rates.store_gbps;
    return bytes / bytes_per_us(std::min(rates.store_gbps, limit));
}

double local_us(double bytes, const workload& w, const link_rates& rates) {
    const double limit = w.num_sms > 0 ? rates.expand_gbps_per_sm * w.num_sms : rates.expand_gbps;
    return bytes / bytes_per_us(std::min(rates.expand_gbps, limit));
}

/// One grouped call: both links at once, peers one after the other.
double grouped_us(double near_bytes, double far_bytes, double peers, const link_rates& rates) {
    if (peers < 1) {
        return 0;
    }
    const double far = far_bytes > 0 ? nccl_us(0) + rates.network_us + far_bytes / bytes_per_us(rates.network_gbps) : 0;
    return std::max(nccl_us(near_bytes), far) + (peers - 1) * rates.peer_us;
}

/// Rows of one token that leave for ranks of the same host and of others.
struct leaving {
    double near = 0, far = 0, own = 0;
    [[nodiscard]] double all() const { return near + far; }
};

leaving leaving_of(const letters& l, crossing c) {
    const double each = c == crossing::once_per_slot ? l.K / l.R : l.p;
    return {(l.G - 1) * each, (l.R - l.G) * each, each};
}

/// A dispatch of lsa whose rows are staged where they arrive, or are not.
traffic predict_stores(const letters& l, const leaving& rows, bool staged, const workload& w, const link_rates& rates) {
    traffic out;
    const double row = l.T * w.dispatch_row_bytes;
    // Read the input; what arrives is written, and if it is staged read and written again.
    out.nvlink_bytes = rows.all() * row;
    out.local_bytes = (staged ? 1 + rows.all() + (rows.own + rows.all()) + l.final_rows : 1 + l.final_rows) * row;
    out.us = rates.launch_us + (l.R > 1 ? rates.flag_us + (staged ? rates.stage_us : 0) : 0) +
             std::max(store_us(out.nvlink_bytes, w, rates), local_us(out.local_bytes, w, rates));
    return out;
}

/// Kernels store into peers while others spread what has arrived.
prediction predict_lsa(const letters& l, crossing c, const workload& w, const link_rates& rates) {
    prediction out{exchange_kind::lsa, c, {}, {}};
    const leaving rows = leaving_of(l, c);
    out.dispatch = predict_stores(l, rows, c == crossing::once_per_rank && w.rows != layout::flat, w, rates);
    // Read what the experts made, store partials (or rows) at the owner, read and sum them there.
    const double back = l.T * w.combine_row_bytes;
    out.combine.nvlink_bytes = rows.all() * back;
    out.combine.local_bytes = (l.final_rows + rows.all() + (rows.own + rows.all()) + 1) * back;
    out.combine.us =
        rates.launch_us + (l.R > 1 ? rates.flag_us : 0) +
        std::max(store_us(out.combine.nvlink_bytes, w, rates), local_us(out.combine.local_bytes, w, rates));
    return out;
}

/// Rows and sums of few tokens as packets: no flag, no staging, nothing waits but for the packets. Of a sum 7 bytes of
/// 8 carry something, of a row 15 of 16.
prediction predict_packets(const letters& l, const workload& w, const link_rates& rates) {
    prediction out{exchange_kind::lsa, crossing::as_packets, {}, {}};
    const leaving rows = leaving_of(l, crossing::as_packets);
    const auto fill = [&](traffic& t, double row_bytes, double packed) {
        t.nvlink_bytes = rows.all() * l.T * row_bytes * packed;
        t.local_bytes = (1 + l.final_rows + 2 * rows.all() * packed) * l.T * row_bytes;
        t.us = rates.packet_us + std::max(store_us(t.nvlink_bytes, w, rates), local_us(t.local_bytes, w, rates));
    };
    fill(out.dispatch, w.dispatch_row_bytes, 16.0 / 15);
    fill(out.combine, w.combine_row_bytes, 8.0 / 7);
    return out;
}

/// Pack, one grouped call, unpack: three stages one after the other.
prediction predict_sendrecv(const letters& l, crossing c, const workload& w, const link_rates& rates) {
    prediction out{exchange_kind::sendrecv, c, {}, {}};
    const leaving rows = leaving_of(l, c);
    // Static mode sends a slot of T rows (once per slot: T * K) to every peer, however many rows are in it.
    const double slot = c == crossing::once_per_slot ? l.K : 1;
    const double near = w.mode == mode::fixed ? (l.G - 1) * slot : rows.near;
    const double far = w.mode == mode::fixed ? (l.R - l.G) * slot : rows.far;
    const auto fill = [&](traffic& t, double row_bytes, double packed, double unpacked) {
        const double row = l.T * row_bytes;
        t.nvlink_bytes = near * row;
        t.network_bytes = far * row;
        t.wasted_bytes = (near + far - rows.all()) * row;
        t.local_bytes = (packed + unpacked) * row;
        t.us = 2 * rates.launch_us + local_us(t.local_bytes, w, rates) +
               grouped_us(t.nvlink_bytes, t.network_bytes, l.R - 1, rates);
    };
    const double arriving = rows.own + rows.all();
    fill(out.dispatch, w.dispatch_row_bytes, 1 + rows.all(), arriving + l.final_rows);
    fill(out.combine, w.combine_row_bytes, l.final_rows + arriving, arriving + 1);
    return out;
}

/// All rows to all ranks by a ring; a partial for every token of every rank comes back.
prediction predict_dense(const letters& l, const workload& w, const link_rates& rates) {
    prediction out{exchange_kind::dense, crossing::to_every_rank, {}, {}};
    traffic& d = out.dispatch;
    const double row = l.T * w.dispatch_row_bytes;
    // A ring passes every row over every link; G rings share a host's links to the next.
    d.nvlink_bytes = l.G > 1 ? (l.R - 1) * row : 0;
    d.network_bytes = l.M > 1 ? (l.R - 1) / l.G * row : 0;
    d.wasted_bytes = (l.R - 1) * (1 - l.p) * row;
    d.local_bytes = (l.R * l.p + l.final_rows) * row;
    d.us = rates.launch_us + local_us(d.local_bytes, w, rates) +
           grouped_us(d.nvlink_bytes, d.network_bytes, l.R - 1, rates);
    traffic& c = out.combine;
    const double back = l.T * w.combine_row_bytes;
    c.nvlink_bytes = (l.G - 1) * back;
    c.network_bytes = (l.R - l.G) * back;
    c.wasted_bytes = (l.R - 1) * (1 - l.p) * back;
    c.local_bytes = (l.final_rows + l.R + l.R + 1) * back;
    c.us = 2 * rates.launch_us + local_us(c.local_bytes, w, rates) +
           grouped_us(c.nvlink_bytes, c.network_bytes, l.R - 1, rates);
    return out;
}

/// Once to each host over the network, wanted there or not, then as lsa inside each host. The stages are added: an
/// upper estimate, since rows that stay in the host need not wait for the network.
prediction predict_hybrid(const letters& l, const workload& w, const link_rates& rates) {
    prediction out{exchange_kind::hybrid, crossing::once_per_host, {}, {}};
    const double wanted = (l.M - 1) * l.q;
    const double far = l.M - 1;
    const double near = l.M * (l.G - 1) * l.p;
    const double arriving = l.R * l.p;
    const auto fill = [&](traffic& t, double row_bytes, double packed, double inside) {
        const double row = l.T * row_bytes;
        t.nvlink_bytes = near * row;
        t.network_bytes = far * row;
        t.wasted_bytes = (far - wanted) * row;
        t.local_bytes = (packed + inside) * row;
        t.us = 2 * rates.launch_us + rates.flag_us + local_us(packed * row, w, rates) +
               grouped_us(0, t.network_bytes, l.M - 1, rates) +
               std::max(store_us(t.nvlink_bytes, w, rates), local_us(inside * row, w, rates));
    };
    const bool flat = w.rows == layout::flat;
    // Staged once for all hosts; whatever arrives is read to be passed on. A host's sum is written for every token.
    fill(out.dispatch, w.dispatch_row_bytes, 2, 1 + far + (flat ? 0 : near + arriving) + l.final_rows);
    fill(out.combine, w.combine_row_bytes, far + 1 + (wanted + 1), l.final_rows + near + arriving + 1);
    return out;
}

}  // namespace

double expected_distinct(double values, double draws) noexcept {
    return values <= 1 ? std::min(values, draws) : values * (1 - std::pow(1 - 1 / values, draws));
}

double nccl_us(double bytes) noexcept {
    struct point {
        double bytes, us;
    };
    constexpr std::array<point, 3> measured{{{1e3, 13.6}, {1.8e6, 25.6}, {58.7e6, 224}}};
    if (bytes <= measured[0].bytes) {
        return measured[0].us;
    }
    const std::size_t last = bytes <= measured[1].bytes ? 1 : 2;
    const point& a = measured[last - 1];
    const point& b = measured[last];
    return a.us + (bytes - a.bytes) * (b.us - a.us) / (b.bytes - a.bytes);
}

prediction predict(exchange_kind exchange, crossing rows_cross, const workload& work, const link_rates& rates) {
    prediction nothing{exchange, rows_cross, {}, {}};
    if (work.ranks < 1) {
        return nothing;
    }
    const letters l = letters_of(work);
    const bool row_wise =
        rows_cross == crossing::once_per_rank || (rows_cross == crossing::once_per_slot && work.rows != layout::flat);
    switch (exchange) {
        case exchange_kind::lsa:
            return l.M > 1                              ? nothing
                   : rows_cross == crossing::as_packets ? predict_packets(l, work, rates)
                   : row_wise                           ? predict_lsa(l, rows_cross, work, rates)
                                                        : nothing;
        case exchange_kind::sendrecv: return row_wise ? predict_sendrecv(l, rows_cross, work, rates) : nothing;
        case exchange_kind::dense:
            return rows_cross == crossing::to_every_rank ? predict_dense(l, work, rates) : nothing;
        case exchange_kind::hybrid:
            return rows_cross == crossing::once_per_host ? predict_hybrid(l, work, rates) : nothing;
        default: return nothing;
    }
}

traffic predict_window_dispatch(bool direct, const workload& work, const link_rates& rates) noexcept {
    const letters l = letters_of(work);
    if (work.ranks < 1 || l.M > 1) {
        return {};
    }
    const bool per_slot = direct && work.rows != layout::flat;
    return predict_stores(l, leaving_of(l, per_slot ? crossing::once_per_slot : crossing::once_per_rank), !direct, work,
                          rates);
}

std::vector<prediction> predict_all(const workload& work, const link_rates& rates) {
    std::vector<prediction> all;
    if (work.ranks < 1) {
        return all;
    }
    const auto add = [&](exchange_kind exchange, crossing c) { all.push_back(predict(exchange, c, work, rates)); };
    for (const exchange_kind exchange : {exchange_kind::lsa, exchange_kind::sendrecv}) {
        if (exchange == exchange_kind::lsa && work.hosts > 1) {
            continue;
        }
        if (exchange == exchange_kind::lsa && work.low_latency) {
            add(exchange, crossing::as_packets);
        }
        add(exchange, crossing::once_per_rank);
        if (work.rows != layout::flat) {
            add(exchange, crossing::once_per_slot);
        }
    }
    add(exchange_kind::dense, crossing::to_every_rank);
    if (work.hosts > 1) {
        add(exchange_kind::hybrid, crossing::once_per_host);
    }
    return all;
}

double floor_us(const workload& work, const link_rates& rates) noexcept {
    const letters l = letters_of(work);
    const double row = l.T * work.dispatch_row_bytes;
    const double crossing_bytes = (l.G - 1) * l.p * row;
    const double local_bytes = (l.R * l.p + l.final_rows) * row;
    return std::max(crossing_bytes / bytes_per_us(rates.copy_engine_gbps), local_bytes / bytes_per_us(rates.copy_gbps));
}

crossing choose_crossing(exchange_kind exchange, const workload& work, const link_rates& rates) {
    if (work.rows == layout::flat) {
        return crossing::once_per_rank;
    }
    const double per_rank = predict(exchange, crossing::once_per_rank, work, rates).dispatch.us;
    const double per_slot = predict(exchange, crossing::once_per_slot, work, rates).dispatch.us;
    return per_slot < per_rank ? crossing::once_per_slot : crossing::once_per_rank;
}

const char* name(crossing c) noexcept {
    switch (c) {
        case crossing::as_packets: return "once per rank, as packets";
        case crossing::once_per_slot: return "once per slot";
        case crossing::once_per_host: return "once per host";
        case crossing::to_every_rank: return "to every rank";
        case crossing::once_per_rank: break;
    }
    return "once per rank";
}

}  // namespace epjit::host
