// SPDX-License-Identifier: Apache-2.0
// One process of the suites that need several. Exit status 0: everything asked for was served and right.
//   get DIR COUNT_FILE KEYS DELAY_MS LOCK_TIMEOUT_MS   serves jobs(KEYS) with the fake compiler
//   churn DIR KEYS                                     publishes one of KEYS after the other until it is killed
//   fill DIR FIRST KEYS MAX_BYTES CUBIN_BYTES          publishes jobs FIRST .. FIRST + KEYS under a bound
//   nvrtc DIR LIBRARY KEYS                             serves plan programs through that libnvrtc; prints the
//                                                      description of what it was served
#include "epjit/jit/variants.hpp"
#include "tests/cache/support.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

namespace epjit::cache::test {
namespace {

int get(char** arguments) {
    fake_compiler compiler(compiler_a(), arguments[1]);
    compiler.delay = std::chrono::milliseconds(std::atoi(arguments[3]));
    auto options = options_for(std::string(arguments[0]));
    options.lock_timeout = std::chrono::milliseconds(std::atoi(arguments[4]));
    store cache(options);
    const auto wanted = jobs(std::atoi(arguments[2]));
    const auto got = cache.get(wanted, &compiler, 2);
    for (std::size_t i = 0; i < got.size(); ++i) {
        if (got[i].value == nullptr || *got[i].value != make_artifact(wanted[i], compiler_a())) {
            return 1;
        }
    }
    return cache.counters().lock_timeouts > 0 ? 3 : 0;
}

int churn(char** arguments) {
    store cache(options_for(std::string(arguments[0])));
    const int keys = std::atoi(arguments[1]);
    for (int n = 0;; ++n) {
        cache.publish(make_artifact(job(n % keys), compiler_a(), 30'000));
    }
}

int fill(char** arguments) {
    auto options = options_for(std::string(arguments[0]));
    options.max_bytes = std::strtoull(arguments[3], nullptr, 10);
    store cache(options);
    const int first = std::atoi(arguments[1]);
    for (int n = first; n < first + std::atoi(arguments[2]); ++n) {
        if (!cache.publish(make_artifact(job(n), compiler_a(), std::strtoull(arguments[4], nullptr, 10)))) {
            return 1;
        }
    }
    return 0;
}

int nvrtc(char** arguments) {
    const auto templates = jit::template_set::embedded();
    const auto compiler = jit::open_nvrtc({arguments[1], {}}, templates);
    std::vector<jit::compile_job> wanted;
    for (int n = 0; n < std::atoi(arguments[2]); ++n) {
        const auto spec = jit::plan_spec({90, 'a'}, 8 * (n + 1), 8 * (n + 1), 8, 4, false);
        wanted.push_back({spec, jit::variant_key(spec, templates)});
    }
    store cache(options_for(std::string(arguments[0])));
    for (const auto& each : cache.get(wanted, compiler.get(), 2)) {
        if (each.failure) {
            std::rethrow_exception(each.failure);
        }
        if (each.value->compiler != compiler->identity() || each.value->cubin.empty() || each.value->kernels.empty()) {
            return 1;
        }
    }
    return 0;
}

}  // namespace
}  // namespace epjit::cache::test

int main(int count, char** arguments) {
    using namespace epjit::cache::test;
    try {
        const std::string mode = count > 1 ? arguments[1] : "";
        if (mode == "get" && count == 7) {
            return get(arguments + 2);
        }
        if (mode == "churn" && count == 4) {
            return churn(arguments + 2);
        }
        if (mode == "fill" && count == 7) {
            return fill(arguments + 2);
        }
        if (mode == "nvrtc" && count == 5) {
            return nvrtc(arguments + 2);
        }
        fmt::print(stderr, "bad arguments\n");
    } catch (const std::exception& e) {
        fmt::print(stderr, "cache_driver: {}\n", e.what());
    }
    return 2;
}
