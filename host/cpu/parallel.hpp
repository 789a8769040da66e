// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

namespace epjit::host::cpu {

inline constexpr int max_workers = 16;

/// Threads that `parallel_for` may use on this machine: 1 to max_workers.
int num_workers() noexcept;

/// Splits [0, count) into ranges and calls `body(context, worker, begin, end)` on each, on up to
/// num_workers() threads when `bytes`, the memory touched in all, makes that worth while. `body` must not
/// throw. When no thread can be started the caller's does all of it.
void parallel_for(std::int64_t count, std::int64_t bytes, void* context,
                  void (*body)(void* context, int worker, std::int64_t begin, std::int64_t end));

template <class Body>
void parallel_for(std::int64_t count, std::int64_t bytes, Body&& body) {
    parallel_for(count, bytes, &body, [](void* context, int worker, std::int64_t begin, std::int64_t end) {
        (*static_cast<std::remove_reference_t<Body>*>(context))(worker, begin, end);
    });
}

}  // namespace epjit::host::cpu
