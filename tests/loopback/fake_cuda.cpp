// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 of one fake GPU whose memory is the host's: it keeps what was launched, and "runs" plan kernels as far
// as the host can see. Controlled through the fake_cuda_* functions and FAKE_CUDA_* variables.
#include "host/driver/api.hpp"
#include "host/exchange/layouts.hpp"
#include "host/loopback/arguments.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

using namespace epjit::host;
namespace templates = epjit::templates;

namespace {

struct fake_launch {
    std::string kernel;
    unsigned grid, threads, shared;
    unsigned mode;  ///< bits: 1 cooperatively, 2 before the end of the kernel in front
    std::vector<unsigned char> args;
    // Not a kernel but a word that the stream writes.
    cu_pointer word = 0;
    unsigned value = 0;
};

struct fake_state {
    std::mutex mutex;
    std::vector<fake_launch> launches;
    std::atomic<long> allocations{0}, frees{0}, events_recorded{0}, waits{0}, loads{0};
    std::atomic<int> plan_hangs{0}, reject_loads{0}, fail_query{0}, events_pending{0};
    std::atomic<int> dropped_rows{0}, rows{0}, timed_out{0};
    epjit::stream_t capturing = nullptr;
    epjit::stream_t recorded_on = nullptr;  ///< the last event
    bool spoilt = false;                    ///< the capture, by a call that cannot be captured
    std::vector<fake_launch> recorded;
    std::atomic<long> graphs{0};  ///< alive, instantiated or not
    std::uint64_t captures = 0;   ///< begun so far
    std::atomic<int> replay_hangs_after{-1};
};
fake_state& state() {
    static fake_state s;
    return s;
}

/// What a wait gives on `stream`: a capture does not survive one.
cu_result after_wait(epjit::stream_t stream) {
    const std::lock_guard lock(state().mutex);
    if (state().capturing == nullptr || state().capturing != stream) {
        return cu_success;
    }
    state().spoilt = true;
    return cu_capture_unsupported;
}

/// What the host sees of a plan kernel.
void run_plan(const templates::plan_head& head) {
    if (state().plan_hangs != 0) {
        return;
    }
    if (head.host_counts != nullptr) {
        head.host_counts[0] = state().rows;  // of slot 0; the test's exchange has one slot and one rank
        head.host_counts[1] = state().rows;
    }
    head.host_status->dropped_rows = static_cast<unsigned>(state().dropped_rows.load());
    head.host_status->timed_out = static_cast<unsigned>(state().timed_out.load());
    __atomic_store_n(&head.host_status->ready, head.sequence, __ATOMIC_RELEASE);
}

/// What is kept of the arguments: tables of ranks as far as the smallest kernel reads them.
std::size_t args_size(const std::string& kernel) {
    struct size_of_kernel {
        const char* name;
        std::size_t bytes;
    };
    constexpr size_of_kernel sizes[] = {
        {"exchange_plan_kernel", sizeof(templates::exchange_plan_args)},
        {"gathered_plan_kernel", sizeof(templates::gathered_plan_args)},
        {"plan", sizeof(templates::plan_head) + sizeof(templates::plan_rank)},
        {"ll_dispatch_kernel", sizeof(templates::ll_dispatch_args)},
        {"ll_combine_kernel", sizeof(templates::ll_combine_args)},
        {"sync_kernel", sizeof(templates::sync_args)},
        {"window_lines_kernel", sizeof(templates::window_lines_args)},
        {"send_weights_kernel", sizeof(templates::send_weights_args<8>)},
        {"return_rows_kernel", sizeof(templates::return_rows_args<8>)},
        {"dispatch_kernel", sizeof(templates::dispatch_args<8>)},
        {"combine_kernel", sizeof(templates::combine_args<8>)},
        {"scatter", sizeof(templates::scatter_args<8>)},
    };
    for (const size_of_kernel& s : sizes) {
        if (kernel.find(s.name) != std::string::npos) {
            return s.bytes;
        }
    }
    return sizeof(templates::gather_args<8>);
}

void run(const fake_launch& launch) {
    if (launch.word != 0) {
        __atomic_store_n(reinterpret_cast<unsigned*>(launch.word), launch.value, __ATOMIC_RELEASE);
        return;
    }
    {
        const std::lock_guard lock(state().mutex);
        state().launches.push_back(launch);
    }
    if (launch.kernel.find("plan_kernel") != std::string::npos) {
        templates::plan_head head;
        std::memcpy(static_cast<void*>(&head), launch.args.data(), sizeof head);
        run_plan(head);
    }
}

/// FAKE_CUDA_DEVICES, all of which share one context; 1 when it is not set.
int num_devices() {
    const char* text = std::getenv("FAKE_CUDA_DEVICES");
    return text != nullptr ? std::atoi(text) : 1;
}

/// Copies and fills beyond this are for their time, which a fake has none of.
constexpr std::size_t most_bytes = std::size_t{64} << 20;

/// Copies and fills take turns: the memory is a GPU's, where one stream may read what another writes.
std::mutex& memory_turn() {
    static std::mutex turn;
    return turn;
}
void copy(void* to, const void* from, std::size_t bytes) {
    const std::lock_guard lock(memory_turn());
    std::memcpy(to, from, bytes);
}

/// The kernels of tools/bench/probe.cpp: `flags` says that a round took 2 us.
bool run_probe(const std::string& name, void** params) {
    if (name == "epjit_bench_flags") {
        auto* result = *static_cast<std::uint64_t**>(params[2]);
        *result = *static_cast<std::uint32_t*>(params[4]) * std::uint64_t{2000};
    }
    return name.find("epjit_bench_") == 0;
}

/// Runs it, or records it where its stream is being captured.
cu_result issue(fake_launch launch, epjit::stream_t stream) {
    {
        const std::lock_guard lock(state().mutex);
        if (stream != nullptr && state().capturing == stream) {
            state().recorded.push_back(std::move(launch));
            return cu_success;
        }
    }
    run(launch);
    return cu_success;
}

cu_result launch_any(cu_function f, unsigned grid, unsigned threads, unsigned shared, unsigned mode,
                     epjit::stream_t stream, void** params) {
    const std::string& name = *reinterpret_cast<std::string*>(f);
    if (run_probe(name, params)) {
        return cu_success;
    }
    const auto* bytes = static_cast<const unsigned char*>(params[0]);
    return issue({name, grid, threads, shared, mode, std::vector<unsigned char>(bytes, bytes + args_size(name))},
                 stream);
}

CUctx_st* const the_context = reinterpret_cast<CUctx_st*>(0x1000);

}  // namespace

extern "C" {

// What tests control and see.
void fake_cuda_set_plan_hangs(int value) {
    state().plan_hangs = value;
}
void fake_cuda_set_reject_loads(int value) {
    state().reject_loads = value;
}
void fake_cuda_set_events_pending(int value) {
    state().events_pending = value;
}
/// A replay does not get beyond so many of what was recorded; -1: it does.
void fake_cuda_set_replay_hangs_after(int value) {
    state().replay_hangs_after = value;
}
void fake_cuda_set_query_failure(int value) {
    state().fail_query = value;
}
void fake_cuda_set_plan_result(int rows, int dropped, int timed_out) {
    state().rows = rows;
    state().dropped_rows = dropped;
    state().timed_out = timed_out;
}
long fake_cuda_live_allocations() {
    return state().allocations - state().frees;
}
long fake_cuda_live_graphs() {
    return state().graphs;
}
long fake_cuda_stream_waits() {
    return state().waits;
}
std::size_t fake_cuda_num_launches() {
    const std::lock_guard lock(state().mutex);
    return state().launches.size();
}
/// Launch `index`: name, {grid, threads, shared, mode} and the argument bytes.
const char* fake_cuda_launch(std::size_t index, unsigned* shape, const void** args) {
    const std::lock_guard lock(state().mutex);
    const fake_launch& l = state().launches[index];
    shape[0] = l.grid;
    shape[1] = l.threads;
    shape[2] = l.shared;
    shape[3] = l.mode;
    *args = l.args.data();
    return l.kernel.c_str();
}

cu_result cuInit(unsigned) {
    return std::getenv("FAKE_CUDA_NO_DEVICE") != nullptr ? cu_no_device : cu_success;
}
cu_result cuDriverGetVersion(int* version) {
    *version = 13000;
    return cu_success;
}
cu_result cuGetErrorName(cu_result, const char** text) {
    *text = "CUDA_ERROR_FAKE";
    return cu_success;
}
cu_result cuGetErrorString(cu_result, const char** text) {
    *text = "made up";
    return cu_success;
}
cu_result cuDeviceGetCount(int* n) {
    *n = num_devices();
    return cu_success;
}
cu_result cuDeviceGet(cu_device* d, int i) {
    *d = i;
    return cu_success;
}
cu_result cuDeviceGetName(char* text, int size, cu_device) {
    std::strncpy(text, "Fake GPU", static_cast<std::size_t>(size));
    return cu_success;
}
cu_result cuDeviceTotalMem_v2(std::size_t* bytes, cu_device) {
    *bytes = std::size_t{1} << 30;
    return cu_success;
}
cu_result cuDeviceGetAttribute(int* value, device_attribute which, cu_device) {
    *value = which == device_attribute::multiprocessors                ? 4
             : which == device_attribute::compute_major                ? 9
             : which == device_attribute::shared_bytes_per_block_optin ? 232448
                                                                       : 0;
    return cu_success;
}
cu_result cuDevicePrimaryCtxRetain(cu_context* c, cu_device) {
    *c = the_context;
    return cu_success;
}
cu_result cuDevicePrimaryCtxRelease_v2(cu_device) {
    return cu_success;
}
cu_result cuCtxPushCurrent_v2(cu_context) {
    return cu_success;
}
cu_result cuCtxPopCurrent_v2(cu_context* c) {
    *c = the_context;
    return cu_success;
}
cu_result cuCtxGetCurrent(cu_context* c) {
    *c = the_context;
    return cu_success;
}
cu_result cuCtxSynchronize() {
    return cu_success;
}
cu_result cuModuleLoadData(cu_module* m, const void*) {
    ++state().loads;
    if (state().reject_loads > 0) {
        --state().reject_loads;
        return cu_no_binary_for_gpu;
    }
    *m = reinterpret_cast<cu_module>(0x2000);
    return cu_success;
}
cu_result cuModuleUnload(cu_module) {
    return cu_success;
}
cu_result cuModuleGetFunction(cu_function* f, cu_module, const char* name) {
    // A few names a process: kept for its life.
    static std::vector<std::unique_ptr<std::string>> names;
    const std::lock_guard lock(state().mutex);
    names.push_back(std::make_unique<std::string>(name));
    *f = reinterpret_cast<cu_function>(names.back().get());
    return cu_success;
}
cu_result cuFuncGetAttribute(int* value, function_attribute, cu_function) {
    *value = 0;
    return cu_success;
}
cu_result cuFuncSetAttribute(cu_function, function_attribute, int) {
    return cu_success;
}
cu_result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, cu_function, int, std::size_t) {
    *blocks = 2;
    return cu_success;
}
cu_result cuLaunchKernel(cu_function f, unsigned grid, unsigned, unsigned, unsigned threads, unsigned, unsigned,
                         unsigned shared, epjit::stream_t stream, void** params, void**) {
    return launch_any(f, grid, threads, shared, 0, stream, params);
}
cu_result cuLaunchKernelEx(const cu_launch_config* c, cu_function f, void** params, void**) {
    const bool overlaps = c->num_attributes == 1 && c->attributes->id == launch_before_the_end;
    return launch_any(f, c->grid[0], c->block[0], c->shared_bytes, overlaps ? 2 : 0, c->stream, params);
}
cu_result cuLaunchCooperativeKernel(cu_function f, unsigned grid, unsigned, unsigned, unsigned threads, unsigned,
                                    unsigned, unsigned shared, epjit::stream_t stream, void** params) {
    return launch_any(f, grid, threads, shared, 1, stream, params);
}
cu_result cuMemGetInfo_v2(std::size_t* available, std::size_t* total) {
    *available = *total = std::size_t{1} << 30;
    return cu_success;
}
cu_result cuMemAlloc_v2(cu_pointer* p, std::size_t bytes) {
    if (bytes > std::size_t{1} << 30) {
        return cu_out_of_memory;
    }
    ++state().allocations;
    *p = reinterpret_cast<cu_pointer>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
    return cu_success;
}
cu_result cuMemFree_v2(cu_pointer p) {
    ++state().frees;
    std::free(reinterpret_cast<void*>(p));
    return cu_success;
}
cu_result cuMemHostAlloc(void** p, std::size_t bytes, unsigned) {
    ++state().allocations;
    *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return cu_success;
}
cu_result cuMemFreeHost(void* p) {
    ++state().frees;
    std::free(p);
    return cu_success;
}
cu_result cuMemHostGetDevicePointer_v2(cu_pointer* p, void* host, unsigned) {
    *p = reinterpret_cast<cu_pointer>(host);
    return cu_success;
}
cu_result cuMemcpyHtoDAsync_v2(cu_pointer to, const void* from, std::size_t bytes, epjit::stream_t) {
    copy(reinterpret_cast<void*>(to), from, bytes);
    return cu_success;
}
cu_result cuMemcpyDtoHAsync_v2(void* to, cu_pointer from, std::size_t bytes, epjit::stream_t) {
    copy(to, reinterpret_cast<const void*>(from), bytes);
    return cu_success;
}
cu_result cuMemcpyDtoDAsync_v2(cu_pointer to, cu_pointer from, std::size_t bytes, epjit::stream_t) {
    if (bytes < most_bytes) {
        copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
    }
    return cu_success;
}
cu_result cuDeviceCanAccessPeer(int* can, cu_device, cu_device) {
    *can = std::getenv("FAKE_CUDA_NO_PEERS") == nullptr ? 1 : 0;
    return cu_success;
}
cu_result cuDeviceGetP2PAttribute(int* value, p2p_attribute which, cu_device, cu_device) {
    const bool lacks = which == p2p_attribute::native_atomics && std::getenv("FAKE_CUDA_NO_PEER_ATOMICS") != nullptr;
    *value = std::getenv("FAKE_CUDA_NO_PEERS") == nullptr && !lacks ? 1 : 0;
    return cu_success;
}
cu_result cuCtxEnablePeerAccess(cu_context, unsigned) {
    static std::atomic<int> calls{0};
    return calls++ == 0 ? cu_success : cu_peer_access_already_enabled;
}
cu_result cuMemcpyPeerAsync(cu_pointer to, cu_context, cu_pointer from, cu_context, std::size_t bytes,
                            epjit::stream_t) {
    if (bytes < most_bytes) {
        copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
    }
    return cu_success;
}
cu_result cuMemcpy2DAsync_v2(const cu_copy_2d* c, epjit::stream_t) {
    for (std::size_t row = 0; row < c->height; ++row) {
        copy(reinterpret_cast<char*>(c->to) + row * c->to_pitch,
             reinterpret_cast<const char*>(c->from) + row * c->from_pitch, c->width_bytes);
    }
    return cu_success;
}
cu_result cuMemsetD8Async(cu_pointer to, unsigned char value, std::size_t bytes, epjit::stream_t) {
    if (bytes < most_bytes) {
        const std::lock_guard lock(memory_turn());
        std::memset(reinterpret_cast<void*>(to), value, bytes);
    }
    return cu_success;
}
cu_result cuMemsetD32Async(cu_pointer to, unsigned value, std::size_t count, epjit::stream_t) {
    const std::lock_guard lock(memory_turn());
    std::fill_n(reinterpret_cast<unsigned*>(to), count, value);
    return cu_success;
}
cu_result cuStreamCreate(epjit::stream_t* s, unsigned) {
    static std::atomic<std::uintptr_t> next{0x3000};
    *s = reinterpret_cast<epjit::stream_t>(next.fetch_add(16));
    return cu_success;
}
cu_result cuStreamDestroy_v2(epjit::stream_t) {
    return cu_success;
}
cu_result cuStreamSynchronize(epjit::stream_t stream) {
    return after_wait(stream);
}
cu_result cuStreamQuery(epjit::stream_t stream) {
    if (after_wait(stream) != cu_success) {
        return cu_capture_unsupported;
    }
    return state().fail_query != 0 ? state().fail_query.load() : cu_not_ready;
}
cu_result cuStreamWaitEvent(epjit::stream_t stream, cu_event, unsigned) {
    ++state().waits;
    const std::lock_guard lock(state().mutex);
    if (state().capturing != nullptr && (stream == state().capturing) != (state().recorded_on == state().capturing)) {
        state().spoilt = true;
        return cu_capture_isolation;
    }
    return cu_success;
}
cu_result cuStreamWriteValue32_v2(epjit::stream_t stream, cu_pointer word, unsigned value, unsigned) {
    if (std::getenv("FAKE_CUDA_NO_WORDS") != nullptr) {
        return cu_capture_unsupported;
    }
    fake_launch write{};
    write.word = word;
    write.value = value;
    return issue(std::move(write), stream);
}
cu_result cuEventCreate(cu_event* e, unsigned) {
    *e = reinterpret_cast<cu_event>(0x4000);
    return cu_success;
}
cu_result cuEventDestroy_v2(cu_event) {
    return cu_success;
}
cu_result cuEventRecord(cu_event, epjit::stream_t stream) {
    ++state().events_recorded;
    const std::lock_guard lock(state().mutex);
    state().recorded_on = stream;
    return cu_success;
}
cu_result cuEventRecordWithFlags(cu_event, epjit::stream_t, unsigned) {
    ++state().events_recorded;
    return cu_success;
}
cu_result cuEventQuery(cu_event) {
    return state().events_pending != 0 ? cu_not_ready : cu_success;
}
cu_result cuEventSynchronize(cu_event) {
    return cu_success;
}
cu_result cuEventElapsedTime(float* ms, cu_event, cu_event) {
    *ms = 1.5F;
    return cu_success;
}
cu_result cuStreamBeginCapture_v2(epjit::stream_t stream, capture_mode) {
    const std::lock_guard lock(state().mutex);
    if (stream == nullptr || state().capturing != nullptr) {
        return cu_capture_unsupported;
    }
    state().capturing = stream;
    ++state().captures;
    state().spoilt = false;
    state().recorded.clear();
    return cu_success;
}
cu_result cuStreamEndCapture(epjit::stream_t, cu_graph* graph) {
    const std::lock_guard lock(state().mutex);
    state().capturing = nullptr;
    if (state().spoilt) {
        *graph = nullptr;
        return cu_capture_invalidated;
    }
    ++state().graphs;
    *graph = reinterpret_cast<cu_graph>(new std::vector<fake_launch>(std::move(state().recorded)));
    state().recorded.clear();
    return cu_success;
}
cu_result cuStreamIsCapturing(epjit::stream_t stream, capture_status* status) {
    const std::lock_guard lock(state().mutex);
    *status = stream == nullptr || state().capturing != stream ? capture_status::none
              : state().spoilt                                 ? capture_status::invalidated
                                                               : capture_status::active;
    return cu_success;
}
cu_result cuStreamGetCaptureInfo(epjit::stream_t stream, capture_status* status, std::uint64_t* number) {
    const cu_result result = cuStreamIsCapturing(stream, status);
    const std::lock_guard lock(state().mutex);
    *number = state().captures;
    return result;
}
cu_result cuThreadExchangeStreamCaptureMode(capture_mode*) {
    return cu_success;
}
cu_result cuGraphInstantiateWithFlags(cu_graph_exec* exec, cu_graph graph, unsigned long long) {
    ++state().graphs;
    *exec = reinterpret_cast<cu_graph_exec>(
        new std::vector<fake_launch>(*reinterpret_cast<std::vector<fake_launch>*>(graph)));
    return cu_success;
}
cu_result cuGraphLaunch(cu_graph_exec exec, epjit::stream_t) {
    int done = 0;
    for (const fake_launch& launch : *reinterpret_cast<std::vector<fake_launch>*>(exec)) {
        if (done++ == state().replay_hangs_after) {
            break;
        }
        run(launch);
    }
    return cu_success;
}
cu_result cuGraphExecDestroy(cu_graph_exec exec) {
    --state().graphs;
    delete reinterpret_cast<std::vector<fake_launch>*>(exec);
    return cu_success;
}
cu_result cuGraphDestroy(cu_graph graph) {
    --state().graphs;
    delete reinterpret_cast<std::vector<fake_launch>*>(graph);
    return cu_success;
}

}  // extern "C"
