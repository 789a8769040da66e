// SPDX-License-Identifier: Apache-2.0
#include "epjit/error.hpp"
#include "tools/worker/process.hpp"
#include "tools/worker/protocol.hpp"
#include "tools/worker/worker.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <poll.h>

namespace epjit::tools {
namespace {

using clock = std::chrono::steady_clock;
using done_function = std::function<void(std::size_t, jit::artifact*, std::exception_ptr)>;

/// The worker's own deadline comes first, where the compiler can be stopped: then the process lives on.
constexpr std::chrono::milliseconds grace{200};
/// How often cancellation is looked at when nothing happens.
constexpr int poll_ms = 50;

/// A start costs about as much as one compile (opening NVRTC), so a worker should have several to do.
constexpr std::size_t jobs_per_worker = 3;

class process_compiler final : public jit::compiler {
   public:
    process_compiler(std::shared_ptr<jit::compiler> inner, logger log) : inner_(std::move(inner)), log_(log) {}

    [[nodiscard]] const jit::compiler_identity& identity() const noexcept override { return inner_->identity(); }
    [[nodiscard]] std::vector<jit::target_arch> targets() const override { return inner_->targets(); }

    jit::artifact compile(const jit::compile_job& job, std::chrono::milliseconds deadline) override {
        jit::artifact result;
        std::exception_ptr failure;
        compile_all({&job, 1}, 1, deadline,
                    [&](std::size_t, jit::artifact* value, std::exception_ptr e) {
                        value != nullptr ? void(result = std::move(*value)) : void(failure = e);
                    },
                    {});
        if (failure) {
            std::rethrow_exception(failure);
        }
        return result;
    }

    void compile_all(std::span<const jit::compile_job> jobs, int parallelism, std::chrono::milliseconds deadline,
                     const done_function& done, const std::function<bool()>& cancelled) override {
        std::lock_guard lock(mutex_);
        run r{*this, jobs, deadline, done, {}, {}};
        for (std::size_t i = 0; i < jobs.size(); ++i) {
            r.pending.push_back(i);
        }
        const std::size_t useful = (jobs.size() + jobs_per_worker - 1) / jobs_per_worker;
        const std::size_t count = std::min<std::size_t>(std::max(parallelism, 1), useful);
        try {
            while (workers_.size() < count) {
                workers_.emplace_back();
            }
        } catch (const error& e) {
            if (workers_.empty()) {
                log_.write(log_level::warn, fmt::format("{}; compiling in this process instead", e.message()));
                inner_->compile_all(jobs, parallelism, deadline, done, cancelled);
                return;
            }
        }
        r.finished.reserve(workers_.size());
        while (!r.pending.empty() || r.busy()) {
            if (cancelled && cancelled()) {
                r.cancel();
                return;
            }
            for (std::size_t w = 0; w < count && w < workers_.size(); ++w) {
                r.assign(workers_[w]);
            }
            r.wait();
            r.collect();
        }
    }

   private:
    /// One call of compile_all.
    struct run {
        process_compiler& self;
        std::span<const jit::compile_job> jobs;
        std::chrono::milliseconds deadline;
        const done_function& done;
        std::deque<std::size_t> pending;
        std::vector<std::pair<std::size_t, std::string>> finished;

        [[nodiscard]] bool busy() const {
            return std::any_of(self.workers_.begin(), self.workers_.end(),
                               [](const auto& w) { return w.job.has_value(); });
        }

        void fail(std::size_t job, std::exception_ptr failure) const { done(job, nullptr, std::move(failure)); }

        void assign(worker_process& worker) {
            while (!worker.job && !pending.empty()) {
                const std::size_t job = pending.front();
                pending.pop_front();
                const std::string frame = encode_request({jobs[job], deadline.count()});
                if (!worker.send(frame)) {  // it died while it was idle: not this job's fault
                    worker.finish();
                    if (!restart(worker) || !worker.send(frame)) {
                        fail(job, std::make_exception_ptr(
                                      error(error_kind::internal, "no compile worker could be started for this variant",
                                            "raise the limits of processes and open files (ulimit -u, ulimit -n)")));
                        continue;
                    }
                }
                worker.job = job;
                worker.since = clock::now();
            }
        }

        static bool restart(worker_process& worker) {
            try {
                worker = worker_process();
                return true;
            } catch (const error&) {
                return false;
            }
        }

        void wait() const {
            std::vector<pollfd> fds;
            for (const worker_process& w : self.workers_) {
                if (w.job) {
                    fds.push_back({w.replies(), POLLIN, 0});
                    if (w.words() >= 0) {
                        fds.push_back({w.words(), POLLIN, 0});
                    }
                }
            }
            ::poll(fds.data(), fds.size(), poll_ms);
        }

        void collect() {
            for (worker_process& w : self.workers_) {
                if (!w.job) {
                    continue;
                }
                w.receive_words();
                const bool alive = w.receive();
                if (auto frame = w.reply()) {
                    finished.emplace_back(*w.job, std::move(*frame));
                    w.job.reset();
                    assign(w);  // it compiles on while the result is stored
                } else if (!alive) {
                    lose(w, fmt::format("the compiler {}", w.finish()), false);
                } else if (clock::now() - w.since > deadline + grace) {
                    w.finish();
                    lose(w, fmt::format("the compiler did not finish within {} ms and was stopped", deadline.count()),
                         true);
                }
            }
            for (auto& [job, frame] : std::exchange(finished, {})) {
                deliver(job, frame);
            }
        }

        void lose(worker_process& worker, const std::string& why, bool timeout) {
            const std::size_t job = *std::exchange(worker.job, std::nullopt);
            const std::string message = fmt::format("{}: {}", jit::describe(jobs[job].spec), why);
            fail(job, timeout
                          ? std::make_exception_ptr(timeout_error(
                                message, "raise EPJIT_COMPILE_TIMEOUT_MS, or try another NVRTC (EPJIT_NVRTC_LIBRARY)"))
                          : std::make_exception_ptr(
                                error(error_kind::compile, message, "try another NVRTC (EPJIT_NVRTC_LIBRARY)")));
            restart(worker);  // when that fails, assign() says so for the jobs that are left
        }

        void deliver(std::size_t job, const std::string& frame) const {
            try {
                auto reply = decode_reply(frame);
                if (auto* value = std::get_if<jit::artifact>(&reply)) {
                    done(job, value, nullptr);
                } else {
                    fail(job, std::get<std::exception_ptr>(reply));
                }
            } catch (const error&) {
                fail(job, std::current_exception());
            }
        }

        void cancel() {
            const auto failure = std::make_exception_ptr(error(error_kind::cancelled, "interrupted"));
            for (worker_process& w : self.workers_) {
                if (w.job) {
                    pending.push_back(*w.job);
                }
            }
            self.workers_.clear();  // kills them
            for (const std::size_t job : pending) {
                fail(job, failure);
            }
        }
    };

    std::shared_ptr<jit::compiler> inner_;
    logger log_;
    std::mutex mutex_;
    std::vector<worker_process> workers_;
};

}  // namespace

std::shared_ptr<jit::compiler> make_process_compiler(std::shared_ptr<jit::compiler> inner, logger log) {
    return std::make_shared<process_compiler>(std::move(inner), log);
}

}  // namespace epjit::tools
