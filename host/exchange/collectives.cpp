// SPDX-License-Identifier: Apache-2.0
#include "epjit/collectives.hpp"

#include "epjit/error.hpp"
#include "host/cpu/convert.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/nccl/communicator.hpp"

#include <fmt/format.h>

#include <cstring>
#include <limits>
#include <vector>

namespace epjit {
namespace {

using host::communicator_state;
using host::nccl_type;

const std::byte* bytes_at(const void* pointer) noexcept {
    return static_cast<const std::byte*>(pointer);
}
std::byte* bytes_at(void* pointer) noexcept {
    return static_cast<std::byte*>(pointer);
}

nccl_type type_of(dtype type) noexcept {
    switch (type) {
        case dtype::bf16: return nccl_type::bf16;
        case dtype::fp16: return nccl_type::f16;
        case dtype::f32: return nccl_type::f32;
        case dtype::fp8_e4m3: break;
    }
    return nccl_type::uint8;
}

communicator_state& usable(communicator& comm, std::span<const collective_args> ranks, const char* call) {
    if (!comm) {
        throw config_error(fmt::format("{} on an empty communicator", call), "pass one that was made");
    }
    communicator_state& state = comm.state();
    if (state.kind == exchange_kind::loopback) {
        throw unsupported_error(fmt::format("{} on a loopback communicator, whose ranks share one GPU", call),
                                "use a communicator of real ranks or communicator::host");
    }
    if (ranks.size() != static_cast<std::size_t>(state.num_driven)) {
        throw config_error(
            fmt::format("{} got {} arguments, this communicator drives {} ranks", call, ranks.size(), state.num_driven),
            "pass one collective_args per driven rank");
    }
    return state;
}

/// Where each rank's part begins, in elements, closed by the total.
std::vector<std::int64_t> offsets_of(const communicator_state& state, std::span<const std::int64_t> counts, dtype type,
                                     const char* call) {
    if (counts.size() != static_cast<std::size_t>(state.num_ranks)) {
        throw config_error(fmt::format("{} got {} counts for {} ranks", call, counts.size(), state.num_ranks),
                           "pass one count per rank");
    }
    const std::int64_t most = std::numeric_limits<std::int64_t>::max() / size_of(type);
    std::vector<std::int64_t> offsets(counts.size() + 1);
    for (std::size_t r = 0; r < counts.size(); ++r) {
        if (counts[r] < 0 || counts[r] > most - offsets[r]) {
            throw config_error(fmt::format("{} got count {} for rank {}", call, counts[r], r),
                               "counts are not negative, and their bytes fit in memory");
        }
        offsets[r + 1] = offsets[r] + counts[r];
    }
    return offsets;
}

/// `small` lies at `offset` in `large`, or outside of it.
void check_memory(const char* call, int rank, const void* small, std::int64_t small_bytes, const void* large,
                  std::int64_t large_bytes, std::int64_t offset) {
    if ((small == nullptr && small_bytes > 0) || (large == nullptr && large_bytes > 0)) {
        throw config_error(fmt::format("{}: rank {} passed a null pointer for {} bytes", call, rank,
                                       small == nullptr && small_bytes > 0 ? small_bytes : large_bytes),
                           "pass memory, or count 0");
    }
    const auto s = reinterpret_cast<std::uintptr_t>(small), l = reinterpret_cast<std::uintptr_t>(large);
    const auto s_end = s + static_cast<std::uintptr_t>(small_bytes),
               l_end = l + static_cast<std::uintptr_t>(large_bytes);
    const bool apart = small_bytes == 0 || large_bytes == 0 || s_end <= l || l_end <= s;
    if (!apart && s != l + static_cast<std::uintptr_t>(offset)) {
        throw config_error(fmt::format("{}: send and receive of rank {} overlap without being in place", call, rank),
                           fmt::format("keep them apart, or let the part lie at byte {} of the whole", offset));
    }
}

template <class Element>
void sum_part(std::span<const collective_args> ranks, void* receive, std::int64_t first, std::int64_t count) {
    using storage = typename Element::storage;
    auto* out = static_cast<storage*>(receive);
    for (std::int64_t i = 0; i < count; ++i) {
        float sum = 0;
        for (const collective_args& r : ranks) {
            sum += Element::load(static_cast<const storage*>(r.send)[first + i]);
        }
        out[i] = Element::store(sum);
    }
}

void sum_part(dtype type, std::span<const collective_args> ranks, void* receive, std::int64_t first,
              std::int64_t count) {
    switch (type) {
        case dtype::bf16: return sum_part<host::cpu::bf16_element>(ranks, receive, first, count);
        case dtype::fp16: return sum_part<host::cpu::fp16_element>(ranks, receive, first, count);
        default: return sum_part<host::cpu::f32_element>(ranks, receive, first, count);
    }
}

}  // namespace

void all_gather_v(communicator& comm, std::span<const collective_args> ranks, std::span<const std::int64_t> counts,
                  dtype type, stream_t stream) {
    const char* call = "all_gather_v";
    communicator_state& state = usable(comm, ranks, call);
    const std::vector<std::int64_t> at = offsets_of(state, counts, type, call);
    const std::int64_t size = size_of(type);
    for (int d = 0; d < state.num_driven; ++d) {
        const int r = state.first_driven + d;
        check_memory(call, r, ranks[d].send, counts[r] * size, ranks[d].receive, at.back() * size, at[r] * size);
    }
    if (state.nccl == nullptr) {
        for (const collective_args& to : ranks) {
            for (int r = 0; r < state.num_ranks; ++r) {
                if (counts[r] > 0) {
                    std::memmove(bytes_at(to.receive) + at[r] * size, ranks[r].send,
                                 static_cast<std::size_t>(counts[r] * size));
                }
            }
        }
        return;
    }
    host::nccl_communicator& nccl = *state.nccl;
    nccl.group(call, [&] {
        host::nccl_result result = host::nccl_success;
        for (int r = 0; r < state.num_ranks && result == host::nccl_success; ++r) {
            if (counts[r] == 0) {
                continue;
            }
            std::byte* const receive = bytes_at(ranks[0].receive) + at[r] * size;
            const void* send = r == nccl.rank() ? ranks[0].send : receive;  // read on the root only
            result = nccl.api().broadcast(send, receive, static_cast<std::size_t>(counts[r] * size), nccl_type::uint8,
                                          r, nccl.handle(), stream);
        }
        return result;
    });
    nccl.watch(call, stream);
}

void reduce_scatter_v(communicator& comm, std::span<const collective_args> ranks, std::span<const std::int64_t> counts,
                      dtype type, stream_t stream) {
    const char* call = "reduce_scatter_v";
    communicator_state& state = usable(comm, ranks, call);
    if (type == dtype::fp8_e4m3) {
        throw unsupported_error("reduce_scatter_v of fp8_e4m3", "sum bf16, fp16 or f32");
    }
    const std::vector<std::int64_t> at = offsets_of(state, counts, type, call);
    const std::int64_t size = size_of(type);
    for (int d = 0; d < state.num_driven; ++d) {
        const int r = state.first_driven + d;
        check_memory(call, r, ranks[d].receive, counts[r] * size, ranks[d].send, at.back() * size, at[r] * size);
    }
    if (state.nccl == nullptr) {
        for (int r = 0; r < state.num_ranks; ++r) {
            sum_part(type, ranks, ranks[r].receive, at[r], counts[r]);
        }
        return;
    }
    host::nccl_communicator& nccl = *state.nccl;
    nccl.group(call, [&] {
        host::nccl_result result = host::nccl_success;
        for (int r = 0; r < state.num_ranks && result == host::nccl_success; ++r) {
            if (counts[r] > 0) {
                // `receive` is written on the root only.
                result = nccl.api().reduce(bytes_at(ranks[0].send) + at[r] * size, ranks[0].receive,
                                           static_cast<std::size_t>(counts[r]), type_of(type),
                                           host::nccl_reduction::sum, r, nccl.handle(), stream);
            }
        }
        return result;
    });
    nccl.watch(call, stream);
}

void broadcast(communicator& comm, std::span<const collective_args> ranks, std::int64_t count, int root, dtype type,
               stream_t stream) {
    const char* call = "broadcast";
    communicator_state& state = usable(comm, ranks, call);
    if (root < 0 || root >= state.num_ranks) {
        throw config_error(fmt::format("broadcast from rank {} of {}", root, state.num_ranks),
                           "pass a rank of the communicator");
    }
    const std::int64_t size = size_of(type);
    if (count < 0 || count > std::numeric_limits<std::int64_t>::max() / size) {
        throw config_error(fmt::format("broadcast of {} elements", count), "counts are not negative");
    }
    const std::int64_t bytes = count * size;
    for (int d = 0; d < state.num_driven; ++d) {
        const bool sends = state.first_driven + d == root;
        check_memory(call, state.first_driven + d, sends ? ranks[d].send : nullptr, sends ? bytes : 0, ranks[d].receive,
                     bytes, 0);
    }
    if (bytes == 0) {
        return;
    }
    if (state.nccl == nullptr) {
        for (const collective_args& to : ranks) {
            std::memmove(to.receive, ranks[root].send, static_cast<std::size_t>(bytes));
        }
        return;
    }
    host::nccl_communicator& nccl = *state.nccl;
    nccl.group(call, [&] {
        const void* send = nccl.rank() == root ? ranks[0].send : ranks[0].receive;
        return nccl.api().broadcast(send, ranks[0].receive, static_cast<std::size_t>(bytes), nccl_type::uint8, root,
                                    nccl.handle(), stream);
    });
    nccl.watch(call, stream);
}

}  // namespace epjit
