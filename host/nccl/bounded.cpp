// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/bounded.hpp"

#include <fmt/format.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace epjit::host {

nccl_result settle(const nccl_api& api, nccl_comm comm, nccl_result result, steady_time until) noexcept {
    if (result != nccl_success && result != nccl_in_progress) {
        return result;
    }
    // Short at first: most calls are done at once; then no busier than a wait of seconds deserves.
    std::chrono::microseconds pause{20};
    for (;;) {
        nccl_result state = nccl_success;
        if (const nccl_result asked = api.comm_async_error(comm, &state); asked != nccl_success) {
            return asked;
        }
        if (state != nccl_in_progress) {
            return state;
        }
        if (std::chrono::steady_clock::now() >= until) {
            return nccl_in_progress;
        }
        std::this_thread::sleep_for(pause);
        pause = std::min(pause * 2, std::chrono::microseconds{2000});
    }
}

namespace {

/// A call on a thread of its own.
struct bounded_call {
    std::mutex mutex;
    std::condition_variable done;
    std::optional<nccl_result> result;
};

std::thread start(const std::shared_ptr<bounded_call>& state, const shared_context& context,
                  std::function<nccl_result()> call) {
    return std::thread([state, context, run = std::move(call)]() noexcept {
        nccl_result result = nccl_system_error;
        try {
            const scoped_context current(*context);
            capture_mode mode = capture_mode::thread_local_;  // so that no capture of another thread forbids anything
            context->api().thread_capture_mode(&mode);
            result = run();
        } catch (...) {
            result = nccl_unhandled_cuda_error;  // the context could not be made current
        }
        const std::lock_guard lock(state->mutex);
        state->result = result;
        state->done.notify_all();
    });
}

std::optional<nccl_result> finish(std::thread worker, bounded_call& call, steady_time until) {
    std::unique_lock lock(call.mutex);
    const bool done = call.done.wait_until(lock, until, [&] { return call.result.has_value(); });
    lock.unlock();
    if (!done) {
        worker.detach();
        return std::nullopt;
    }
    worker.join();
    return call.result;
}

}  // namespace

std::optional<nccl_result> call_bounded(const shared_context& context, std::function<nccl_result()> call,
                                        steady_time until) {
    const auto state = std::make_shared<bounded_call>();
    return finish(start(state, context, std::move(call)), *state, until);
}

bool abort_together(const shared_context& context, const std::shared_ptr<const nccl_api>& api,
                    std::span<ncclComm* const> comms, steady_time until) noexcept {
    struct one {
        std::shared_ptr<bounded_call> call;
        std::thread worker;
    };
    std::vector<one> all;
    bool done = true;
    try {
        all.reserve(comms.size());
        for (ncclComm* comm : comms) {
            const auto state = std::make_shared<bounded_call>();
            all.push_back({state, start(state, context, [api, comm] { return api->comm_abort(comm); })});
        }
    } catch (...) {
        // No thread or no memory: what could not be started is done here.
        for (std::size_t i = all.size(); i < comms.size(); ++i) {
            api->comm_abort(comms[i]);
        }
    }
    for (one& o : all) {
        done = finish(std::move(o.worker), *o.call, until).has_value() && done;
    }
    return done;
}

std::string rank_text(int rank, int size) {
    return fmt::format("rank {} of {}", rank, size);
}

}  // namespace epjit::host
