// SPDX-License-Identifier: Apache-2.0
// A whole cache in one file: magic, version, then each entry with its length, a zero, the count, XXH3-128 over all.
#pragma once

namespace epjit::cache::detail {
inline constexpr char pack_magic[8] = {'\x89', 'E', 'P', 'P', '\r', '\n', '\x1a', '\n'};
inline constexpr unsigned pack_version = 1;
}  // namespace epjit::cache::detail
