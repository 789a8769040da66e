// SPDX-License-Identifier: Apache-2.0
#include "epjit/residency.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/hash.hpp"
#include "host/cpu/buffer.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/loopback/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <numeric>
#include <string>
#include <vector>

namespace epjit {
namespace {

/// The one check behind every way of making a tensor resident.
void check_residence(std::string_view name, tensor_use use, residence where, bool inout) {
    if (inout && use != tensor_use::state) {
        throw config_error(fmt::format("tensor '{}': inout was given for a tensor of use '{}'", name, epjit::name(use)),
                           "inout is for state that steps read and write; leave it out");
    }
    if (where == residence::none) {
        return;
    }
    if (use == tensor_use::output || use == tensor_use::per_step) {
        throw config_error(fmt::format("tensor '{}' of use '{}' cannot be resident ('{}')", name, epjit::name(use),
                                       epjit::name(where)),
                           "only constants, and state with inout, stay on the device; pass this one to every step");
    }
    if (use == tensor_use::state && !inout) {
        throw config_error(fmt::format("tensor '{}' is state, which steps write: resident ('{}') needs inout", name,
                                       epjit::name(where)),
                           "set inout when the device's copy is the one that counts from now on");
    }
}

}  // namespace

std::string_view name(tensor_use use) noexcept {
    switch (use) {
        case tensor_use::constant: return "constant";
        case tensor_use::per_step: return "per_step";
        case tensor_use::output: return "output";
        case tensor_use::state: return "state";
    }
    return "unknown";
}

std::string_view name(residence where) noexcept {
    switch (where) {
        case residence::none: return "none";
        case residence::replicated: return "replicated";
        case residence::stacked: return "stacked";
    }
    return "unknown";
}

tensor_spec::tensor_spec(std::string_view name, tensor_use use, epjit::residence where, bool inout) {
    if (name.empty() || name.size() >= sizeof name_) {
        throw config_error(fmt::format("a tensor's name of {} characters: '{}'", name.size(), name),
                           fmt::format("use 1 to {} characters", sizeof name_ - 1));
    }
    check_residence(name, use, where, inout);
    std::copy(name.begin(), name.end(), name_);
    use_ = use;
    where_ = where;
    inout_ = inout;
}

void tensor_spec::set_residence(epjit::residence where, bool inout) {
    check_residence(name_, use_, where, inout);
    where_ = where;
    inout_ = inout;
}

void tensor_spec::set_residence(std::string_view where, bool inout) {
    for (const epjit::residence r : {residence::none, residence::replicated, residence::stacked}) {
        if (where == epjit::name(r)) {
            set_residence(r, inout);
            return;
        }
    }
    throw config_error(fmt::format("tensor '{}': residence '{}' does not say where it lies", name_, where),
                       "use none, replicated (the whole of it on every device) or stacked (shard i on card i)");
}

void tensor_spec::set_use(tensor_use use) {
    check_residence(name_, use, where_, inout_);
    use_ = use;
}

namespace host {
namespace {

/// One copy, on a device or for the host exchange in ordinary memory.
struct resident_copy {
    workspace device;
    cpu::memory_block ordinary;
    void* data = nullptr;
    std::size_t bytes = 0;
};

struct resident_tensor {
    tensor_spec spec;
    jit::digest contents;
    std::deque<resident_copy> copies;
    std::vector<const resident_copy*> of_driven;  ///< [driven ranks]
};

jit::digest contents_of(const tensor_spec& spec, std::span<const std::byte> data,
                        std::span<const std::size_t> shard_bytes) {
    jit::field_hasher hasher;
    hasher.add(spec.use()).add(spec.where()).add(spec.inout()).add(jit::hash_bytes(data));
    for (const std::size_t bytes : shard_bytes) {
        hasher.add(bytes);
    }
    return hasher.finish();
}

}  // namespace

struct resident_state {
    std::shared_ptr<communicator_state> comm;
    memory_hooks memory;
    std::deque<resident_tensor> tensors;
    std::uint64_t uploads = 0;

    void upload(resident_copy& copy, const std::byte* from, std::size_t bytes) {
        copy.bytes = bytes;
        if (bytes == 0) {
            return;
        }
        if (comm->kind == exchange_kind::host) {
            copy.ordinary.reserve(memory, bytes);
            copy.data = copy.ordinary.data();
            std::memcpy(copy.data, from, bytes);
        } else {
            const scoped_context current(*comm->context);
            copy.device = workspace(*comm, memory, bytes);
            copy.data = copy.device.data();
            copy_to_device(comm->context, copy.data, from, bytes, nullptr);
            synchronize(comm->context, nullptr);
        }
        ++uploads;
        comm->runtime->uploads.fetch_add(1, std::memory_order_relaxed);
    }

    /// Ranks that share a device share a replicated constant; what they write is each rank's own.
    void place(resident_tensor& tensor, const std::byte* data, std::span<const std::size_t> shard_bytes) {
        std::vector<std::size_t> first(shard_bytes.size() + 1, 0);
        std::partial_sum(shard_bytes.begin(), shard_bytes.end(), first.begin() + 1);
        const bool shared = tensor.spec.where() == residence::replicated && tensor.spec.use() == tensor_use::constant;
        for (std::int32_t driven = 0; driven < comm->num_driven; ++driven) {
            if (driven == 0 || !shared) {
                const std::size_t shard = tensor.spec.where() == residence::stacked
                                              ? static_cast<std::size_t>(comm->first_driven + driven)
                                              : 0;
                upload(tensor.copies.emplace_back(), data + first[shard], shard_bytes[shard]);
            }
            tensor.of_driven.push_back(&tensor.copies.back());
        }
    }

    [[nodiscard]] const resident_tensor& tensor(int number) const {
        if (number < 0 || static_cast<std::size_t>(number) >= tensors.size()) {
            throw config_error(fmt::format("resident tensor number {}, there are {}", number, tensors.size()),
                               "pass a number that add or find returned");
        }
        return tensors[static_cast<std::size_t>(number)];
    }

    [[nodiscard]] const resident_copy& copy_of(int number, int driven) const {
        const resident_tensor& t = tensor(number);
        if (driven < 0 || static_cast<std::size_t>(driven) >= t.of_driven.size()) {
            throw config_error(fmt::format("resident tensor '{}' of driven rank {}, there are {}", t.spec.name(),
                                           driven, t.of_driven.size()),
                               "pass an index from 0 up, below communicator::num_driven()");
        }
        return *t.of_driven[static_cast<std::size_t>(driven)];
    }
};

namespace {

void check_shards(const communicator_state& comm, const tensor_spec& spec, const void* data,
                  std::span<const std::size_t> shard_bytes) {
    if (spec.where() == residence::none) {
        throw config_error(fmt::format("tensor '{}' is not resident", spec.name()),
                           "set its residence to replicated or stacked, or pass it to every step");
    }
    const std::size_t expected =
        spec.where() == residence::stacked ? static_cast<std::size_t>(comm.num_ranks) : std::size_t{1};
    if (shard_bytes.size() != expected) {
        throw config_error(fmt::format("tensor '{}' is {} and has {} shards, expected {}", spec.name(),
                                       epjit::name(spec.where()), shard_bytes.size(), expected),
                           "give one size for each rank of a stacked tensor, one for a replicated");
    }
    if (data == nullptr && std::any_of(shard_bytes.begin(), shard_bytes.end(), [](std::size_t b) { return b != 0; })) {
        throw config_error(fmt::format("tensor '{}': data is null", spec.name()), "pass its contents");
    }
}

resident_state& live(const std::unique_ptr<resident_state>& state) {
    if (state == nullptr) {
        throw config_error("the resident registry was moved from", "use the object that it was moved to");
    }
    return *state;
}

}  // namespace
}  // namespace host

resident_registry::resident_registry(communicator& comm, const memory_hooks& memory)
    : state_(std::make_unique<host::resident_state>()) {
    if (comm.num_ranks() == 0) {
        throw config_error("the communicator was moved from", "pass the communicator that it was moved to");
    }
    state_->comm = comm.state_;
    state_->memory = memory;
}
resident_registry::~resident_registry() = default;
resident_registry::resident_registry(resident_registry&&) noexcept = default;
resident_registry& resident_registry::operator=(resident_registry&&) noexcept = default;

int resident_registry::add(const tensor_spec& spec, const void* data, std::span<const std::size_t> shard_bytes) {
    host::resident_state& state = host::live(state_);
    host::check_shards(*state.comm, spec, data, shard_bytes);
    const std::size_t bytes = std::accumulate(shard_bytes.begin(), shard_bytes.end(), std::size_t{0});
    const auto* first = static_cast<const std::byte*>(data);
    const jit::digest contents = host::contents_of(spec, {first, bytes}, shard_bytes);
    if (const int known = find(spec.name()); known >= 0) {
        if (state.tensor(known).contents == contents) {
            return known;
        }
        throw config_error(
            fmt::format("resident tensor '{}' is there already with another content, use or residence", spec.name()),
            "give it another name, or make a new registry when the model changes");
    }
    host::resident_tensor tensor{spec, contents, {}, {}};
    state.place(tensor, first, shard_bytes);
    state.tensors.push_back(std::move(tensor));
    return static_cast<int>(state.tensors.size()) - 1;
}

int resident_registry::find(std::string_view name) const noexcept {
    if (state_ != nullptr) {
        for (std::size_t i = 0; i < state_->tensors.size(); ++i) {
            if (state_->tensors[i].spec.name() == name) {
                return static_cast<int>(i);
            }
        }
    }
    return -1;
}

const void* resident_registry::get(int number, int driven) const {
    return host::live(state_).copy_of(number, driven).data;
}

void* resident_registry::get_inout(int number, int driven) {
    host::resident_state& state = host::live(state_);
    const tensor_spec& spec = state.tensor(number).spec;
    if (!spec.inout()) {
        throw config_error(
            fmt::format("resident tensor '{}' of use '{}' cannot be written", spec.name(), epjit::name(spec.use())),
            "add it as state with inout");
    }
    return state.copy_of(number, driven).data;
}

std::size_t resident_registry::bytes(int number, int driven) const {
    return host::live(state_).copy_of(number, driven).bytes;
}

std::uint64_t resident_registry::uploads() const noexcept {
    return state_ != nullptr ? state_->uploads : 0;
}

}  // namespace epjit
