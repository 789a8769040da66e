// SPDX-License-Identifier: Apache-2.0
#include "epjit/jit/hash.hpp"

#include <xxhash.h>

#include <cstring>
#include <new>

namespace epjit::jit {
namespace {

digest from_xxh(XXH128_hash_t hash) noexcept {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, hash);
    digest d;
    static_assert(sizeof canonical.digest == sizeof d.bytes);
    std::memcpy(d.bytes.data(), canonical.digest, sizeof canonical.digest);
    return d;
}

int hex_value(char c) noexcept {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

XXH3_state_t* as_state(void* p) noexcept {
    return static_cast<XXH3_state_t*>(p);
}

}  // namespace

std::string digest::hex() const {
    static constexpr char digits[] = "0123456789abcdef";
    std::string text(32, '0');
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    return text;
}

std::optional<digest> digest::from_hex(std::string_view text) noexcept {
    digest d;
    if (text.size() != 2 * d.bytes.size()) {
        return std::nullopt;
    }
    for (std::size_t i = 0; i < d.bytes.size(); ++i) {
        const int high = hex_value(text[2 * i]);
        const int low = hex_value(text[2 * i + 1]);
        if (high < 0 || low < 0) {
            return std::nullopt;
        }
        d.bytes[i] = static_cast<std::uint8_t>(high << 4 | low);
    }
    return d;
}

std::size_t digest_hash::operator()(const digest& d) const noexcept {
    std::size_t value = 0;
    std::memcpy(&value, d.bytes.data(), sizeof value);
    return value;
}

digest hash_bytes(std::span<const std::byte> bytes) noexcept {
    return from_xxh(XXH3_128bits(bytes.data(), bytes.size()));
}

digest hash_text(std::string_view text) noexcept {
    return from_xxh(XXH3_128bits(text.data(), text.size()));
}

field_hasher::field_hasher() : state_(XXH3_createState()) {
    if (state_ == nullptr) {
        throw std::bad_alloc();
    }
    XXH3_128bits_reset(as_state(state_));
}

field_hasher::~field_hasher() {
    XXH3_freeState(as_state(state_));
}

field_hasher& field_hasher::add(std::string_view text) noexcept {
    add_number(static_cast<std::int64_t>(text.size()));
    XXH3_128bits_update(as_state(state_), text.data(), text.size());
    return *this;
}

field_hasher& field_hasher::add(const digest& value) noexcept {
    XXH3_128bits_update(as_state(state_), value.bytes.data(), value.bytes.size());
    return *this;
}

field_hasher& field_hasher::add_number(std::int64_t value) noexcept {
    std::uint8_t bytes[8];
    for (int i = 0; i < 8; ++i) {
        bytes[i] = static_cast<std::uint8_t>(static_cast<std::uint64_t>(value) >> (8 * i));
    }
    XXH3_128bits_update(as_state(state_), bytes, sizeof bytes);
    return *this;
}

digest field_hasher::finish() const noexcept {
    return from_xxh(XXH3_128bits_digest(as_state(state_)));
}

}  // namespace epjit::jit
