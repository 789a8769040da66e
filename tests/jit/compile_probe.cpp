// SPDX-License-Identifier: Apache-2.0
// A process that compiles one model's set and says what it cost: jit_compile_probe MODEL ARCH RANKS THREADS [base|all]
// [LIBNVRTC]. One line a variant, "key=... cubin=<digest> ms=... registers=... spill=... kernels=... spec=...", then
// one of the process.
#include "epjit/error.hpp"
#include "epjit/jit/compiler.hpp"
#include "epjit/jit/variants.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>
#include <sys/resource.h>

namespace epjit::jit {
namespace {

double process_cpu_ms() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto ms = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_usec) * 1e-3;
    };
    return ms(usage.ru_utime) + ms(usage.ru_stime);
}

/// Whether this process has mapped a file of a toolkit.
bool toolkit_in_reach() {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        if (line.find("/usr/local/cuda") != std::string::npos) {
            return true;
        }
    }
    return false;
}

void print(const artifact& made) {
    std::string kernels;
    std::uint32_t spill = 0;
    for (const kernel_info& k : made.kernels) {
        kernels += fmt::format("{}{}:{}", kernels.empty() ? "" : ",", k.name, k.registers);
        spill += k.spill_bytes;
    }
    fmt::print("key={} cubin={} bytes={} ms={:.1f} kernels={} spill={} spec={}\n", made.key.hex(),
               hash_bytes(made.cubin).hex(), made.cubin.size(), made.compile_ms, kernels, spill, made.spec);
}

int run(int argc, char** argv) {
    const auto start = std::chrono::steady_clock::now();
    const std::string set = argc > 5 ? argv[5] : "base";
    const auto templates = template_set::embedded();
    const auto compiler = open_nvrtc({argc > 6 ? argv[6] : "", {}}, templates);
    const variant_request request{find_model(argv[1]),
                                  {std::atoi(argv[3])},
                                  {target_arch::parse(argv[2]).value()},
                                  set == "all" ? variant_set::all : variant_set::base};
    std::vector<compile_job> jobs;
    for (const variant_spec& spec : list_variants(request)) {
        jobs.push_back({spec, variant_key(spec, templates)});
    }
    int failed = 0;
    compiler->compile_all(
        jobs, std::atoi(argv[4]), std::chrono::minutes(1),
        [&](std::size_t, artifact* made, std::exception_ptr failure) {
            if (made != nullptr) {
                print(*made);
                return;
            }
            ++failed;
            try {
                std::rethrow_exception(failure);
            } catch (const std::exception& e) {
                fmt::print(stderr, "{}\n", e.what());
            }
        },
        nullptr);
    const std::chrono::duration<double, std::milli> wall = std::chrono::steady_clock::now() - start;
    fmt::print("process variants={} failed={} cpu_ms={:.1f} wall_ms={:.1f} toolkit_mapped={} compiler={}\n",
               jobs.size(), failed, process_cpu_ms(), wall.count(), toolkit_in_reach(), compiler->identity().id.hex());
    return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace epjit::jit

int main(int argc, char** argv) {
    if (argc < 5) {
        fmt::print(stderr, "usage: jit_compile_probe MODEL ARCH RANKS THREADS [base|all] [LIBNVRTC]\n");
        return 2;
    }
    try {
        return epjit::jit::run(argc, argv);
    } catch (const std::exception& e) {
        fmt::print(stderr, "{}\n", e.what());
        return 3;
    }
}
