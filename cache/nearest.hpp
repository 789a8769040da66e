// SPDX-License-Identifier: Apache-2.0
// What differs between a wanted variant and the stored one that is most like it.
#pragma once

#include "epjit/cache/store.hpp"

#include <span>
#include <string>
#include <string_view>

namespace epjit::cache::detail {

/// "nearest entry <key>: R=8 where it has R=4", or that there are no entries. Specs are compared word by word, those
/// of the wanted kind (the first word) first.
std::string nearest_difference(std::string_view wanted_spec, std::span<const entry_info> stored);

}  // namespace epjit::cache::detail
