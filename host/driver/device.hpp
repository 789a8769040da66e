// SPDX-License-Identifier: Apache-2.0
// One GPU's primary context and what lives in it: memory, streams, events, modules. Shared by the exchanges,
// tools and tests. Every object keeps the context alive; destructors never throw and tolerate a driver that
// is unloading.
#pragma once

#include "host/driver/api.hpp"
#include "host/driver/unique_handle.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace epjit::host {

/// A retained primary context. Thread-safe; shared by everything made in it.
class device_context {
   public:
    /// @throws config_error when there is no such device, cuda_error.
    static std::shared_ptr<const device_context> retain(std::shared_ptr<const driver_api> api, int device);
    ~device_context();
    device_context(const device_context&) = delete;
    device_context& operator=(const device_context&) = delete;

    [[nodiscard]] const driver_api& api() const noexcept { return *api_; }
    [[nodiscard]] const std::shared_ptr<const driver_api>& shared_api() const noexcept { return api_; }
    [[nodiscard]] cu_context handle() const noexcept { return handle_; }
    [[nodiscard]] int device() const noexcept { return device_; }
    [[nodiscard]] int num_sms() const noexcept { return num_sms_; }
    [[nodiscard]] int compute_major() const noexcept { return major_; }
    [[nodiscard]] int compute_minor() const noexcept { return minor_; }
    [[nodiscard]] int max_shared_bytes() const noexcept { return max_shared_; }  ///< a block can opt in to
    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    void synchronize() const;

   private:
    explicit device_context(std::shared_ptr<const driver_api> api) noexcept : api_(std::move(api)) {}
    std::shared_ptr<const driver_api> api_;
    cu_context handle_ = nullptr;
    cu_device ordinal_ = 0;
    int device_ = 0, num_sms_ = 0, major_ = 0, minor_ = 0, max_shared_ = 0;
    std::string name_;
};
using shared_context = std::shared_ptr<const device_context>;

/// Makes a context current on this thread for its lifetime and restores the one before.
class scoped_context {
   public:
    explicit scoped_context(const device_context& context);
    ~scoped_context();
    scoped_context(const scoped_context&) = delete;
    scoped_context& operator=(const scoped_context&) = delete;

   private:
    const driver_api* api_;
};

namespace detail {
struct device_memory_traits {
    using type = cu_pointer;
    using owner = shared_context;
    static void close(const owner& o, type value) noexcept;
};
struct pinned_memory_traits {
    using type = void*;
    using owner = shared_context;
    static void close(const owner& o, type value) noexcept;
};
struct stream_traits {
    using type = stream_t;
    using owner = shared_context;
    static void close(const owner& o, type value) noexcept;
};
struct event_traits {
    using type = cu_event;
    using owner = shared_context;
    static void close(const owner& o, type value) noexcept;
};
struct module_traits {
    using type = cu_module;
    using owner = shared_context;
    static void close(const owner& o, type value) noexcept;
};
struct graph_traits {
    using type = cu_graph;
    using owner = shared_context;
    static void close(const owner& o, type value) noexcept;
};
struct graph_exec_traits {
    using type = cu_graph_exec;
    using owner = shared_context;
    static void close(const owner& o, type value) noexcept;
};
}  // namespace detail

/// Device memory, 256-byte aligned, contents undefined. Zero bytes: no memory, data() is null.
class device_buffer {
   public:
    device_buffer() noexcept = default;
    /// @throws cuda_error with the size asked for and what is free.
    device_buffer(const shared_context& context, std::size_t bytes);

    [[nodiscard]] void* data() const noexcept { return reinterpret_cast<void*>(memory_.get()); }
    template <class T>
    [[nodiscard]] T* as() const noexcept {
        return static_cast<T*>(data());
    }
    [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

   private:
    unique_handle<detail::device_memory_traits> memory_;
    std::size_t bytes_ = 0;
};

/// Page-locked host memory that the device can access (portable, mapped), zero filled.
class pinned_buffer {
   public:
    pinned_buffer() noexcept = default;
    pinned_buffer(const shared_context& context, std::size_t bytes);

    [[nodiscard]] void* data() const noexcept { return memory_.get(); }
    template <class T>
    [[nodiscard]] T* as() const noexcept {
        return static_cast<T*>(data());
    }
    /// The address kernels use.
    [[nodiscard]] void* device_data() const noexcept { return device_; }
    [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

   private:
    unique_handle<detail::pinned_memory_traits> memory_;
    void* device_ = nullptr;
    std::size_t bytes_ = 0;
};

/// A stream that does not synchronise with the default stream.
class gpu_stream {
   public:
    gpu_stream() noexcept = default;
    explicit gpu_stream(const shared_context& context);
    [[nodiscard]] stream_t get() const noexcept { return stream_.get(); }
    void synchronize() const;

   private:
    unique_handle<detail::stream_traits> stream_;
};

class gpu_event {
   public:
    gpu_event() noexcept = default;
    explicit gpu_event(const shared_context& context, bool timing = true);
    /// `in_graph`: the stream is being captured, and every replay records the event anew.
    void record(stream_t stream, bool in_graph = false) const;
    void synchronize() const;
    [[nodiscard]] bool done() const;  ///< @throws cuda_error when the work before it failed
    /// Microseconds from `start` to this event; both must be done and made with timing.
    [[nodiscard]] double us_since(const gpu_event& start) const;
    [[nodiscard]] cu_event get() const noexcept { return event_.get(); }

   private:
    unique_handle<detail::event_traits> event_;
};

/// Names the capture that the stream is in; 0: it is in none. Nothing where the driver does not say. Asks the driver
/// once.
std::optional<std::uint64_t> capture_of(const driver_api& api, stream_t stream) noexcept;

/// Work that was captured, ready to be launched any number of times. What it reads and writes must live as long.
class gpu_graph {
   public:
    gpu_graph() noexcept = default;
    void launch(stream_t stream) const;  ///< in stream order; no host work beyond the launch
    [[nodiscard]] explicit operator bool() const noexcept { return static_cast<bool>(exec_); }

   private:
    friend class stream_capture;
    unique_handle<detail::graph_exec_traits> exec_;
};

/// From construction to end(), work issued on `stream` is recorded instead of run. Destroyed without end(), for example
/// by an exception, it drops what was recorded, and the stream can be used again. `stream` is not the default stream.
/// Other threads may use the driver as they like; this thread may not wait or allocate through it.
class stream_capture {
   public:
    stream_capture(const shared_context& context, stream_t stream);
    ~stream_capture();
    stream_capture(const stream_capture&) = delete;
    stream_capture& operator=(const stream_capture&) = delete;
    /// Ends the capture and instantiates what was recorded. @throws cuda_error, for example when a call that cannot be
    /// captured has spoilt it; the stream can be used again in any case.
    gpu_graph end();

   private:
    shared_context context_;
    stream_t stream_ = nullptr;
    bool open_ = false;
};

/// True while work issued on `stream` is recorded. @throws cuda_error.
bool is_capturing(const shared_context& context, stream_t stream);

// Copies and fills, ordered on `stream`. Pageable host memory makes a copy synchronous with the host.
void copy_to_device(const shared_context& context, void* device, const void* host, std::size_t bytes, stream_t stream);
void copy_to_host(const shared_context& context, void* host, const void* device, std::size_t bytes, stream_t stream);
void copy_on_device(const shared_context& context, void* to, const void* from, std::size_t bytes, stream_t stream);
/// `rows` rows of `bytes` each, on the device; strides in bytes.
void copy_rows(const shared_context& context, void* to, std::int64_t to_stride, const void* from,
               std::int64_t from_stride, std::int64_t bytes, std::int64_t rows, stream_t stream);
void fill_bytes(const shared_context& context, void* device, unsigned char value, std::size_t bytes, stream_t stream);
void synchronize(const shared_context& context, stream_t stream);

/// A device copy of `values`; waits until it is there. For tests, tools and tables made once.
template <class T>
device_buffer to_device(const shared_context& context, std::span<const T> values) {
    device_buffer buffer(context, values.size_bytes());
    copy_to_device(context, buffer.data(), values.data(), values.size_bytes(), nullptr);
    synchronize(context, nullptr);
    return buffer;
}
/// The first `count` elements at `device`, after the work of `stream`.
template <class T>
std::vector<T> to_host(const shared_context& context, const void* device, std::size_t count,
                       stream_t stream = nullptr) {
    std::vector<T> values(count);
    copy_to_host(context, values.data(), device, count * sizeof(T), stream);
    synchronize(context, stream);
    return values;
}

/// A loaded cubin.
class gpu_module {
   public:
    gpu_module() noexcept = default;
    /// @throws cuda_error; see image_rejected() for codes that mean that the driver does not accept the
    /// cubin.
    gpu_module(const shared_context& context, std::span<const std::byte> cubin);
    /// @throws cuda_error naming the symbol.
    [[nodiscard]] cu_function function(const char* lowered_name) const;

   private:
    unique_handle<detail::module_traits> module_;
};

/// True for driver codes that say "this image is not for this driver or device".
constexpr bool image_rejected(cu_result code) noexcept {
    return code == cu_invalid_image || code == cu_no_binary_for_gpu || code == cu_unsupported_ptx_version ||
           code == cu_invalid_source || code == 218 /* invalid PTX */ || code == cu_not_found;
}

}  // namespace epjit::host
