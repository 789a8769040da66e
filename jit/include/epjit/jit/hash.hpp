// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace epjit::jit {

/// An XXH3-128 value in canonical (big-endian) byte order. Text form: 32 lower-case hex digits.
struct digest {
    std::array<std::uint8_t, 16> bytes{};

    [[nodiscard]] std::string hex() const;
    static std::optional<digest> from_hex(std::string_view text) noexcept;
    friend auto operator<=>(const digest&, const digest&) = default;
};

/// Hash for unordered containers: the digest is already uniform.
struct digest_hash {
    std::size_t operator()(const digest& d) const noexcept;
};

digest hash_bytes(std::span<const std::byte> bytes) noexcept;
digest hash_text(std::string_view text) noexcept;

/// Hashes fields one after the other, each with its length, so that no two field sequences collide by concatenation.
class field_hasher {
   public:
    field_hasher();
    ~field_hasher();
    field_hasher(const field_hasher&) = delete;
    field_hasher& operator=(const field_hasher&) = delete;

    field_hasher& add(std::string_view text) noexcept;
    /// Any integral or enumeration value, as a signed 64-bit little-endian number.
    template <class T>
    requires(std::is_integral_v<T> || std::is_enum_v<T>) field_hasher& add(T value) noexcept {
        return add_number(static_cast<std::int64_t>(value));
    }
    field_hasher& add(const digest& value) noexcept;
    [[nodiscard]] digest finish() const noexcept;

   private:
    field_hasher& add_number(std::int64_t value) noexcept;
    void* state_;
};

}  // namespace epjit::jit
