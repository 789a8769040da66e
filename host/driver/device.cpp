// SPDX-License-Identifier: Apache-2.0
#include "host/driver/device.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <cstring>

namespace epjit::host {
namespace {

void ensure(const shared_context& context) {
    if (context == nullptr) {
        throw error(error_kind::internal, "a GPU object was used without a context");
    }
}

cu_pointer address(const void* pointer) noexcept {
    return reinterpret_cast<cu_pointer>(pointer);
}

// For destructors: nothing can be reported from there, and a driver that is unloading has freed everything
// already.
template <class Close>
void close_quietly(const shared_context& context, Close close) noexcept {
    if (context == nullptr) {
        return;
    }
    const driver_api& api = context->api();
    if (api.context_push(context->handle()) != cu_success) {
        return;
    }
    close(api);
    cu_context previous = nullptr;
    api.context_pop(&previous);
}

}  // namespace

std::shared_ptr<const device_context> device_context::retain(std::shared_ptr<const driver_api> api, int device) {
    if (device < 0 || device >= api->num_devices) {
        throw config_error(fmt::format("device {} does not exist: the driver sees {} GPU(s)", device, api->num_devices),
                           "pass a device from 0 up, or check CUDA_VISIBLE_DEVICES");
    }
    std::shared_ptr<device_context> context(new device_context(std::move(api)));
    const driver_api& d = *context->api_;
    cu_device ordinal = 0;
    d.check(d.device_get(&ordinal, device), "cuDeviceGet");
    context->device_ = device;
    context->ordinal_ = ordinal;
    d.check(d.device_get_attribute(&context->num_sms_, device_attribute::multiprocessors, ordinal),
            "cuDeviceGetAttribute");
    d.check(d.device_get_attribute(&context->major_, device_attribute::compute_major, ordinal), "cuDeviceGetAttribute");
    d.check(d.device_get_attribute(&context->minor_, device_attribute::compute_minor, ordinal), "cuDeviceGetAttribute");
    d.check(d.device_get_attribute(&context->max_shared_, device_attribute::shared_bytes_per_block_optin, ordinal),
            "cuDeviceGetAttribute");
    char text[256] = {};
    d.check(d.device_name(text, sizeof text - 1, ordinal), "cuDeviceGetName");
    context->name_ = text;
    d.check(d.primary_context_retain(&context->handle_, ordinal), "cuDevicePrimaryCtxRetain");
    return context;
}

device_context::~device_context() {
    if (handle_ != nullptr) {
        api_->primary_context_release(ordinal_);
    }
}

void device_context::synchronize() const {
    const scoped_context current(*this);
    api_->check(api_->context_synchronize(), "cuCtxSynchronize");
}

scoped_context::scoped_context(const device_context& context) : api_(&context.api()) {
    api_->check(api_->context_push(context.handle()), "cuCtxPushCurrent");
}

scoped_context::~scoped_context() {
    cu_context previous = nullptr;
    api_->context_pop(&previous);
}

namespace detail {

void device_memory_traits::close(const owner& o, type value) noexcept {
    close_quietly(o, [value](const driver_api& api) { api.free(value); });
}
void pinned_memory_traits::close(const owner& o, type value) noexcept {
    close_quietly(o, [value](const driver_api& api) { api.host_free(value); });
}
void stream_traits::close(const owner& o, type value) noexcept {
    close_quietly(o, [value](const driver_api& api) { api.stream_destroy(value); });
}
void event_traits::close(const owner& o, type value) noexcept {
    close_quietly(o, [value](const driver_api& api) { api.event_destroy(value); });
}
void module_traits::close(const owner& o, type value) noexcept {
    close_quietly(o, [value](const driver_api& api) { api.module_unload(value); });
}

void graph_traits::close(const owner& o, type value) noexcept {
    close_quietly(o, [value](const driver_api& api) { api.graph_destroy(value); });
}
void graph_exec_traits::close(const owner& o, type value) noexcept {
    close_quietly(o, [value](const driver_api& api) { api.graph_exec_destroy(value); });
}

}  // namespace detail

device_buffer::device_buffer(const shared_context& context, std::size_t bytes) : bytes_(bytes) {
    ensure(context);
    if (bytes == 0) {
        return;
    }
    const scoped_context current(*context);
    const driver_api& api = context->api();
    cu_pointer pointer = 0;
    const cu_result result = api.allocate(&pointer, bytes);
    if (result != cu_success) {
        std::size_t available = 0, total = 0;
        api.memory_info(&available, &total);
        api.fail(result, "cuMemAlloc",
                 fmt::format("of {} bytes on device {} ({} of {} free)", bytes, context->device(), available, total));
    }
    memory_ = unique_handle<detail::device_memory_traits>(context, pointer);
}

pinned_buffer::pinned_buffer(const shared_context& context, std::size_t bytes) : bytes_(bytes) {
    ensure(context);
    if (bytes == 0) {
        return;
    }
    const scoped_context current(*context);
    const driver_api& api = context->api();
    void* pointer = nullptr;
    const cu_result result = api.host_allocate(&pointer, bytes, host_alloc_portable | host_alloc_mapped);
    if (result != cu_success) {
        api.fail(result, "cuMemHostAlloc", fmt::format("of {} bytes", bytes));
    }
    memory_ = unique_handle<detail::pinned_memory_traits>(context, pointer);
    std::memset(pointer, 0, bytes);
    cu_pointer device = 0;
    api.check(api.host_device_pointer(&device, pointer, 0), "cuMemHostGetDevicePointer");
    device_ = reinterpret_cast<void*>(device);
}

gpu_stream::gpu_stream(const shared_context& context) {
    ensure(context);
    const scoped_context current(*context);
    stream_t stream = nullptr;
    context->api().check(context->api().stream_create(&stream, stream_non_blocking), "cuStreamCreate");
    stream_ = unique_handle<detail::stream_traits>(context, stream);
}

void gpu_stream::synchronize() const {
    host::synchronize(stream_.owned_by(), stream_.get());
}

gpu_event::gpu_event(const shared_context& context, bool timing) {
    ensure(context);
    const scoped_context current(*context);
    cu_event event = nullptr;
    context->api().check(context->api().event_create(&event, timing ? 0 : event_disable_timing), "cuEventCreate");
    event_ = unique_handle<detail::event_traits>(context, event);
}

void gpu_event::record(stream_t stream, bool in_graph) const {
    const shared_context& context = event_.owned_by();
    ensure(context);
    const scoped_context current(*context);
    const driver_api& api = context->api();
    api.check(in_graph ? api.event_record_flags(event_.get(), stream, event_record_external)
                       : api.event_record(event_.get(), stream),
              "cuEventRecord");
}

void gpu_event::synchronize() const {
    const shared_context& context = event_.owned_by();
    ensure(context);
    const scoped_context current(*context);
    context->api().check(context->api().event_synchronize(event_.get()), "cuEventSynchronize");
}

bool gpu_event::done() const {
    const shared_context& context = event_.owned_by();
    ensure(context);
    const scoped_context current(*context);
    const cu_result result = context->api().event_query(event_.get());
    if (result == cu_not_ready) {
        return false;
    }
    context->api().check(result, "cuEventQuery");
    return true;
}

double gpu_event::us_since(const gpu_event& start) const {
    const shared_context& context = event_.owned_by();
    ensure(context);
    const scoped_context current(*context);
    float milliseconds = 0;
    context->api().check(context->api().event_elapsed(&milliseconds, start.event_.get(), event_.get()),
                         "cuEventElapsedTime");
    return static_cast<double>(milliseconds) * 1000.0;
}

void gpu_graph::launch(stream_t stream) const {
    const shared_context& context = exec_.owned_by();
    ensure(context);
    const scoped_context current(*context);
    context->api().check(context->api().graph_launch(exec_.get(), stream), "cuGraphLaunch");
}

std::optional<std::uint64_t> capture_of(const driver_api& api, stream_t stream) noexcept {
    capture_status status = capture_status::none;
    std::uint64_t number = 0;
    if (api.capture_info == nullptr || api.capture_info(stream, &status, &number) != cu_success ||
        status == capture_status::invalidated) {
        return std::nullopt;
    }
    return status == capture_status::none ? 0 : number;
}

stream_capture::stream_capture(const shared_context& context, stream_t stream) : context_(context), stream_(stream) {
    ensure(context);
    const scoped_context current(*context);
    context->api().check(context->api().stream_begin_capture(stream, capture_mode::thread_local_),
                         "cuStreamBeginCapture");
    open_ = true;
}

stream_capture::~stream_capture() {
    if (!open_) {
        return;
    }
    close_quietly(context_, [stream = stream_](const driver_api& api) {
        cu_graph dropped = nullptr;
        if (api.stream_end_capture(stream, &dropped) == cu_success && dropped != nullptr) {
            api.graph_destroy(dropped);
        }
    });
}

gpu_graph stream_capture::end() {
    if (!open_) {
        throw error(error_kind::internal, "a capture was ended twice");
    }
    open_ = false;
    const scoped_context current(*context_);
    const driver_api& api = context_->api();
    cu_graph recorded = nullptr;
    api.check(api.stream_end_capture(stream_, &recorded), "cuStreamEndCapture");
    const unique_handle<detail::graph_traits> graph(context_, recorded);
    cu_graph_exec exec = nullptr;
    api.check(api.graph_instantiate(&exec, recorded, 0), "cuGraphInstantiate");
    gpu_graph made;
    made.exec_ = unique_handle<detail::graph_exec_traits>(context_, exec);
    return made;
}

bool is_capturing(const shared_context& context, stream_t stream) {
    ensure(context);
    const scoped_context current(*context);
    capture_status status = capture_status::none;
    context->api().check(context->api().stream_is_capturing(stream, &status), "cuStreamIsCapturing");
    return status != capture_status::none;
}

void copy_to_device(const shared_context& context, void* device, const void* from, std::size_t bytes, stream_t stream) {
    if (bytes == 0) {
        return;
    }
    const scoped_context current(*context);
    context->api().check(context->api().copy_to_device(address(device), from, bytes, stream), "cuMemcpyHtoDAsync");
}

void copy_to_host(const shared_context& context, void* to, const void* device, std::size_t bytes, stream_t stream) {
    if (bytes == 0) {
        return;
    }
    const scoped_context current(*context);
    context->api().check(context->api().copy_to_host(to, address(device), bytes, stream), "cuMemcpyDtoHAsync");
}

void copy_on_device(const shared_context& context, void* to, const void* from, std::size_t bytes, stream_t stream) {
    if (bytes == 0) {
        return;
    }
    const scoped_context current(*context);
    context->api().check(context->api().copy_on_device(address(to), address(from), bytes, stream), "cuMemcpyDtoDAsync");
}

void copy_rows(const shared_context& context, void* to, std::int64_t to_stride, const void* from,
               std::int64_t from_stride, std::int64_t bytes, std::int64_t rows, stream_t stream) {
    if (bytes == 0 || rows == 0) {
        return;
    }
    if (rows == 1 || (to_stride == bytes && from_stride == bytes)) {
        copy_on_device(context, to, from, static_cast<std::size_t>(bytes * rows), stream);
        return;
    }
    cu_copy_2d copy;
    copy.from = address(from);
    copy.from_pitch = static_cast<std::size_t>(from_stride);
    copy.to = address(to);
    copy.to_pitch = static_cast<std::size_t>(to_stride);
    copy.width_bytes = static_cast<std::size_t>(bytes);
    copy.height = static_cast<std::size_t>(rows);
    const scoped_context current(*context);
    context->api().check(context->api().copy_2d(&copy, stream), "cuMemcpy2DAsync");
}

void fill_bytes(const shared_context& context, void* device, unsigned char value, std::size_t bytes, stream_t stream) {
    if (bytes == 0) {
        return;
    }
    const scoped_context current(*context);
    context->api().check(context->api().fill_bytes(address(device), value, bytes, stream), "cuMemsetD8Async");
}

void synchronize(const shared_context& context, stream_t stream) {
    ensure(context);
    const scoped_context current(*context);
    context->api().check(context->api().stream_synchronize(stream), "cuStreamSynchronize");
}

gpu_module::gpu_module(const shared_context& context, std::span<const std::byte> cubin) {
    ensure(context);
    const scoped_context current(*context);
    cu_module module = nullptr;
    const cu_result result = context->api().module_load(&module, cubin.data());
    if (result != cu_success) {
        context->api().fail(
            result, "cuModuleLoadData",
            fmt::format("of a {}-byte cubin on device {} ({}, sm_{}{})", cubin.size(), context->device(),
                        context->name(), context->compute_major(), context->compute_minor()));
    }
    module_ = unique_handle<detail::module_traits>(context, module);
}

cu_function gpu_module::function(const char* lowered_name) const {
    const shared_context& context = module_.owned_by();
    ensure(context);
    const scoped_context current(*context);
    cu_function function = nullptr;
    const cu_result result = context->api().module_function(&function, module_.get(), lowered_name);
    if (result != cu_success) {
        context->api().fail(result, "cuModuleGetFunction", fmt::format("of '{}'", lowered_name));
    }
    return function;
}

}  // namespace epjit::host
