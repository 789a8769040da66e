// SPDX-License-Identifier: Apache-2.0
// Where an engine keeps its tensors: the library never allocates them. Ordinary memory for the host exchange, a GPU's
// for all others, here through the driver, which is opened at run time as the library itself does.
#ifndef EMBED_C_MEMORY_H
#define EMBED_C_MEMORY_H

#include <stddef.h>

typedef struct memory {
    void* (*allocate)(size_t bytes);                         ///< null on failure
    void (*release)(void* pointer);                          ///< null is fine
    int (*write)(void* to, const void* from, size_t bytes);  ///< from ordinary memory; non-zero on success
    int (*read)(void* to, const void* from, size_t bytes);   ///< to ordinary memory, after all work before it
} memory;

const memory* ordinary_memory(void);
/// Memory of GPU `device` mod GPUs, whose primary context becomes current to this thread. Null without one: *reason
/// says why. epjit_communicator_from_launcher takes the same GPU for a local rank.
const memory* device_memory(int device, const char** reason);

#endif
