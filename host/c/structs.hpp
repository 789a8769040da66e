// SPDX-License-Identifier: Apache-2.0
// Structs that grow at their end: how one of another version is read and written. A struct's first member is
// struct_size, the size it has for the caller.
#pragma once

#include "epjit/epjit.h"
#include "host/c/guard.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <type_traits>

namespace epjit::host::c {

/// Name and size of a struct in the first version of the interface, which no caller can be older than.
template <class T>
struct struct_traits;

#define EPJIT_STRUCT(type, first_version_bytes)                                                         \
    template <>                                                                                         \
    struct struct_traits<type> {                                                                        \
        static constexpr const char* name = #type;                                                      \
        static constexpr std::size_t first_bytes = first_version_bytes;                                 \
        static_assert(std::is_trivially_copyable_v<type> && std::is_standard_layout_v<type>);           \
        static_assert(offsetof(type, struct_size) == 0 && sizeof(type::struct_size) == 4);              \
        static_assert(sizeof(type) >= first_bytes && first_bytes % alignof(type) == 0, "structs grow"); \
    }

EPJIT_STRUCT(epjit_error, 64);
EPJIT_STRUCT(epjit_runtime_options, 136);
EPJIT_STRUCT(epjit_counters, 72);
EPJIT_STRUCT(epjit_communicator_info, 24);
EPJIT_STRUCT(epjit_exchange_config, 120);
EPJIT_STRUCT(epjit_exchange_info, 16);
EPJIT_STRUCT(epjit_plan_options, 32);
EPJIT_STRUCT(epjit_plan_args, 24);
EPJIT_STRUCT(epjit_plan_view, 48);
EPJIT_STRUCT(epjit_plan_status, 40);
EPJIT_STRUCT(epjit_dispatch_args, 160);
EPJIT_STRUCT(epjit_dispatch_options, 24);
EPJIT_STRUCT(epjit_combine_args, 128);
EPJIT_STRUCT(epjit_combine_options, 16);
EPJIT_STRUCT(epjit_weight_gradient_args, 136);
EPJIT_STRUCT(epjit_model_shape, 96);
// Parts of the above: they never change.
static_assert(sizeof(epjit_tensor) == 56 && sizeof(epjit_placement) == 24 && sizeof(epjit_memory_hooks) == 24);

/// @throws config_error that names the struct: `given` is not a size that a version up to this one has.
void check_struct_size(const char* name, std::size_t given, std::size_t first, std::size_t known,
                       std::size_t alignment);

/// The caller's struct as this version has it; what it lacks comes from `defaults`. @throws config_error.
template <class T>
T read_struct(const void* given, const T& defaults) {
    using traits = struct_traits<T>;
    std::uint32_t bytes = 0;
    std::memcpy(&bytes, &not_null(static_cast<const std::byte*>(given), traits::name), sizeof bytes);
    check_struct_size(traits::name, bytes, traits::first_bytes, sizeof(T), alignof(T));
    T full = defaults;
    std::memcpy(&full, given, bytes);
    full.struct_size = sizeof(T);
    return full;
}

/// Fills the caller's struct as far as it goes. @throws config_error.
template <class T>
void write_struct(T* out, T full) {
    using traits = struct_traits<T>;
    const std::uint32_t bytes = not_null(out, traits::name).struct_size;
    check_struct_size(traits::name, bytes, traits::first_bytes, sizeof(T), alignof(T));
    full.struct_size = bytes;
    std::memcpy(static_cast<void*>(out), &full, bytes);
}

/// What the _init functions do. @throws config_error.
template <class T>
void init_struct(T* out, std::size_t bytes, T defaults) {
    using traits = struct_traits<T>;
    not_null(out, traits::name);
    check_struct_size(traits::name, bytes, traits::first_bytes, sizeof(T), alignof(T));
    defaults.struct_size = static_cast<std::uint32_t>(bytes);
    std::memcpy(static_cast<void*>(out), &defaults, bytes);
}

/// @throws config_error: more elements than a communicator can drive, null elements, or elements of different sizes.
void check_element_count(const char* name, const void* elements, std::uint32_t count, std::size_t limit);
void check_element_size(const char* name, std::uint32_t index, std::size_t size, std::size_t first_size);

inline constexpr std::size_t max_elements = 64;  ///< ranks that a communicator can drive

/// An array of argument structs, one per driven rank, as the C++ interface takes them; on the stack, as the hot path
/// allocates nothing.
template <class Target>
class converted {
   public:
    /// The elements lie struct_size apart, as the caller's compiler laid them. @throws config_error.
    template <class Source, class Convert>
    converted(const Source* elements, std::uint32_t count, Convert convert) : count_(count) {
        using traits = struct_traits<Source>;
        check_element_count(traits::name, elements, count, max_elements);
        const auto* at = reinterpret_cast<const std::byte*>(elements);
        const std::size_t stride = count > 0 ? elements->struct_size : 0;
        for (std::uint32_t i = 0; i < count; ++i, at += stride) {
            std::uint32_t bytes = 0;
            std::memcpy(&bytes, at, sizeof bytes);
            check_element_size(traits::name, i, bytes, stride);
            new (storage_ + i * sizeof(Target)) Target(convert(read_struct<Source>(at, Source{})));
        }
    }
    converted(const converted&) = delete;
    converted& operator=(const converted&) = delete;

    [[nodiscard]] std::span<const Target> span() const noexcept {
        return {std::launder(reinterpret_cast<const Target*>(storage_)), count_};
    }

   private:
    static_assert(std::is_trivially_copyable_v<Target> && std::is_trivially_destructible_v<Target>);
    alignas(Target) std::byte storage_[max_elements * sizeof(Target)];
    std::size_t count_;
};

}  // namespace epjit::host::c
