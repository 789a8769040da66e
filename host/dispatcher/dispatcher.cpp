// SPDX-License-Identifier: Apache-2.0
#include "host/dispatcher/dispatcher.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

namespace epjit::host {
namespace {

std::string without_gpu(const exchange_question& q) {
    return q.no_gpu_reason.empty() ? "no GPU on this machine" : fmt::format("no usable GPU: {}", q.no_gpu_reason);
}

exchange_kind decide(const exchange_question& q) {
    if (q.wanted != exchange_kind::automatic) {
        return q.wanted;
    }
    if (q.communicator != exchange_kind::automatic) {
        return q.communicator;
    }
    return q.have_gpu ? exchange_kind::loopback : exchange_kind::host;
}

void refuse_impossible(const exchange_question& q, exchange_kind kind) {
    if (not_in_this_version(kind)) {
        throw unsupported_error(fmt::format("exchange '{}' is not in this version", name(kind)),
                                "use loopback (virtual ranks on one GPU) or host (CPU)");
    }
    if (q.communicator != exchange_kind::automatic && q.communicator != kind) {
        throw config_error(
            fmt::format("exchange '{}' was asked for on a '{}' communicator", name(kind), name(q.communicator)),
            fmt::format("make the communicator with communicator::{}, or ask for auto", name(kind)));
    }
    if (kind == exchange_kind::loopback && !q.have_gpu) {
        throw unsupported_error(fmt::format("exchange 'loopback' needs a GPU: {}", without_gpu(q)),
                                "use the host exchange, or run 'epjit doctor' to see what is missing");
    }
}

std::string reason_against(const exchange_question& q, exchange_kind kind, exchange_kind chosen) {
    if (not_in_this_version(kind)) {
        return "not in this version";
    }
    if (kind == exchange_kind::loopback && !q.have_gpu) {
        return without_gpu(q);
    }
    if (q.wanted != exchange_kind::automatic) {
        return fmt::format("{} was asked for", name(q.wanted));
    }
    if (q.communicator != exchange_kind::automatic) {
        return fmt::format("the communicator is {}", name(q.communicator));
    }
    return fmt::format("{} is preferred: a GPU is there", name(chosen));
}

}  // namespace

exchange_choice choose_exchange(const exchange_question& question) {
    exchange_choice choice;
    choice.exchange = decide(question);
    refuse_impossible(question, choice.exchange);
    if (question.wanted != exchange_kind::automatic) {
        choice.reason = "asked for by name";
    } else if (question.communicator != exchange_kind::automatic) {
        choice.reason = fmt::format("the communicator is {}", name(question.communicator));
    } else if (choice.exchange == exchange_kind::host) {
        choice.reason = without_gpu(question);
    } else {
        choice.reason = fmt::format("{} virtual rank(s) on one GPU", question.num_ranks);
    }
    for (const exchange_kind kind : {exchange_kind::host, exchange_kind::loopback, exchange_kind::lsa,
                                     exchange_kind::sendrecv, exchange_kind::dense, exchange_kind::hybrid}) {
        if (kind != choice.exchange) {
            choice.others.push_back({kind, reason_against(question, kind, choice.exchange)});
        }
    }
    return choice;
}

}  // namespace epjit::host
