// SPDX-License-Identifier: Apache-2.0
// Tensors that stay on the device that uses them: placement tables, expert weights, scales. Each shard is uploaded
// once, when it is added, and every later step reads it where it lies; `counters::uploads` shows it.
#pragma once

#include "epjit/communicator.hpp"
#include "epjit/exchange.hpp"
#include "epjit/export.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace epjit {

/// What a step does with a tensor.
enum class tensor_use : std::uint8_t {
    constant,  ///< reads it, the same in every step: tables, weights, scales
    per_step,  ///< reads it, new in every step: ids, activations, slot maps. Never resident
    output,    ///< writes it. Never resident
    state,     ///< reads and writes it and keeps it between steps: resident only when `inout` says so
};

/// Where a tensor lies between steps.
enum class residence : std::uint8_t {
    none,        ///< the caller brings it to every step
    replicated,  ///< the whole of it on every device that uses it
    stacked,     ///< shard i on the card of rank i
};

/// The names used in messages: "constant", "per_step", ..., "none", "replicated", "stacked".
EPJIT_API std::string_view name(tensor_use) noexcept;
EPJIT_API std::string_view name(residence) noexcept;

/// How a tensor is used and where it lies. No way of setting one of them leaves an output or a per-step tensor
/// resident: the constructor and every setter make the same check, and a spec that failed it is as it was before.
class EPJIT_API tensor_spec {
   public:
    /// `name`: 1 to 63 characters. `inout` is for `state` only.
    /// @throws config_error naming the tensor when use, residence and inout contradict each other.
    tensor_spec(std::string_view name, tensor_use use, epjit::residence where = residence::none, bool inout = false);

    /// @throws config_error as the constructor.
    void set_residence(epjit::residence where, bool inout = false);
    /// From a configuration's text: "none", "replicated" or "stacked". Anything else is refused, "true" too: it does
    /// not say where shards go. @throws config_error.
    void set_residence(std::string_view where, bool inout = false);
    /// @throws config_error as the constructor, for example for the output that a resident tensor becomes.
    void set_use(tensor_use use);

    [[nodiscard]] std::string_view name() const noexcept { return name_; }
    [[nodiscard]] tensor_use use() const noexcept { return use_; }
    [[nodiscard]] epjit::residence where() const noexcept { return where_; }
    [[nodiscard]] bool inout() const noexcept { return inout_; }

   private:
    char name_[64] = {};
    tensor_use use_ = tensor_use::constant;
    epjit::residence where_ = residence::none;
    bool inout_ = false;
};

namespace host {
struct resident_state;
}

/// The resident tensors of a communicator's driven ranks. Pointers stay valid as long as the registry. Used by one
/// thread at a time.
class EPJIT_API resident_registry {
   public:
    /// @throws config_error when the communicator was moved from.
    explicit resident_registry(communicator& comm, const memory_hooks& memory = {});
    ~resident_registry();
    resident_registry(resident_registry&&) noexcept;
    resident_registry& operator=(resident_registry&&) noexcept;

    /// Uploads what the driven ranks need of `data` (ordinary memory, not used after the call) and waits until it is
    /// there. `shard_bytes`: replicated: one number; stacked: one for each rank of the communicator, 0 allowed, the
    /// shards lying one behind the other in `data`. Adding the same tensor again uploads nothing and returns its
    /// number.
    /// @throws config_error: not resident, a wrong number of shards, or a name that is there with another content;
    /// cuda_error.
    int add(const tensor_spec& spec, const void* data, std::span<const std::size_t> shard_bytes);

    /// The number of a tensor, -1 when there is none of that name.
    [[nodiscard]] int find(std::string_view name) const noexcept;
    /// What driven rank `driven` reads: its shard, or the copy on its device; null for an empty one. No string work.
    /// @throws config_error when there is no such number or rank.
    [[nodiscard]] const void* get(int number, int driven) const;
    /// The same for writing. @throws config_error also unless it was added as `state` with `inout`.
    [[nodiscard]] void* get_inout(int number, int driven);
    [[nodiscard]] std::size_t bytes(int number, int driven) const;

    /// Copies made since the registry exists; all of them in `add`.
    [[nodiscard]] std::uint64_t uploads() const noexcept;

   private:
    std::unique_ptr<host::resident_state> state_;
};

}  // namespace epjit
