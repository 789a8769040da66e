// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/watchdog.hpp"

#include "epjit/error.hpp"
#include "host/nccl/bounded.hpp"
#include "host/runtime/runtime_state.hpp"

#include <fmt/format.h>

namespace epjit::host {

namespace {
constexpr std::chrono::milliseconds busy_tick{5};
constexpr std::chrono::milliseconds idle_tick{200};
/// Replays begin unseen.
constexpr std::chrono::milliseconds replay_tick{20};
/// How long the abort waits for a thread that is inside NCCL.
constexpr std::chrono::seconds grace{5};
}  // namespace

nccl_watchdog::nccl_watchdog(nccl_communicator& comm) : comm_(comm) {
    for (piece& p : ring_) {
        p.event = gpu_event(comm.context(), false);
    }
    thread_ = std::thread([this] { run(); });
}

nccl_watchdog::~nccl_watchdog() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
}

void nccl_watchdog::watch(const char* phase, stream_t stream) {
    const driver_api& driver = comm_.context()->api();
    const scoped_context current(*comm_.context());
    capture_status capturing = capture_status::none;
    if (driver.stream_is_capturing(stream, &capturing) != cu_success || capturing != capture_status::none) {
        return;
    }
    const std::lock_guard lock(mutex_);
    if (count_ == capacity) {
        return;
    }
    piece& p = ring_[(first_ + count_) % capacity];
    p.event.record(stream);
    p.phase = phase;
    p.since = std::chrono::steady_clock::now();
    if (++count_ == 1) {
        wake_.notify_one();
    }
}

bool nccl_watchdog::idle() {
    const std::lock_guard lock(mutex_);
    return count_ == 0;
}

void nccl_watchdog::add(watched_groups* groups) {
    const std::lock_guard lock(mutex_);
    groups_.push_back(groups);
}

void nccl_watchdog::remove(const watched_groups* groups) noexcept {
    const std::lock_guard lock(mutex_);
    std::erase(groups_, groups);
}

std::chrono::milliseconds nccl_watchdog::limit() const noexcept {
    const settings& options = comm_.runtime_->options;
    return succeeded_ ? options.wait_timeout : std::max(options.wait_timeout, options.first_wait_timeout);
}

void nccl_watchdog::run() noexcept {
    const driver_api& driver = comm_.context()->api();
    // A query from here must neither fail nor spoil a capture that another thread has begun.
    capture_mode mode = capture_mode::thread_local_;
    driver.thread_capture_mode(&mode);
    if (driver.context_push(comm_.context()->handle()) != cu_success) {
        return;
    }
    for (bool go_on = true; go_on;) {
        std::unique_lock lock(mutex_);
        const bool idle = count_ == 0;
        wake_.wait_for(lock,
                       !idle             ? busy_tick
                       : groups_.empty() ? idle_tick
                                         : replay_tick,
                       [&] { return stop_ || (idle && count_ > 0); });
        if (stop_) {
            break;
        }
        lock.unlock();
        go_on = look();
    }
    cu_context previous = nullptr;
    driver.context_pop(&previous);
}

nccl_watchdog::late_work nccl_watchdog::late_event() noexcept {
    const std::lock_guard lock(mutex_);
    while (count_ > 0) {
        const piece& p = ring_[first_];
        // A failed query is a lost context or a failed kernel: the host's next call meets it, nothing to wait for.
        if (comm_.context()->api().event_query(p.event.get()) == cu_not_ready) {
            const auto waited =
                std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - p.since);
            return {waited > limit() ? p.phase : nullptr, waited, false};
        }
        first_ = (first_ + 1) % capacity;
        --count_;
        succeeded_ = true;
    }
    return {};
}

nccl_watchdog::late_work nccl_watchdog::late_replay() noexcept {
    const std::lock_guard lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    for (watched_groups* g : groups_) {
        replay_words& words = *g->memory_.as<replay_words>();
        const bool ended = __atomic_load_n(&words.ended, __ATOMIC_ACQUIRE) != 0;
        if (ended) {
            // An end that comes at this very moment is lost with it: nothing is inside then, or the limit begins anew.
            __atomic_store_n(&words.ended, 0, __ATOMIC_RELEASE);
            succeeded_ = true;
        }
        const std::uint32_t inside = __atomic_load_n(&words.inside, __ATOMIC_ACQUIRE);
        if (inside == 0) {
            g->waiting_ = false;
            continue;
        }
        if (ended || !g->waiting_) {
            g->waiting_ = true;
            g->since_ = now;
            continue;
        }
        const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(now - g->since_);
        if (waited > limit()) {
            return {g->phase_of(inside), waited, true};
        }
    }
    return {};
}

bool nccl_watchdog::look() noexcept {
    if (comm_.failure_.load(std::memory_order_acquire) != nccl_communicator::failure::none) {
        return false;
    }
    late_work late = late_event();
    if (late.phase == nullptr) {
        late = late_replay();
    }
    if (late.phase != nullptr) {
        abort(nccl_communicator::failure::timeout,
              fmt::format("{}: {}{} was not done after {} ms (limit {} ms); its communicator was aborted",
                          rank_text(comm_.rank_, comm_.size_), late.phase, late.replayed ? ", replayed," : "",
                          late.waited.count(), limit().count()),
              0);
        return false;
    }
    // The communicators cannot go away below: close() joins this thread first, and abort_now() takes the same lock.
    std::unique_lock calls(comm_.calls_, std::try_to_lock);
    if (!calls.owns_lock() || comm_.failure_.load() != nccl_communicator::failure::none) {
        return true;
    }
    for (ncclComm* comm : {comm_.handle_, comm_.control_}) {
        nccl_result state = nccl_success;
        if (comm_.api_->comm_async_error(comm, &state) == nccl_success && state != nccl_success &&
            state != nccl_in_progress) {
            const char* last = comm_.api_->last_error != nullptr ? comm_.api_->last_error(comm) : "";
            calls.unlock();
            abort(nccl_communicator::failure::nccl,
                  fmt::format("{}: NCCL reported {}{}{}; its communicator was aborted",
                              rank_text(comm_.rank_, comm_.size_), comm_.api_->text(state),
                              last != nullptr && *last != '\0' ? "; last error: " : "", last != nullptr ? last : ""),
                  state);
            return false;
        }
    }
    return true;
}

watched_groups::watched_groups(std::shared_ptr<nccl_communicator> comm)
    : comm_(std::move(comm)), memory_(comm_->context(), sizeof(replay_words)) {
    comm_->runtime_->allocations.fetch_add(1, std::memory_order_relaxed);
    comm_->watchdog_->add(this);
}

watched_groups::~watched_groups() {
    comm_->watchdog_->remove(this);
}

void watched_groups::write(stream_t stream, std::size_t offset, std::uint32_t value) {
    const auto to = reinterpret_cast<cu_pointer>(memory_.device_data()) + offset;
    const cu_result result = comm_->context()->api().stream_write_word(stream, to, value, 0);
    if (result != cu_success && !warned_) {
        warned_ = true;
        comm_->runtime_->log().write(
            log_level::warn,
            fmt::format("{}: replays of this graph are not watched: cuStreamWriteValue32 gave {}; a peer that stops "
                        "holds them up until it is aborted from outside",
                        rank_text(comm_->rank_, comm_->size_), comm_->context()->api().text(result)));
    }
}

const char* watched_groups::phase_of(std::uint32_t inside) const noexcept {
    const char* phase = inside <= most_phases ? phases_[inside - 1] : nullptr;
    return phase != nullptr ? phase : "a group of NCCL calls";
}

void watched_groups::begin(const char* phase, stream_t stream) {
    const scoped_context current(*comm_->context());
    phase_ = phase;
    capture_status status = capture_status::none;
    captured_ =
        comm_->context()->api().stream_is_capturing(stream, &status) == cu_success && status == capture_status::active;
    if (!captured_) {
        return;
    }
    std::uint32_t number = 1;
    {
        const std::lock_guard lock(comm_->watchdog_->mutex_);
        while (number < most_phases && phases_[number - 1] != nullptr && phases_[number - 1] != phase) {
            ++number;
        }
        phases_[number - 1] = phase;
    }
    write(stream, offsetof(replay_words, inside), number);
}

void watched_groups::end(stream_t stream) {
    if (!captured_) {
        comm_->watch(phase_, stream);
        return;
    }
    const scoped_context current(*comm_->context());
    write(stream, offsetof(replay_words, ended), 1);
    write(stream, offsetof(replay_words, inside), 0);
}

void nccl_watchdog::abort(nccl_communicator::failure kind, const std::string& text, int code) noexcept {
    // A thread that is inside NCCL and does not come back is freed by the abort itself, as there is no other way.
    std::unique_lock calls(comm_.calls_, std::try_to_lock);
    for (const auto until = std::chrono::steady_clock::now() + grace;
         !calls.owns_lock() && std::chrono::steady_clock::now() < until; static_cast<void>(calls.try_lock())) {
        std::this_thread::sleep_for(busy_tick);
    }
    const bool alone = calls.owns_lock();
    comm_.abort_now(kind, alone ? text : text + " while a call was inside NCCL", code);
}

}  // namespace epjit::host
