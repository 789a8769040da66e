// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/host_side.hpp"

#include "host/driver/api.hpp"
#include "host/runtime/runtime_state.hpp"
#include "tools/bench/floor.hpp"

#include <chrono>
#include <cstdint>
#include <vector>

namespace epjit::tools {
namespace {

using clock = std::chrono::steady_clock;

thread_local std::int64_t inside_ns = 0;

std::int64_t ns_since(clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(clock::now() - start).count();
}

/// One function of the driver: what it was, and the one that takes its place. `Member` makes each one's own.
template <auto Member, class Function>
struct watched;
template <auto Member, class... Args>
struct watched<Member, host::cu_result (*)(Args...)> {
    static inline host::cu_result (*real)(Args...) = nullptr;
    static host::cu_result call(Args... args) {
        const auto start = clock::now();
        const host::cu_result result = real(args...);
        inside_ns += ns_since(start);
        return result;
    }
};

template <auto Member>
void watch(host::driver_api& api) {
    auto& function = api.*Member;
    using wrapper = watched<Member, std::remove_reference_t<decltype(function)>>;
    if (function != nullptr && function != wrapper::call) {
        wrapper::real = function;
        function = wrapper::call;
    }
}

}  // namespace

void watch_driver(runtime& rt) {
    // The table belongs to this runtime alone, and nothing has used it yet.
    auto& api = const_cast<host::driver_api&>(*rt.state().driver());
#define EPJIT_WATCH(member, symbol, ...) watch<&host::driver_api::member>(api);
    EPJIT_DRIVER_FUNCTIONS(EPJIT_WATCH)
#undef EPJIT_WATCH
    watch<&host::driver_api::launch_with>(api);
}

host_cost cost_of(int calls, const std::function<void(int)>& before, const std::function<void()>& call) {
    std::vector<double> own, driver;
    for (int i = 0; i < calls; ++i) {
        before(i);
        inside_ns = 0;
        const auto start = clock::now();
        call();
        const std::int64_t all = ns_since(start);
        own.push_back(static_cast<double>(all - inside_ns) * 1e-3);
        driver.push_back(static_cast<double>(inside_ns) * 1e-3);
    }
    return {median_of(std::move(own)), median_of(std::move(driver))};
}

}  // namespace epjit::tools
