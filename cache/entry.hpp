// SPDX-License-Identifier: Apache-2.0
// One cache entry as bytes; docs/cache_format.md describes it byte by byte. Any change here demands a new
// entry_version and a new golden file: a test compares both.
#pragma once

#include "epjit/jit/artifact.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace epjit::cache::detail {

static_assert(std::endian::native == std::endian::little, "entries are little-endian and copied as they lie");

inline constexpr std::uint32_t entry_version = 1;
inline constexpr char entry_magic[8] = {'\x89', 'E', 'P', 'J', '\r', '\n', '\x1a', '\n'};
/// Larger files are damage: a cubin of all variants together is a few megabytes.
inline constexpr std::uint64_t max_entry_bytes = std::uint64_t{256} << 20;

/// The first bytes of every entry. The head (this, then metadata) has a checksum of its own, so that a listing need
/// not read cubins; the whole file has another one at its end.
struct entry_header {
    char magic[8];
    std::uint32_t version;
    std::uint32_t header_bytes;  ///< sizeof(entry_header)
    std::uint64_t total_bytes;   ///< of the file
    std::uint64_t head_bytes;    ///< header and metadata; 16 bytes of checksum follow, then the body
    std::uint8_t key[16];
    std::uint8_t compiler[16];
    std::int64_t created_ns;   ///< since 1970
    std::uint64_t compile_ms;  ///< bits of a double
    std::uint32_t num_kernels;
    std::uint32_t reserved;  ///< 0
    std::uint64_t cubin_bytes;
};
static_assert(sizeof(entry_header) == 96);
static_assert(offsetof(entry_header, version) == 8 && offsetof(entry_header, total_bytes) == 16);
static_assert(offsetof(entry_header, head_bytes) == 24 && offsetof(entry_header, key) == 32);
static_assert(offsetof(entry_header, compiler) == 48 && offsetof(entry_header, created_ns) == 64);
static_assert(offsetof(entry_header, compile_ms) == 72 && offsetof(entry_header, num_kernels) == 80);
static_assert(offsetof(entry_header, cubin_bytes) == 88);

struct decoded_entry {
    jit::artifact value;  ///< without body fields when only the head was decoded
    std::int64_t created_ns = 0;
    std::uint64_t total_bytes = 0;
};

/// @throws cache_error when the cubin is empty or a part is too long for the format.
std::vector<std::byte> encode_entry(const jit::artifact& value, std::int64_t created_ns);

/// The whole of an entry, every checksum and length proved; empty and the reason in `why` otherwise. Safe on any bytes.
std::optional<decoded_entry> decode_entry(std::span<const std::byte> bytes, std::string& why);

/// The head alone, from the first bytes of a file of `file_bytes`. When `bytes` is too short `need` is what it takes.
std::optional<decoded_entry> decode_head(std::span<const std::byte> bytes, std::uint64_t file_bytes, std::string& why,
                                         std::uint64_t* need = nullptr);

/// "<key>-<compiler>.epjit". A later version takes another extension, so that two releases can share a directory.
std::string entry_name(const jit::digest& key, const jit::digest& compiler);
struct parsed_name {
    jit::digest key, compiler;
};
std::optional<parsed_name> parse_entry_name(std::string_view name) noexcept;

}  // namespace epjit::cache::detail
