// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/foreign_kernel.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/compiler.hpp"
#include "jit/nvrtc/library.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace epjit::tests {
namespace {

constexpr const char* source = R"(
extern "C" __global__ void hold(unsigned long long ns) {
    extern __shared__ unsigned char much[];
    unsigned long long begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
    much[threadIdx.x] = 1;
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - begin < ns);
}
)";

}  // namespace

std::vector<std::byte> compile_foreign_kernel(const std::string& arch, const std::string& nvrtc_library) {
    jit::nvrtc_options where;
    where.library = nvrtc_library;
    const jit::nvrtc::library lib = jit::nvrtc::open_library(where);
    jit::nvrtc::program_t program = nullptr;
    const auto check = [&](jit::nvrtc::result code, const char* call) {
        if (code != jit::nvrtc::success) {
            throw compile_error(fmt::format("{} returned {} for the foreign kernel", call, code), "", "", source);
        }
    };
    check(lib.calls.create_program(&program, source, "foreign.cu", 0, nullptr, nullptr), "nvrtcCreateProgram");
    const std::string target = "--gpu-architecture=" + arch;
    const char* options[] = {target.c_str()};
    check(lib.calls.compile_program(program, 1, options), "nvrtcCompileProgram");
    std::size_t bytes = 0;
    check(lib.calls.get_cubin_size(program, &bytes), "nvrtcGetCUBINSize");
    std::vector<std::byte> cubin(bytes);
    check(lib.calls.get_cubin(program, reinterpret_cast<char*>(cubin.data())), "nvrtcGetCUBIN");
    lib.calls.destroy_program(&program);
    return cubin;
}

occupation::occupation(const host::shared_context& context, host::runtime_state& runtime, int free_sms,
                       std::chrono::milliseconds length)
    : context_(context), stream_(context) {
    const std::string arch = host::device_arch(context->compute_major(), context->compute_minor()).text();
    const std::vector<std::byte> cubin = compile_foreign_kernel(arch, runtime.options.nvrtc_library);
    module_ = host::gpu_module(context, cubin);
    host::cu_function hold = module_.function("hold");
    const host::scoped_context current(*context);
    const host::driver_api& api = context->api();
    // So much of an SM's shared memory that no other block fits beside it, at most what one block may have.
    const auto shared = static_cast<unsigned>(context->max_shared_bytes());
    api.check(
        api.function_set_attribute(hold, host::function_attribute::max_dynamic_shared_bytes, static_cast<int>(shared)),
        "cuFuncSetAttribute");
    unsigned long long ns =
        static_cast<unsigned long long>(std::chrono::duration_cast<std::chrono::nanoseconds>(length).count());
    void* arguments[] = {&ns};
    const auto blocks = static_cast<unsigned>(std::max(1, context->num_sms() - free_sms));
    // 1024 threads: with that many resident an SM takes one more block of 1024 at most, and no more shared memory.
    api.check(api.launch(hold, blocks, 1, 1, 1024, 1, 1, shared, stream_.get(), arguments, nullptr), "cuLaunchKernel");
}

occupation::~occupation() {
    try {
        stream_.synchronize();
    } catch (const std::exception&) {
        // A lost context is met by whoever uses it next.
    }
}

}  // namespace epjit::tests
