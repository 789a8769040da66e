// SPDX-License-Identifier: Apache-2.0
#include "epjit/lent_view.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <utility>

namespace epjit {

namespace host {
struct lease_state {
    static constexpr std::uint64_t ended = 0;
    std::atomic<std::uint64_t> generation{1};
};
}  // namespace host

stale_view_error::stale_view_error(const std::string& message, std::uint64_t lent, std::uint64_t current)
    : config_error(message, "take the view anew after each exchange, and copy what has to last"),
      lent_(lent),
      current_(current) {}

lent_view::lent_view() noexcept = default;
lent_view::~lent_view() = default;

lent_view::lent_view(lent_view&& other) noexcept {
    *this = std::move(other);
}

lent_view& lent_view::operator=(lent_view&& other) noexcept {
    if (this != &other) {
        state_ = std::exchange(other.state_, nullptr);
        view_ = std::exchange(other.view_, {});
        generation_ = std::exchange(other.generation_, 0);
        std::copy(std::begin(other.name_), std::end(other.name_), name_);
    }
    return *this;
}

lent_view::lent_view(std::shared_ptr<const host::lease_state> state, std::string_view name, const tensor_view& view)
    : state_(std::move(state)), view_(view), generation_(state_->generation.load(std::memory_order_acquire)) {
    const std::size_t kept = std::min(name.size(), sizeof name_ - 1);
    std::copy_n(name.begin(), kept, name_);
}

void lent_view::check() const {
    if (state_ == nullptr) {
        throw config_error("an empty lent view was used", "take one from its owner");
    }
    const std::uint64_t now = state_->generation.load(std::memory_order_acquire);
    if (now == host::lease_state::ended) {
        throw stale_view_error(fmt::format("the lent view '{}' of generation {} was used after its owner was destroyed",
                                           name_, generation_),
                               generation_, now);
    }
    if (now != generation_) {
        throw stale_view_error(
            fmt::format("the lent view '{}' is of generation {}, its owner is at {}: a later exchange "
                        "has taken the memory",
                        name_, generation_, now),
            generation_, now);
    }
}

tensor_view lent_view::get() const {
    check();
    return view_;
}

tensor_view lent_view::row(std::int64_t index) const {
    check();
    if (index < 0 || index >= view_.rows) {
        throw config_error(fmt::format("row {} of the lent view '{}', which has {}", index, name_, view_.rows),
                           "pass an index from 0 up, below the number of rows");
    }
    tensor_view one = view_;
    one.rows = 1;
    const std::int64_t stride = view_.row_stride != 0 ? view_.row_stride : view_.columns;
    one.data = static_cast<std::byte*>(view_.data) + index * stride * size_of(view_.type);
    if (view_.scales != nullptr) {
        const std::int64_t groups = view_.scale_row_stride != 0 ? view_.scale_row_stride : (view_.columns + 127) / 128;
        one.scales = static_cast<std::byte*>(view_.scales) + index * groups * size_of(view_.scale);
    }
    return one;
}

bool lent_view::valid() const noexcept {
    return state_ != nullptr && state_->generation.load(std::memory_order_acquire) == generation_;
}

lease_counter::lease_counter() : state_(std::make_shared<host::lease_state>()) {}

lease_counter::~lease_counter() {
    if (state_ != nullptr) {
        state_->generation.store(host::lease_state::ended, std::memory_order_release);
    }
}

lease_counter::lease_counter(lease_counter&&) noexcept = default;

lease_counter& lease_counter::operator=(lease_counter&& other) noexcept {
    std::swap(state_, other.state_);
    return *this;
}

lent_view lease_counter::lend(std::string_view name, const tensor_view& view) const {
    if (state_ == nullptr) {
        throw config_error(fmt::format("'{}' was lent by a lease counter that was moved from", name),
                           "use the object that it was moved to");
    }
    return {state_, name, view};
}

void lease_counter::advance() noexcept {
    if (state_ != nullptr) {
        state_->generation.fetch_add(1, std::memory_order_acq_rel);
    }
}

std::uint64_t lease_counter::generation() const noexcept {
    return state_ != nullptr ? state_->generation.load(std::memory_order_acquire) : 0;
}

}  // namespace epjit
