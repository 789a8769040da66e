// SPDX-License-Identifier: Apache-2.0
#include "epjit/communicator.hpp"

#include "epjit/epjit.h"
#include "host/c/guard.hpp"
#include "host/c/handles.hpp"
#include "host/c/structs.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

using namespace epjit::host::c;

namespace {

/// Makes a communicator from the runtime's object with `make` and gives its handle to the caller.
template <class Make>
epjit_status make_communicator(epjit_runtime* runtime, epjit_communicator** out, Make make) noexcept {
    return guarded([&] {
        not_null(out, "out") = nullptr;
        not_null(runtime, "runtime");
        epjit::communicator made = make(runtime->object);
        if (made) {
            *out = new epjit_communicator{runtime->log, std::move(made)};
        }
    });
}

}  // namespace

epjit_status epjit_communicator_host(epjit_runtime* runtime, int32_t ranks, epjit_communicator** out) {
    return make_communicator(runtime, out, [&](epjit::runtime& rt) { return epjit::communicator::host(rt, ranks); });
}

epjit_status epjit_communicator_loopback(epjit_runtime* runtime, int32_t ranks, int32_t device,
                                         epjit_communicator** out) {
    return make_communicator(runtime, out,
                             [&](epjit::runtime& rt) { return epjit::communicator::loopback(rt, ranks, device); });
}

epjit_status epjit_communicator_unique_id(epjit_runtime* runtime, void* unique_id) {
    return guarded([&] {
        epjit::runtime& rt = not_null(runtime, "runtime").object;
        auto* bytes = &not_null(static_cast<std::byte*>(unique_id), "unique_id");
        epjit::communicator::unique_id(rt, std::span<std::byte, 128>(bytes, 128));
    });
}

epjit_status epjit_communicator_from_nccl(epjit_runtime* runtime, epjit_nccl_comm borrowed, int32_t device,
                                          const int32_t* ranks, uint32_t num_ranks, epjit_communicator** out) {
    return make_communicator(runtime, out, [&](epjit::runtime& rt) {
        if (borrowed == nullptr) {
            fail_null("borrowed");
        }
        if (num_ranks > 0) {
            not_null(ranks, "ranks");
        }
        static_assert(sizeof(int) == sizeof(int32_t));
        return epjit::communicator::from_nccl(rt, borrowed, device, std::span<const int>(ranks, num_ranks));
    });
}

epjit_status epjit_communicator_from_unique_id(epjit_runtime* runtime, const void* unique_id, int32_t rank,
                                               int32_t ranks, int32_t device, epjit_communicator** out) {
    return make_communicator(runtime, out, [&](epjit::runtime& rt) {
        const auto* bytes = &not_null(static_cast<const std::byte*>(unique_id), "unique_id");
        return epjit::communicator::from_unique_id(rt, std::span<const std::byte, 128>(bytes, 128), rank, ranks,
                                                   device);
    });
}

epjit_status epjit_communicator_from_launcher(epjit_runtime* runtime, epjit_communicator** out) {
    return make_communicator(runtime, out, [](epjit::runtime& rt) { return epjit::communicator::from_launcher(rt); });
}

epjit_status epjit_communicator_local(epjit_runtime* runtime, const int32_t* devices, uint32_t num_ranks,
                                      epjit_communicator** out) {
    return guarded([&] {
        if (num_ranks > 0) {
            std::fill_n(&not_null(out, "out"), num_ranks, nullptr);
            not_null(devices, "devices");
        }
        epjit::runtime& rt = not_null(runtime, "runtime").object;
        std::vector<epjit::communicator> made(num_ranks);
        epjit::communicator::local(rt, std::span<const int>(devices, num_ranks), made);
        std::vector<std::unique_ptr<epjit_communicator>> handles;
        for (epjit::communicator& c : made) {
            handles.push_back(std::make_unique<epjit_communicator>(epjit_communicator{runtime->log, std::move(c)}));
        }
        for (std::size_t i = 0; i < handles.size(); ++i) {
            out[i] = handles[i].release();
        }
    });
}

void epjit_communicator_destroy(epjit_communicator* communicator) {
    delete communicator;
}

epjit_status epjit_communicator_get_info(const epjit_communicator* communicator, epjit_communicator_info* out) {
    return guarded([&] {
        const epjit::communicator& c = not_null(communicator, "communicator").object;
        epjit_communicator_info info{};
        info.num_ranks = c.num_ranks();
        info.num_driven = c.num_driven();
        info.first_driven = c.first_driven();
        info.kind = static_cast<epjit_exchange_kind>(c.kind());
        write_struct(out, info);
    });
}
