// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/creation.hpp"

#include "epjit/error.hpp"
#include "host/nccl/bounded.hpp"
#include "host/runtime/runtime_state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace epjit::host {

namespace {

using clock = std::chrono::steady_clock;

nccl_config config_of(bool blocking) noexcept {
    nccl_config config;
    config.blocking = blocking ? 1 : 0;
    return config;
}

[[noreturn]] void fail_phase(const nccl_api& api, nccl_result result, const char* phase, std::int32_t rank,
                             std::int32_t size, std::chrono::milliseconds limit) {
    if (result == nccl_in_progress) {
        throw timeout_error(fmt::format("{}: {} was not done after {} ms (NCCL {})", rank_text(rank, size), phase,
                                        limit.count(), api.version_text()),
                            "check that all ranks were started and make the same call, and that they reach each other "
                            "(NCCL_SOCKET_IFNAME); EPJIT_FIRST_WAIT_TIMEOUT_MS is the limit");
    }
    api.fail(result, phase, fmt::format("on {}", rank_text(rank, size)));
}

}  // namespace

/// Makes the communicators of one thread's ranks, step by step; what is not taken by release() is aborted at the end.
struct nccl_builder {
    struct rank_comms {
        std::int32_t rank = 0;
        shared_context context;
        ncclComm* control = nullptr;
        ncclComm* data = nullptr;
    };

    nccl_builder(const std::shared_ptr<runtime_state>& state, std::int32_t num_ranks)
        : runtime(state), api(state->nccl()), size(num_ranks) {
        limit = std::max(state->options.first_wait_timeout, state->options.wait_timeout);
        until = clock::now() + limit;
    }
    nccl_builder(const nccl_builder&) = delete;
    nccl_builder& operator=(const nccl_builder&) = delete;
    ~nccl_builder() {
        for (rank_comms& r : comms) {
            const driver_api& driver = r.context->api();
            const bool current = driver.context_push(r.context->handle()) == cu_success;
            // The parent first: that ends the call that may still be about to write the child. No kernel runs yet.
            if (r.control != nullptr) {
                api->comm_abort(r.control);
            }
            if (r.data != nullptr) {
                api->comm_abort(r.data);
            }
            cu_context previous = nullptr;
            if (current) {
                driver.context_pop(&previous);
            }
        }
    }

    /// One group of `call(rank_comms&)`, then waits for each control communicator.
    template <class Call>
    void collective(const char* phase, Call call) {
        if (const nccl_result started = api->group_start(); started != nccl_success) {
            api->fail(started, "ncclGroupStart");
        }
        nccl_result first = nccl_success;
        std::int32_t failed = comms.front().rank;
        for (rank_comms& r : comms) {
            const scoped_context current(*r.context);
            const nccl_result result = call(r);
            if (first == nccl_success && result != nccl_success && result != nccl_in_progress) {
                first = result;
                failed = r.rank;
            }
        }
        const nccl_result ended = api->group_end();
        if (first != nccl_success) {
            fail_phase(*api, first, phase, failed, size, limit);
        }
        if (ended != nccl_success && ended != nccl_in_progress) {
            fail_phase(*api, ended, phase, failed, size, limit);
        }
        for (const rank_comms& r : comms) {
            if (r.control == nullptr) {
                fail_phase(*api, nccl_internal_error, phase, r.rank, size, limit);
            }
            const nccl_result result = host::settle(*api, r.control, nccl_in_progress, until);
            if (result != nccl_success) {
                fail_phase(*api, result, phase, r.rank, size, limit);
            }
        }
    }

    void connect(const nccl_unique_id& id) {
        collective("connecting (ncclCommInitRankConfig)", [&](rank_comms& r) {
            nccl_config config = config_of(false);
            return api->comm_init(&r.control, size, id, r.rank, &config);
        });
    }

    /// The child that data moves on.
    void split() {
        if (!runtime->options.nccl_blocking || api->comm_split == nullptr) {
            return;
        }
        const char* phase = "making the communicator for data (ncclCommSplit)";
        collective(phase, [&](rank_comms& r) {
            nccl_config config = config_of(true);
            return api->comm_split(r.control, 0, r.rank, &r.data, &config);
        });
        for (const rank_comms& r : comms) {
            // Of a blocking communicator there is no progress to ask for: it is there or it is not.
            if (r.data == nullptr) {
                fail_phase(*api, nccl_internal_error, phase, r.rank, size, limit);
            }
        }
    }

    std::vector<std::shared_ptr<nccl_communicator>> release() {
        std::vector<std::shared_ptr<nccl_communicator>> made;
        for (rank_comms& r : comms) {
            std::shared_ptr<nccl_communicator> comm(new nccl_communicator());
            comm->api_ = api;
            comm->rank_ = r.rank;
            comm->size_ = size;
            comm->runtime_ = runtime;
            comm->context_ = r.context;
            comm->control_ = std::exchange(r.control, nullptr);
            comm->handle_ = r.data != nullptr ? std::exchange(r.data, nullptr) : comm->control_;
            comm->open(runtime, r.context);
            made.push_back(std::move(comm));
        }
        return made;
    }

    std::shared_ptr<runtime_state> runtime;
    std::shared_ptr<const nccl_api> api;
    std::int32_t size;
    std::chrono::milliseconds limit{0};  ///< of all steps together
    clock::time_point until;
    std::vector<rank_comms> comms;
};

std::vector<std::shared_ptr<nccl_communicator>> connect_ranks(const std::shared_ptr<runtime_state>& runtime,
                                                              const nccl_unique_id& id, std::int32_t size,
                                                              std::span<const nccl_member> members) {
    nccl_builder builder(runtime, size);
    for (const nccl_member& m : members) {
        builder.comms.push_back({m.rank, m.context});
    }
    builder.connect(id);
    builder.split();
    return builder.release();
}

namespace {

/// What the borrowed communicator says of itself, checked against what the caller says.
struct borrowed_place {
    int size = 0;
    int rank = 0;
};

borrowed_place look_at(const nccl_api& api, ncclComm* borrowed, const device_context& context) {
    if (borrowed == nullptr) {
        throw config_error("the borrowed NCCL communicator is null", "pass a communicator that is initialised");
    }
    borrowed_place place;
    int device = 0;
    const auto ask = [&](nccl_result result, const char* call) {
        if (result != nccl_success) {
            api.fail(result, call, "of the borrowed communicator");
        }
    };
    ask(api.comm_count(borrowed, &place.size), "ncclCommCount");
    ask(api.comm_rank(borrowed, &place.rank), "ncclCommUserRank");
    ask(api.comm_device(borrowed, &device), "ncclCommCuDevice");
    if (device != context.device()) {
        throw config_error(fmt::format("device {} was asked for, the borrowed communicator's rank {} uses device {}",
                                       context.device(), place.rank, device),
                           fmt::format("pass device {}", device));
    }
    return place;
}

void check_ranks(std::span<const int> ranks, int size) {
    std::vector<int> sorted(ranks.begin(), ranks.end());
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t i = 0; i < sorted.size(); ++i) {
        if (sorted[i] < 0 || sorted[i] >= size) {
            throw config_error(fmt::format("rank {} was listed, the borrowed communicator has {}", sorted[i], size),
                               fmt::format("list ranks from 0 to {}", size - 1));
        }
        if (i > 0 && sorted[i] == sorted[i - 1]) {
            throw config_error(fmt::format("rank {} was listed twice", sorted[i]), "list every rank once");
        }
    }
}

}  // namespace

std::shared_ptr<nccl_communicator> borrow(const std::shared_ptr<runtime_state>& runtime, ncclComm* borrowed,
                                          const shared_context& context, std::span<const int> ranks) {
    const std::shared_ptr<const nccl_api> api = runtime->nccl();
    if (api->comm_split == nullptr) {
        throw unsupported_error(
            fmt::format("this build of NCCL {} has no ncclCommSplit, and a borrowed communicator is "
                        "used through a child of it",
                        api->version_text()),
            "use an NCCL that has it, or communicator::from_unique_id");
    }
    const borrowed_place place = look_at(*api, borrowed, *context);
    check_ranks(ranks, place.size);
    const auto at = std::find(ranks.begin(), ranks.end(), place.rank);
    const bool member = ranks.empty() || at != ranks.end();
    // Groups that are made at once and share no rank have different lowest ranks.
    const int color = !member ? nccl_split_nocolor : ranks.empty() ? 0 : *std::min_element(ranks.begin(), ranks.end());
    const int new_rank = ranks.empty() ? place.rank : static_cast<int>(at - ranks.begin());
    const int new_size = ranks.empty() ? place.size : static_cast<int>(ranks.size());

    nccl_builder builder(runtime, new_size);
    // The borrowed communicator may be a blocking one, which holds the calling thread: never ours. NCCL writes the
    // child when it is done, so its place lives as long as the call does.
    const auto child = std::make_shared<ncclComm*>(nullptr);
    enum class owner { call, caller, nobody };  // who takes the child down when it comes too late
    const auto owned = std::make_shared<std::atomic<owner>>(owner::call);
    const auto call = [api, borrowed, color, new_rank, child, owned, until = builder.until] {
        nccl_config config = config_of(false);
        const nccl_result made = api->comm_split(borrowed, color, new_rank, child.get(), &config);
        const nccl_result result = settle(*api, borrowed, made, until);
        if (owned->exchange(owner::caller) == owner::nobody && *child != nullptr) {
            api->comm_abort(*child);
        }
        return result;
    };
    const char* phase = "making a child of the borrowed communicator (ncclCommSplit)";
    const std::optional<nccl_result> split = call_bounded(context, call, builder.until + std::chrono::seconds{1});
    if (!split) {
        if (owned->exchange(owner::nobody) == owner::caller && *child != nullptr) {
            api->comm_abort(*child);  // it was done between the last look and now
        }
        throw timeout_error(fmt::format("{}: {} was not done after {} ms and is still inside NCCL",
                                        rank_text(place.rank, place.size), phase, builder.limit.count()),
                            "check that all ranks of the borrowed communicator make this call; ncclCommAbort of it, "
                            "which is the caller's, ends the call");
    }
    if (*split != nccl_success) {
        fail_phase(*api, *split, phase, place.rank, place.size, builder.limit);
    }
    if (!member) {
        return nullptr;
    }
    builder.comms.push_back({new_rank, context, *child});
    const nccl_result ready =
        *child == nullptr ? nccl_internal_error : settle(*api, *child, nccl_in_progress, builder.until);
    if (ready != nccl_success) {
        fail_phase(*api, ready, phase, place.rank, place.size, builder.limit);
    }
    int made = 0;
    if (api->comm_count(*child, &made) == nccl_success && made != new_size) {
        throw config_error(fmt::format("rank {} listed {} ranks, {} ranks of the borrowed communicator joined",
                                       place.rank, new_size, made),
                           "pass the same list on every rank that is in it");
    }
    builder.split();
    return builder.release().front();
}

nccl_unique_id make_unique_id(const nccl_api& api) {
    nccl_unique_id id;
    if (const nccl_result result = api.get_unique_id(&id); result != nccl_success) {
        api.fail(result, "ncclGetUniqueId");
    }
    return id;
}

}  // namespace epjit::host
