// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "epjit/cache/store.hpp"
#include "epjit/jit/templates.hpp"

#include <string>
#include <string_view>

namespace epjit::host {

/// Number of space-separated words in which two spec descriptions differ, word by word; a different first
/// word (the kernel kind) counts most.
int spec_distance(std::string_view a, std::string_view b);
/// "E=128 instead of E=256, K=4 instead of K=8": the words of `stored` that differ from `wanted`.
std::string spec_difference(std::string_view wanted, std::string_view stored);
/// "the nearest entry ... differs in ...", or that the layers are empty. Reads entries; for error messages
/// only.
std::string describe_nearest(cache::store& store, std::string_view wanted, const jit::template_set& templates);

}  // namespace epjit::host
