// SPDX-License-Identifier: Apache-2.0
// Resident tensors and readiness in C.
#include "epjit/epjit_resident.h"
#include "epjit/readiness.hpp"
#include "epjit/residency.hpp"
#include "host/c/enumerations.hpp"
#include "host/c/guard.hpp"
#include "host/c/handles.hpp"
#include "host/c/structs.hpp"

#include <string>

namespace epjit::host::c {
EPJIT_STRUCT(epjit_tensor_spec, 24);
EPJIT_STRUCT(epjit_readiness, 32);
}  // namespace epjit::host::c

struct epjit_resident_registry {
    std::shared_ptr<const epjit::host::c::log_target> log;
    epjit::resident_registry object;
};

using namespace epjit::host::c;

namespace {

epjit_readiness to_c(const epjit::readiness& r) {
    epjit_readiness c{};
    c.ready = r.ready() ? 1 : 0;
    c.captured = r.captured ? 1 : 0;
    c.instantiated = r.instantiated ? 1 : 0;
    c.replayed = r.replayed ? 1 : 0;
    c.verified = r.verified ? 1 : 0;
    c.failed_at = static_cast<epjit_readiness_stage>(r.failed_at);
    return c;
}

}  // namespace

epjit_status epjit_resident_registry_create(epjit_communicator* communicator, const epjit_memory_hooks* memory,
                                            epjit_resident_registry** out) {
    return guarded([&] {
        not_null(out, "out") = nullptr;
        epjit::memory_hooks hooks;
        if (memory != nullptr) {
            hooks = {memory->allocate, memory->release, memory->user};
        }
        epjit::communicator& c = not_null(communicator, "communicator").object;
        *out = new epjit_resident_registry{communicator->log, epjit::resident_registry(c, hooks)};
    });
}

void epjit_resident_registry_destroy(epjit_resident_registry* registry) {
    delete registry;
}

epjit_status epjit_resident_registry_add(epjit_resident_registry* registry, const epjit_tensor_spec* spec,
                                         const void* data, const size_t* shard_bytes, uint32_t num_shards,
                                         int32_t* number) {
    return guarded([&] {
        epjit::resident_registry& r = not_null(registry, "registry").object;
        const epjit_tensor_spec s = read_struct(spec, epjit_tensor_spec{});
        const epjit::tensor_spec made(&not_null(s.name, "epjit_tensor_spec::name"),
                                      enumerator<epjit::tensor_use>(s.use, "epjit_tensor_spec::use"),
                                      enumerator<epjit::residence>(s.residence, "epjit_tensor_spec::residence"),
                                      s.inout != 0);
        int32_t& to = not_null(number, "number");
        if (num_shards > 0) {
            not_null(shard_bytes, "shard_bytes");
        }
        to = r.add(made, data, {shard_bytes, num_shards});
    });
}

epjit_status epjit_resident_registry_find(const epjit_resident_registry* registry, const char* name, int32_t* number) {
    return guarded([&] {
        const epjit::resident_registry& r = not_null(registry, "registry").object;
        not_null(number, "number") = r.find(&not_null(name, "name"));
    });
}

epjit_status epjit_resident_registry_get(const epjit_resident_registry* registry, int32_t number, int32_t driven,
                                         const void** data, size_t* bytes) {
    return guarded([&] {
        const epjit::resident_registry& r = not_null(registry, "registry").object;
        not_null(bytes, "bytes") = r.bytes(number, driven);
        not_null(data, "data") = r.get(number, driven);
    });
}

epjit_status epjit_resident_registry_get_inout(epjit_resident_registry* registry, int32_t number, int32_t driven,
                                               void** data, size_t* bytes) {
    return guarded([&] {
        epjit::resident_registry& r = not_null(registry, "registry").object;
        not_null(bytes, "bytes") = r.bytes(number, driven);
        not_null(data, "data") = r.get_inout(number, driven);
    });
}

epjit_status epjit_resident_registry_uploads(const epjit_resident_registry* registry, uint64_t* uploads) {
    return guarded([&] { not_null(uploads, "uploads") = not_null(registry, "registry").object.uploads(); });
}

epjit_status epjit_prove_readiness(epjit_exchange* exchange, epjit_blocker_visitor visitor, void* user,
                                   epjit_readiness* out) {
    struct visit {
        epjit_blocker_visitor visitor;
        void* user;
    };
    return guarded([&] {
        not_null(out, "epjit_readiness");
        epjit::exchange& e = not_null(exchange, "exchange").object;
        visit v{visitor, user};
        const epjit::blocker_visitor tell = [](void* given, std::string_view id, std::string_view where,
                                               std::string_view why) {
            const auto& to = *static_cast<const visit*>(given);
            to.visitor(to.user, std::string(id).c_str(), std::string(where).c_str(), std::string(why).c_str());
        };
        write_struct(out, to_c(epjit::prove_readiness(e, visitor != nullptr ? tell : nullptr, &v)));
    });
}
