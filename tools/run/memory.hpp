// SPDX-License-Identifier: Apache-2.0
// Where an exchange's tensors live: ordinary memory for `host`, device memory for `loopback`. The layer below is
// written once for both.
#pragma once

#include "epjit/communicator.hpp"

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace epjit::tools {

class memory_space {
   public:
    virtual ~memory_space() = default;
    /// At least 256-byte aligned, valid as long as the space; null for 0 bytes.
    virtual void* allocate(std::size_t bytes) = 0;
    /// Copies are complete when the call returns and ordered after the stream's work.
    virtual void upload(void* to, const void* from, std::size_t bytes) = 0;
    virtual void download(void* to, const void* from, std::size_t bytes) = 0;
    /// Ordered on the stream.
    virtual void fill(void* to, unsigned char value, std::size_t bytes) = 0;
    [[nodiscard]] virtual stream_t stream() const noexcept = 0;
    virtual void synchronize() = 0;
    /// Records the calls that `work` issues on the stream instead of running them; replay() runs them, each time anew.
    /// @throws unsupported_error in host memory, what `work` throws, cuda_error.
    virtual void record(const std::function<void()>& work) = 0;
    virtual void replay() = 0;
    /// Notes a moment in the stream's work; noted in record(), that of the last replay.
    virtual std::size_t mark() = 0;
    /// Microseconds between two marks, after synchronize().
    virtual double us_between(std::size_t from, std::size_t to) = 0;

    template <class T>
    T* place(std::span<const T> values) {
        auto* p = static_cast<T*>(allocate(values.size_bytes()));
        upload(p, values.data(), values.size_bytes());
        return p;
    }
    template <class T>
    std::vector<T> fetch(const T* from, std::size_t count) {
        std::vector<T> values(count);
        download(values.data(), from, count * sizeof(T));
        return values;
    }
};

/// The space of a communicator's ranks. @throws cuda_error.
std::unique_ptr<memory_space> make_memory_space(const communicator& comm);

}  // namespace epjit::tools
