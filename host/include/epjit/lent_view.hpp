// SPDX-License-Identifier: Apache-2.0
// Scratch that stays its owner's: lent as a view that the owner's next use of the memory makes late, detectably.
#pragma once

#include "epjit/error.hpp"
#include "epjit/export.hpp"
#include "epjit/types.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace epjit {

/// A lent view was used after its owner took the memory back.
class EPJIT_API stale_view_error : public config_error {
   public:
    stale_view_error(const std::string& message, std::uint64_t lent, std::uint64_t current);
    [[nodiscard]] std::uint64_t lent() const noexcept { return lent_; }  ///< the generation of the view
    /// The owner's generation now; 0 when the owner is gone.
    [[nodiscard]] std::uint64_t current() const noexcept { return current_; }

   private:
    std::uint64_t lent_, current_;
};

namespace host {
struct lease_state;
}

/// Rows of memory that belong to an exchange. Moved, not copied: there is one holder at a time, and it shares the
/// owner's generation, so that it notices a later exchange, and the owner's end, whichever comes first. Only what get()
/// and row() return is without that guard: use it for the work enqueued next, and do not keep it.
class EPJIT_API lent_view {
   public:
    lent_view() noexcept;  ///< empty: get() throws
    ~lent_view();
    lent_view(lent_view&&) noexcept;
    lent_view& operator=(lent_view&&) noexcept;
    lent_view(const lent_view&) = delete;
    lent_view& operator=(const lent_view&) = delete;

    /// @throws stale_view_error naming both generations; config_error when the view is empty.
    [[nodiscard]] tensor_view get() const;
    /// One row of it. @throws as get(), and config_error naming `index` and the number of rows.
    [[nodiscard]] tensor_view row(std::int64_t index) const;
    /// True while get() would not throw.
    [[nodiscard]] bool valid() const noexcept;
    [[nodiscard]] std::uint64_t generation() const noexcept { return generation_; }  ///< 0: empty

   private:
    friend class lease_counter;
    lent_view(std::shared_ptr<const host::lease_state> state, std::string_view name, const tensor_view& view);
    void check() const;
    std::shared_ptr<const host::lease_state> state_;
    tensor_view view_{};
    std::uint64_t generation_ = 0;
    char name_[32] = {};
};

/// The owner's side: one for each piece of scratch that is lent. Views may be asked by any thread; the rest is called
/// by the owner's.
class EPJIT_API lease_counter {
   public:
    lease_counter();
    ~lease_counter();  ///< every view lent is late from now on
    lease_counter(lease_counter&&) noexcept;
    lease_counter& operator=(lease_counter&&) noexcept;

    /// A view of the present generation. `name` is for messages; 31 characters of it are kept.
    [[nodiscard]] lent_view lend(std::string_view name, const tensor_view& view) const;
    /// The memory is about to be used again: views lent so far are late. No allocation.
    void advance() noexcept;
    [[nodiscard]] std::uint64_t generation() const noexcept;  ///< from 1 up

   private:
    std::shared_ptr<host::lease_state> state_;
};

}  // namespace epjit
