// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

namespace epjit::host {

/// Owns one handle of a C interface together with what must stay alive until it is closed. Move-only, no
/// allocation. Traits: `type` of the handle (value-initialised means none), `owner`, and `static void
/// close(owner&, type) noexcept`.
template <class Traits>
class unique_handle {
   public:
    using type = typename Traits::type;
    using owner = typename Traits::owner;

    unique_handle() noexcept = default;
    unique_handle(owner o, type value) noexcept : owner_(std::move(o)), value_(value) {}
    unique_handle(unique_handle&& other) noexcept
        : owner_(std::move(other.owner_)), value_(std::exchange(other.value_, type{})) {}
    unique_handle& operator=(unique_handle&& other) noexcept {
        if (this != &other) {
            reset();
            owner_ = std::move(other.owner_);
            value_ = std::exchange(other.value_, type{});
        }
        return *this;
    }
    ~unique_handle() { reset(); }

    void reset() noexcept {
        if (value_ != type{}) {
            Traits::close(owner_, std::exchange(value_, type{}));
        }
        owner_ = owner{};
    }
    [[nodiscard]] type get() const noexcept { return value_; }
    [[nodiscard]] const owner& owned_by() const noexcept { return owner_; }
    [[nodiscard]] explicit operator bool() const noexcept { return value_ != type{}; }

   private:
    owner owner_{};
    type value_{};
};

}  // namespace epjit::host
