// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static void* ordinary_allocate(size_t bytes) {
    return malloc(bytes != 0 ? bytes : 1);
}
static int ordinary_copy(void* to, const void* from, size_t bytes) {
    memcpy(to, from, bytes);
    return 1;
}

const memory* ordinary_memory(void) {
    static const memory m = {ordinary_allocate, free, ordinary_copy, ordinary_copy};
    return &m;
}

// The few entry points of libcuda.so.1 that this program needs. CUresult is an int, CUdeviceptr an unsigned long long.
typedef unsigned long long device_pointer;
static struct driver {
    int (*init)(unsigned);
    int (*device_count)(int*);
    int (*device_get)(int*, int);
    int (*context_retain)(void**, int);
    int (*context_set)(void*);
    int (*allocate)(device_pointer*, size_t);
    int (*release)(device_pointer);
    int (*copy_to_device)(device_pointer, const void*, size_t);
    int (*copy_to_host)(void*, device_pointer, size_t);
} driver;

static int load(void* library, const char* name, void* function) {
    void* const symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);  // ISO C has no cast from a data to a function pointer
    return symbol != NULL;
}

static int load_driver(void) {
    const char* path = getenv("EPJIT_CUDA_LIBRARY");
    void* const library = dlopen(path != NULL && *path != '\0' ? path : "libcuda.so.1", RTLD_NOW);
    return library != NULL && load(library, "cuInit", &driver.init) &&
           load(library, "cuDeviceGetCount", &driver.device_count) &&
           load(library, "cuDeviceGet", &driver.device_get) &&
           load(library, "cuDevicePrimaryCtxRetain", &driver.context_retain) &&
           load(library, "cuCtxSetCurrent", &driver.context_set) && load(library, "cuMemAlloc_v2", &driver.allocate) &&
           load(library, "cuMemFree_v2", &driver.release) && load(library, "cuMemcpyHtoD_v2", &driver.copy_to_device) &&
           load(library, "cuMemcpyDtoH_v2", &driver.copy_to_host);
}

static void* device_allocate(size_t bytes) {
    device_pointer p = 0;
    return driver.allocate(&p, bytes != 0 ? bytes : 1) == 0 ? (void*)(size_t)p : NULL;
}
static void device_release(void* p) {
    if (p != NULL) {
        driver.release((device_pointer)(size_t)p);
    }
}
// Both wait for the work before them: they run on the default stream, as everything in this program does.
static int device_write(void* to, const void* from, size_t bytes) {
    return bytes == 0 || driver.copy_to_device((device_pointer)(size_t)to, from, bytes) == 0;
}
static int device_read(void* to, const void* from, size_t bytes) {
    return bytes == 0 || driver.copy_to_host(to, (device_pointer)(size_t)from, bytes) == 0;
}

const memory* device_memory(int device, const char** reason) {
    static const memory m = {device_allocate, device_release, device_write, device_read};
    int count = 0, handle = 0;
    void* context = NULL;
    if (driver.copy_to_host == NULL && !load_driver()) {
        *reason = "no libcuda.so.1";
        return NULL;
    }
    if (driver.init(0) != 0 || driver.device_count(&count) != 0 || count < 1 ||
        driver.device_get(&handle, device % count) != 0) {
        *reason = "no GPU";
        return NULL;
    }
    if (driver.context_retain(&context, handle) != 0 || driver.context_set(context) != 0) {
        *reason = "the GPU's primary context cannot be had";
        return NULL;
    }
    return &m;
}
