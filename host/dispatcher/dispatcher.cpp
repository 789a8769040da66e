// SPDX-License-Identifier: Apache-2.0
#include "host/dispatcher/dispatcher.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

namespace epjit::host {
namespace {

/// Dense takes R * T rows of workspace on every rank: it has to be cheaper by a twentieth, and those rows few.
constexpr double dense_advantage = 0.95;
constexpr std::int64_t dense_max_rows = 2048;

constexpr exchange_kind all_kinds[] = {exchange_kind::host,     exchange_kind::loopback, exchange_kind::lsa,
                                       exchange_kind::sendrecv, exchange_kind::dense,    exchange_kind::hybrid};

constexpr bool through_nccl(exchange_kind kind) {
    return kind == exchange_kind::lsa || kind == exchange_kind::sendrecv || kind == exchange_kind::dense ||
           kind == exchange_kind::hybrid;
}

/// How the ranks lie on machines.
struct topology {
    std::int32_t hosts = 1;
    std::int32_t fewest = 1, most = 1;  ///< ranks of a host
};

topology topology_of(const machine_facts& facts) {
    if (facts.rank_hosts.empty()) {
        return {1, facts.num_ranks, facts.num_ranks};
    }
    std::map<std::int32_t, std::int32_t> ranks;
    for (const std::int32_t host : facts.rank_hosts) {
        ++ranks[host];
    }
    topology t{static_cast<std::int32_t>(ranks.size()), facts.num_ranks, 0};
    for (const auto& [host, count] : ranks) {
        t.fewest = std::min(t.fewest, count);
        t.most = std::max(t.most, count);
    }
    return t;
}

std::string without_gpu(const machine_facts& facts) {
    return facts.no_gpu_reason.empty() ? "no GPU on this machine"
                                       : fmt::format("no usable GPU: {}", facts.no_gpu_reason);
}

std::string without_windows(const machine_facts& facts) {
    return facts.no_windows_reason.empty() ? "no symmetric windows"
                                           : fmt::format("no symmetric windows: {}", facts.no_windows_reason);
}

class decision {
   public:
    explicit decision(const exchange_question& question) : q_(question), hosts_(topology_of(question.facts)) {}

    exchange_choice make() {
        exchange_choice choice;
        choice.exchange = decide();
        refuse_impossible(choice.exchange);
        choice.reason = reason_for(choice.exchange);
        choice.fallback = fallback(choice.exchange);
        for (const exchange_kind kind : all_kinds) {
            if (kind != choice.exchange) {
                choice.others.push_back({kind, reason_against(kind, choice.exchange)});
            }
        }
        return choice;
    }

   private:
    [[nodiscard]] bool windows() const { return q_.facts.have_windows || q_.facts.one_domain; }
    [[nodiscard]] bool all_reach_all() const { return windows() && (q_.facts.one_domain || hosts_.hosts == 1); }

    [[nodiscard]] exchange_kind decide() const {
        if (q_.wanted != exchange_kind::automatic) {
            return q_.wanted;
        }
        if (q_.communicator != exchange_kind::automatic) {
            return q_.communicator;
        }
        if (!q_.facts.real_ranks) {
            return q_.facts.have_gpu ? exchange_kind::loopback : exchange_kind::host;
        }
        if (!obstacle(exchange_kind::lsa)) {
            return exchange_kind::lsa;
        }
        if (!obstacle(exchange_kind::hybrid)) {
            return exchange_kind::hybrid;
        }
        return dense_is_cheaper() ? exchange_kind::dense : exchange_kind::sendrecv;
    }

    /// Why automatic choice passes over `kind` on ranks through NCCL.
    [[nodiscard]] std::optional<std::string> obstacle(exchange_kind kind) const {
        if (!q_.built.has(kind)) {
            return "not in this version";
        }
        if (kind == exchange_kind::lsa) {
            if (!windows()) {
                return without_windows(q_.facts);
            }
            if (!all_reach_all()) {
                return fmt::format("{} hosts that do not share an NVLink domain", hosts_.hosts);
            }
        }
        if (kind == exchange_kind::hybrid) {
            if (hosts_.hosts == 1) {
                return "all ranks are on one host";
            }
            if (hosts_.most == 1) {
                return "one rank on each host: rows would not be shared inside a host";
            }
            if (!windows()) {
                return without_windows(q_.facts);
            }
            if (hosts_.fewest != hosts_.most) {
                return fmt::format("hosts of {} to {} ranks: taken by itself only where all have as many",
                                   hosts_.fewest, hosts_.most);
            }
        }
        return std::nullopt;
    }

    [[nodiscard]] prediction predicted(exchange_kind kind) const { return predicted(kind, q_.largest.mode); }
    [[nodiscard]] prediction predicted(exchange_kind kind, mode m) const {
        workload work = q_.largest;
        work.mode = m;
        work.ranks = q_.facts.num_ranks;
        work.hosts = kind == exchange_kind::lsa && q_.facts.one_domain ? 1 : hosts_.hosts;
        if (work.dispatch_row_bytes <= 0 || work.combine_row_bytes <= 0) {
            return {};
        }
        const crossing c = kind == exchange_kind::dense    ? crossing::to_every_rank
                           : kind == exchange_kind::hybrid ? crossing::once_per_host
                                                           : choose_crossing(kind, work, q_.rates);
        return predict(kind, c, work, q_.rates);
    }

    [[nodiscard]] bool dense_is_cheaper() const {
        if (q_.largest.tokens * q_.facts.num_ranks > dense_max_rows) {
            return false;
        }
        const double dense = predicted(exchange_kind::dense).us();
        return q_.built.has(exchange_kind::dense) && dense > 0 && q_.facts.num_ranks > 1 &&
               dense < dense_advantage * predicted(exchange_kind::sendrecv).us();
    }

    void refuse_impossible(exchange_kind kind) const {
        if (!q_.built.has(kind)) {
            throw unsupported_error(fmt::format("exchange '{}' is not in this version", name(kind)),
                                    q_.facts.real_ranks ? "ask for auto, which takes an exchange that is"
                                                        : "use loopback (virtual ranks on one GPU) or host (CPU)");
        }
        if (q_.communicator != exchange_kind::automatic && q_.communicator != kind) {
            refuse_communicator(kind);
        }
        if (!through_nccl(kind) && q_.facts.real_ranks && q_.communicator == exchange_kind::automatic) {
            throw config_error(
                fmt::format("exchange '{}' was asked for on a communicator of {} ranks through NCCL, which drives one",
                            name(kind), q_.facts.num_ranks),
                fmt::format("make the communicator with communicator::{}, or ask for auto", name(kind)));
        }
        if (kind == exchange_kind::loopback && !q_.facts.have_gpu) {
            throw unsupported_error(fmt::format("exchange 'loopback' needs a GPU: {}", without_gpu(q_.facts)),
                                    "use the host exchange, or run 'epjit doctor' to see what is missing");
        }
        if (through_nccl(kind)) {
            refuse_unreachable(kind);
        }
    }

    [[noreturn]] void refuse_communicator(exchange_kind kind) const {
        const char* maker = through_nccl(kind) ? "from_nccl, from_unique_id or from_launcher" : nullptr;
        throw config_error(
            fmt::format("exchange '{}' was asked for on a '{}' communicator", name(kind), name(q_.communicator)),
            fmt::format("make the communicator with communicator::{}, or ask for auto",
                        maker != nullptr ? std::string_view(maker) : name(kind)));
    }

    /// A name overrides what is preferred, not what these ranks can do.
    void refuse_unreachable(exchange_kind kind) const {
        if (!q_.facts.real_ranks) {
            throw unsupported_error(
                fmt::format("exchange '{}' needs one GPU for each of {} ranks{}", name(kind), q_.facts.num_ranks,
                            q_.facts.have_gpu ? "" : ": " + without_gpu(q_.facts)),
                "start one process for each GPU with torchrun, mpirun or srun, or use loopback (virtual ranks on one "
                "GPU) or host (CPU)");
        }
        const bool needs_windows = kind == exchange_kind::lsa || kind == exchange_kind::hybrid;
        if (needs_windows && !windows()) {
            throw unsupported_error(
                fmt::format("exchange '{}' stores into its peers: {}", name(kind), without_windows(q_.facts)),
                "use sendrecv, or ask for auto; 'epjit doctor' shows which NCCL was loaded");
        }
        if (kind == exchange_kind::lsa && !all_reach_all()) {
            throw unsupported_error(fmt::format("exchange 'lsa' stores into its peers: the {} ranks are on {} hosts "
                                                "that do not share an NVLink domain",
                                                q_.facts.num_ranks, hosts_.hosts),
                                    "use hybrid or sendrecv, or ask for auto");
        }
    }

    [[nodiscard]] std::string reason_for(exchange_kind kind) const {
        if (q_.wanted != exchange_kind::automatic) {
            return "asked for by name";
        }
        if (q_.communicator != exchange_kind::automatic) {
            return fmt::format("the communicator is {}", name(q_.communicator));
        }
        const std::int32_t ranks = q_.facts.num_ranks;
        switch (kind) {
            case exchange_kind::host: return without_gpu(q_.facts);
            case exchange_kind::loopback: return fmt::format("{} virtual rank(s) on one GPU", ranks);
            case exchange_kind::lsa:
                return hosts_.hosts == 1
                           ? fmt::format("{} rank(s) of one host reach each other's windows", ranks)
                           : fmt::format("{} ranks on {} hosts reach each other's windows", ranks, hosts_.hosts);
            case exchange_kind::hybrid:
                return fmt::format("{} hosts of {} ranks, each with windows inside", hosts_.hosts, hosts_.most);
            case exchange_kind::dense:
                return fmt::format("predicted {:.0f} us, sendrecv {:.0f} us", predicted(kind).us(),
                                   predicted(exchange_kind::sendrecv).us());
            default: return "works between any ranks";
        }
    }

    /// Empty where nothing faster was passed over, also where a name decided.
    [[nodiscard]] std::string fallback(exchange_kind kind) const {
        if (q_.wanted != exchange_kind::automatic || q_.facts.num_ranks == 1 ||
            (kind != exchange_kind::sendrecv && kind != exchange_kind::dense)) {
            return {};
        }
        const exchange_kind missed =
            hosts_.hosts == 1 || q_.facts.one_domain ? exchange_kind::lsa : exchange_kind::hybrid;
        if (missed == exchange_kind::hybrid && hosts_.most == 1) {
            return {};  // sendrecv is what belongs there
        }
        const auto why = obstacle(missed);
        return why ? fmt::format("{} instead of {}: {}", name(kind), name(missed), *why) : std::string{};
    }

    [[nodiscard]] std::string reason_against(exchange_kind kind, exchange_kind chosen) const {
        if (!q_.built.has(kind)) {
            return "not in this version";
        }
        if (kind == exchange_kind::loopback && !q_.facts.have_gpu) {
            return without_gpu(q_.facts);
        }
        if (through_nccl(kind) && q_.facts.real_ranks) {
            if (auto why = obstacle(kind); why && q_.wanted == exchange_kind::automatic) {
                return *why;
            }
        }
        if (q_.wanted != exchange_kind::automatic) {
            return fmt::format("{} was asked for", name(q_.wanted));
        }
        if (q_.communicator != exchange_kind::automatic) {
            return fmt::format("the communicator is {}", name(q_.communicator));
        }
        if (through_nccl(kind) && !q_.facts.real_ranks) {
            return q_.facts.have_gpu ? "needs one GPU for each rank" : without_gpu(q_.facts);
        }
        if (!through_nccl(kind) && q_.facts.real_ranks) {
            return "each rank has a GPU of its own";
        }
        if (!through_nccl(kind)) {
            return fmt::format("{} is preferred: a GPU is there", name(chosen));
        }
        return compared(kind, chosen);
    }

    [[nodiscard]] std::string compared(exchange_kind kind, exchange_kind chosen) const {
        const double other = predicted(kind).us();
        const double taken = predicted(chosen).us();
        if (other <= 0 || taken <= 0) {
            return fmt::format("{} is preferred", name(chosen));
        }
        std::string why;
        if (taken > other && kind == exchange_kind::sendrecv && chosen == exchange_kind::hybrid) {
            // Every token goes to every host, but fixed slots of every rank cost more: plans of both modes come.
            why = fmt::format(" and preferred for static mode: {:.0f} and {:.0f} us", predicted(kind, mode::fixed).us(),
                              predicted(chosen, mode::fixed).us());
        } else if (taken > other) {
            why = " and preferred, since a prediction is rough";
        }
        return fmt::format("predicted {:.0f} us, {} {:.0f} us{}", other, name(chosen), taken, why);
    }

    const exchange_question& q_;
    topology hosts_;
};

}  // namespace

exchange_choice choose_exchange(const exchange_question& question) {
    return decision(question).make();
}

}  // namespace epjit::host
