// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/suite.hpp"

namespace epjit::tools {

std::span<const bench_suite> bench_suites() noexcept {
    static constexpr bench_suite all[] = {
        {"jit", jit_suite},
        {"route", route_suite},
        {"exchange", exchange_suite},
        {"decode", decode_suite},
    };
    return all;
}

}  // namespace epjit::tools
