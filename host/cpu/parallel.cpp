// SPDX-License-Identifier: Apache-2.0
#include "host/cpu/parallel.hpp"

#include <algorithm>
#include <array>
#include <system_error>
#include <thread>

namespace epjit::host::cpu {
namespace {

constexpr std::int64_t bytes_per_worker = 2 << 20;  // below this a thread costs more than it saves

}  // namespace

int num_workers() noexcept {
    return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, max_workers);
}

void parallel_for(std::int64_t count, std::int64_t bytes, void* context,
                  void (*body)(void*, int, std::int64_t, std::int64_t)) {
    const std::int64_t wanted = std::min({std::int64_t{num_workers()}, bytes / bytes_per_worker, count});
    if (wanted <= 1) {
        body(context, 0, 0, count);
        return;
    }
    const std::int64_t step = (count + wanted - 1) / wanted;
    std::array<std::thread, max_workers> threads;
    std::int64_t started = 0;
    try {
        for (; started < wanted - 1; ++started) {
            const std::int64_t begin = started * step;
            threads[started] =
                std::thread(body, context, static_cast<int>(started), begin, std::min(count, begin + step));
        }
    } catch (const std::system_error&) {
        // No more threads: the rest is done here.
    }
    if (started * step < count) {
        body(context, static_cast<int>(wanted) - 1, started * step, count);
    }
    for (auto& thread : threads) {
        if (thread.joinable()) {
            thread.join();
        }
    }
}

}  // namespace epjit::host::cpu
