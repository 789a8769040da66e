// SPDX-License-Identifier: Apache-2.0
// Serving many variants: memory, disk, then compiling what no process has, each key by one process. Keys whose lock is
// free come first; keys that others compile are polled, for at most lock_timeout in all, and then compiled here too.
#include "cache/nearest.hpp"
#include "cache/state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace epjit::cache::detail {
namespace {

using clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds shortest_poll{2}, longest_poll{25};

class fetcher {
   public:
    fetcher(store_state& state, std::span<const jit::compile_job> jobs, jit::compiler* compiler, int parallelism,
            const std::function<void(std::size_t, const served&)>& progress, const std::function<bool()>& cancelled)
        : state_(state),
          jobs_(jobs),
          compiler_(compiler),
          parallelism_(std::max(parallelism, 1)),
          progress_(progress),
          cancelled_(cancelled),
          results_(jobs.size()),
          mine_(jobs.size()),
          awaited_(jobs.size()) {
        if (compiler_ != nullptr && !state_.options.offline) {
            build_ = compiler_->identity().id;
        }
    }

    std::vector<served> run() {
        for (std::size_t i = 0; i < jobs_.size(); ++i) {
            if (!from_memory(i) && !from_disk(i, false)) {
                state_.count_miss(jobs_[i].key, build());
                open_.push_back(i);
            }
        }
        if (!open_.empty()) {
            if (!build_) {
                fail_missing();
            } else {
                compile_open();
            }
        }
        if (progress_failure_) {
            std::rethrow_exception(progress_failure_);
        }
        return std::move(results_);
    }

   private:
    [[nodiscard]] const jit::digest* build() const noexcept { return build_ ? &*build_ : nullptr; }
    [[nodiscard]] full_key name(std::size_t i) const { return {jobs_[i].key, *build_}; }

    void settle(std::size_t i, served value) {
        results_[i] = std::move(value);
        std::erase(open_, i);
        if (progress_ && !progress_failure_) {
            try {
                progress_(i, results_[i]);
            } catch (...) {
                progress_failure_ = std::current_exception();  // locks must be freed before it goes on
            }
        }
    }

    bool from_memory(std::size_t i) {
        const auto* found = state_.memory.find(jobs_[i].key, build());
        if (found != nullptr) {
            ++state_.counters.memory_hits;
            settle(i, {*found, origin::memory, true, nullptr});
        }
        return found != nullptr;
    }

    bool from_disk(std::size_t i, bool owner) {
        artifact_ptr value = state_.read_layers(jobs_[i].key, build(), owner);
        if (!value) {
            return false;
        }
        ++state_.counters.disk_hits;
        settle(i, {state_.memory.insert(std::move(value)), origin::disk, true, nullptr});
        return true;
    }

    /// Nothing can be compiled: each miss says what is stored instead.
    void fail_missing() {
        const auto stored = state_.list();
        for (const std::size_t i : std::vector(open_)) {
            const std::string spec = jit::describe(jobs_[i].spec);
            const std::string what = fmt::format("variant {} ({}) is not stored in {}; {}", jobs_[i].key.hex(), spec,
                                                 state_.layer_names(), nearest_difference(spec, stored));
            served failed;
            failed.stored = false;
            if (state_.options.offline) {
                failed.failure = std::make_exception_ptr(offline_miss_error(
                    "EPJIT_OFFLINE=1 and " + what,
                    "run `epjit warm` for this model, ranks and arch with the same cache, or unset EPJIT_OFFLINE"));
            } else {
                failed.failure = std::make_exception_ptr(library_error(
                    "NVRTC was not found and " + what,
                    "install NVRTC (`epjit doctor` lists where it is looked for), or warm this cache on a machine that "
                    "has it"));
            }
            settle(i, std::move(failed));
        }
    }

    void compile_open() {
        std::size_t limit = static_cast<std::size_t>(parallelism_);
        auto pause = shortest_poll;
        while (!open_.empty()) {
            if (cancelled_ && cancelled_()) {
                cancel_rest();
                return;
            }
            const std::size_t before = open_.size();
            contended_ = false;
            std::vector<std::size_t> batch = claim(limit);
            if (!batch.empty()) {
                compile(batch);
            }
            if (open_.size() != before) {
                // Small batches while others compile beside us, so that they find free keys too.
                limit = contended_ ? static_cast<std::size_t>(parallelism_) : 2 * limit;
                pause = shortest_poll;
            } else if (waited_ >= state_.options.lock_timeout) {
                compile_anyway();
            } else {
                wait(pause);
                pause = std::min(2 * pause, longest_poll);
            }
        }
    }

    /// Takes the locks of up to `limit` keys that are free; keys that were served meanwhile settle.
    std::vector<std::size_t> claim(std::size_t limit) {
        std::vector<std::size_t> batch;
        for (const std::size_t i : std::vector(open_)) {
            if (landed(i) || from_memory(i)) {
                continue;
            }
            if (batch.size() == limit) {
                break;
            }
            if (!take_flight(i)) {
                contended_ = true;
                continue;
            }
            if (!lock(i)) {
                contended_ = true;
                release(i, nullptr, nullptr);
                if (!awaited_[i]) {
                    ++state_.counters.lock_waits;
                    awaited_[i] = true;
                }
                from_disk(i, false);  // the other may have published, its lock seen a moment too late
                continue;
            }
            // The one that held it before us may have published.
            if (from_memory(i) || from_disk(i, true)) {
                release(i, results_[i].value, nullptr);
                continue;
            }
            batch.push_back(i);
        }
        return batch;
    }

    /// A flight of another thread that we waited for has ended: its result is ours, a failure too.
    bool landed(std::size_t i) {
        served value;
        {
            const std::scoped_lock lock(state_.flight_mutex);
            const auto& ours = mine_[i].waiting;
            if (!ours || !ours->done) {
                return false;
            }
            value = {ours->value, origin::memory, true, ours->failure};
            mine_[i].waiting.reset();
        }
        if (!value.value && !value.failure) {
            return false;  // it gave up without a result
        }
        if (value.value) {
            ++state_.counters.memory_hits;
        }
        value.stored = value.failure == nullptr;
        settle(i, std::move(value));
        return true;
    }

    bool take_flight(std::size_t i) {
        const std::scoped_lock lock(state_.flight_mutex);
        if (const int pid = ::getpid(); state_.flight_pid != pid) {
            state_.flights.clear();  // a forked child: those threads are not here
            state_.flight_pid = pid;
        }
        auto& there = state_.flights[name(i)];
        if (there) {
            if (mine_[i].waiting != there) {
                mine_[i].waiting = there;
                ++state_.counters.lock_waits;
            }
            return false;
        }
        there = mine_[i].flying = std::make_shared<flight>();
        return true;
    }

    bool lock(std::size_t i) {
        if (state_.written == nullptr) {
            return true;
        }
        if (!locks_) {
            locks_ = std::make_unique<lock_file>(state_.ops, state_.written->root()->get());
        }
        const auto offset = lock_offset(lock_area::compile, jobs_[i].key, *build_);
        const lock_result result = locks_->try_lock(offset, true);
        mine_[i].locked = result == lock_result::acquired;
        return result != lock_result::busy;
    }

    /// Ends what this call holds of the key; waiting threads get the result, if there is one.
    void release(std::size_t i, artifact_ptr value, std::exception_ptr failure) {
        if (mine_[i].locked) {
            locks_->unlock(lock_offset(lock_area::compile, jobs_[i].key, *build_));
            mine_[i].locked = false;
        }
        if (!mine_[i].flying) {
            return;
        }
        {
            const std::scoped_lock lock(state_.flight_mutex);
            mine_[i].flying->done = true;
            mine_[i].flying->value = std::move(value);
            mine_[i].flying->failure = std::move(failure);
            state_.flights.erase(name(i));
            mine_[i].flying.reset();
        }
        state_.flight_landed.notify_all();
    }

    void compile(const std::vector<std::size_t>& batch) {
        std::vector<jit::compile_job> jobs;
        for (const std::size_t i : batch) {
            jobs.push_back(jobs_[i]);
        }
        std::exception_ptr broken;
        try {
            compiler_->compile_all(
                jobs, parallelism_, state_.options.compile_timeout,
                [&](std::size_t at, jit::artifact* value, std::exception_ptr failure) {
                    finish(batch[at], value, std::move(failure));
                },
                cancelled_);
        } catch (...) {
            broken = std::current_exception();
        }
        for (const std::size_t i : batch) {
            if (std::find(open_.begin(), open_.end(), i) == open_.end()) {
                continue;
            }
            if (!broken) {
                broken = std::make_exception_ptr(error(
                    error_kind::cancelled, fmt::format("compiling {} was cancelled", jit::describe(jobs_[i].spec))));
            }
            finish(i, nullptr, broken);
        }
    }

    void finish(std::size_t i, jit::artifact* value, std::exception_ptr failure) {
        if (value != nullptr && (value->cubin.empty() || value->key != jobs_[i].key)) {
            failure = std::make_exception_ptr(compile_error(
                fmt::format("the compiler reported success for {} and gave {}", jit::describe(jobs_[i].spec),
                            value->cubin.empty() ? "an empty cubin" : "another variant"),
                value->log, value->options, value->source));
            value = nullptr;
        }
        ++state_.counters.compiles;
        if (value == nullptr) {
            ++state_.counters.compile_failures;
            release(i, nullptr, failure);
            settle(i, {nullptr, origin::compiled, false, std::move(failure)});
            return;
        }
        state_.counters.compile_us += static_cast<std::uint64_t>(value->compile_ms * 1000);
        const bool stored = state_.store_entry(*value, true);
        artifact_ptr kept = state_.memory.insert(std::make_shared<const jit::artifact>(std::move(*value)));
        release(i, kept, nullptr);
        settle(i, {std::move(kept), origin::compiled, stored, nullptr});
    }

    void wait(std::chrono::milliseconds pause) {
        const auto begin = clock::now();
        {
            // Ends early when a thread of this process has landed one.
            std::unique_lock lock(state_.flight_mutex);
            state_.flight_landed.wait_for(lock, pause);
        }
        waited_ += std::chrono::duration_cast<std::chrono::microseconds>(clock::now() - begin);
    }

    void compile_anyway() {
        state_.counters.lock_timeouts += open_.size();
        state_.warn_once(
            "lock timeout",
            fmt::format("waited {} ms for other processes to compile {} variant(s) into {}; compiling them "
                        "here; remedy: end a stopped or hung process that uses this cache",
                        state_.options.lock_timeout.count(), open_.size(),
                        state_.written != nullptr ? state_.written_path : "this process"));
        compile(std::vector(open_));
    }

    void cancel_rest() {
        for (const std::size_t i : std::vector(open_)) {
            settle(i,
                   {nullptr, origin::compiled, false,
                    std::make_exception_ptr(error(error_kind::cancelled, fmt::format("waiting for {} was cancelled",
                                                                                     jit::describe(jobs_[i].spec))))});
        }
    }

    struct hold {
        bool locked = false;
        std::shared_ptr<flight> flying;   ///< ours
        std::shared_ptr<flight> waiting;  ///< another thread's
    };
    store_state& state_;
    const std::span<const jit::compile_job> jobs_;
    jit::compiler* const compiler_;
    const int parallelism_;
    const std::function<void(std::size_t, const served&)>& progress_;
    const std::function<bool()>& cancelled_;
    std::optional<jit::digest> build_;
    std::vector<served> results_;
    std::vector<hold> mine_;
    std::vector<char> awaited_;
    std::vector<std::size_t> open_;  ///< not settled yet, in order
    std::unique_ptr<lock_file> locks_;
    bool contended_ = false;
    std::chrono::microseconds waited_{0};
    std::exception_ptr progress_failure_;
};

}  // namespace

std::vector<served> fetch(store_state& state, std::span<const jit::compile_job> jobs, jit::compiler* compiler,
                          int parallelism, const std::function<void(std::size_t, const served&)>& progress,
                          const std::function<bool()>& cancelled) {
    return fetcher(state, jobs, compiler, parallelism, progress, cancelled).run();
}

}  // namespace epjit::cache::detail
