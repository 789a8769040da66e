// SPDX-License-Identifier: Apache-2.0
// The C interface's part for an engine's own steps: tensors that stay on the device that uses them, and whether the
// steps can be captured and replayed. Included by <epjit/epjit.h>, whose first lines hold here too.
#ifndef EPJIT_EPJIT_RESIDENT_H
#define EPJIT_EPJIT_RESIDENT_H

#include "epjit/epjit.h"

#ifdef __cplusplus
extern "C" {
#endif

/// What a step does with a tensor. CONSTANT: reads it, the same in every step; PER_STEP: reads it, new in every step;
/// OUTPUT: writes it; STATE: reads, writes and keeps it between steps. PER_STEP and OUTPUT are never resident.
typedef int32_t epjit_tensor_use;
enum { EPJIT_USE_CONSTANT = 0, EPJIT_USE_PER_STEP = 1, EPJIT_USE_OUTPUT = 2, EPJIT_USE_STATE = 3 };

/// Where a tensor lies between steps. REPLICATED: the whole of it on every device that uses it; STACKED: shard i on the
/// card of rank i.
typedef int32_t epjit_residence;
enum { EPJIT_RESIDENCE_NONE = 0, EPJIT_RESIDENCE_REPLICATED = 1, EPJIT_RESIDENCE_STACKED = 2 };

typedef struct epjit_tensor_spec {
    uint32_t struct_size;
    epjit_tensor_use use;
    const char* name;  ///< 1 to 63 characters
    epjit_residence residence;
    int32_t inout;  ///< non-zero: of STATE only, may be written where it lies
} epjit_tensor_spec;

/// The resident tensors of a communicator's driven ranks. Used by one thread at a time.
typedef struct epjit_resident_registry epjit_resident_registry;

/// Null memory: the library allocates.
EPJIT_API epjit_status epjit_resident_registry_create(epjit_communicator* communicator,
                                                      const epjit_memory_hooks* memory, epjit_resident_registry** out);
EPJIT_API void epjit_resident_registry_destroy(epjit_resident_registry* registry);
/// Uploads what the driven ranks need of `data` (ordinary memory, not used after the call) and waits until it is there.
/// `shard_bytes`: replicated: one number; stacked: one for each rank, 0 allowed, the shards one behind the other in
/// `data`. The same tensor again uploads nothing and gives its number. EPJIT_ERROR_CONFIG: not resident, a wrong number
/// of shards, or a name that is there with another content.
EPJIT_API epjit_status epjit_resident_registry_add(epjit_resident_registry* registry, const epjit_tensor_spec* spec,
                                                   const void* data, const size_t* shard_bytes, uint32_t num_shards,
                                                   int32_t* number);
/// The number of a tensor, -1 when there is none of that name.
EPJIT_API epjit_status epjit_resident_registry_find(const epjit_resident_registry* registry, const char* name,
                                                    int32_t* number);
/// What driven rank `driven` reads, and its bytes; null and 0 for an empty shard. Valid as long as the registry.
EPJIT_API epjit_status epjit_resident_registry_get(const epjit_resident_registry* registry, int32_t number,
                                                   int32_t driven, const void** data, size_t* bytes);
/// The same for writing. EPJIT_ERROR_CONFIG also unless it was added as STATE with inout.
EPJIT_API epjit_status epjit_resident_registry_get_inout(epjit_resident_registry* registry, int32_t number,
                                                         int32_t driven, void** data, size_t* bytes);
/// Copies made since the registry exists; all of them in epjit_resident_registry_add.
EPJIT_API epjit_status epjit_resident_registry_uploads(const epjit_resident_registry* registry, uint64_t* uploads);

/// How far a proof of readiness came.
typedef int32_t epjit_readiness_stage;
enum {
    EPJIT_READINESS_NONE = 0,
    EPJIT_READINESS_PREPARE = 1,      ///< compiling, loading, one eager step
    EPJIT_READINESS_CAPTURE = 2,      ///< plan, dispatch and combine recorded
    EPJIT_READINESS_INSTANTIATE = 3,  ///< made executable
    EPJIT_READINESS_REPLAY = 4,       ///< launched twice, with new data each time
    EPJIT_READINESS_VERIFY = 5,       ///< every replay's rows and sums equal the host exchange's
};

/// Members are zero or not.
typedef struct epjit_readiness {
    uint32_t struct_size;
    int32_t ready;  ///< nothing short of all four
    int32_t captured;
    int32_t instantiated;
    int32_t replayed;
    int32_t verified;
    epjit_readiness_stage failed_at;  ///< later stages were not tried
    int32_t reserved;
} epjit_readiness;

/// Called once for each thing that stands in the way: a stable id ("replay_not_seen"), the part concerned, and why.
/// Strings are valid during the call.
typedef void (*epjit_blocker_visitor)(void* user, const char* id, const char* where, const char* why);

/// Tries on `exchange` whether its static steps can be captured in a CUDA graph and replayed, with a few tokens of
/// drawn data, on a stream of its own and lane 0, which must be idle. Collective. What fails is in *out and told to
/// `visitor` (null: to nobody); the call itself is then EPJIT_OK.
EPJIT_API epjit_status epjit_prove_readiness(epjit_exchange* exchange, epjit_blocker_visitor visitor, void* user,
                                             epjit_readiness* out);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // EPJIT_EPJIT_RESIDENT_H
