#include "shim.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct trivium_nvrtc {
    const char *(*error)(int);
    int (*version)(int *, int *);
    int (*create)(void **, const char *, const char *, int, const char *const *, const char *const *);
    int (*destroy)(void **);
    int (*compile)(void *, int, const char *const *);
    int (*log_size)(void *, size_t *);
    int (*log)(void *, char *);
    int (*cubin_size)(void *, size_t *);
    int (*cubin)(void *, char *);
};

typedef struct { char bytes[64]; } ipc_handle;

struct trivium_driver {
    int (*device_uuid)(char *, int);
    int (*memory_open)(uint64_t *, ipc_handle, unsigned);
    int (*memory_close)(uint64_t);
    int (*value_write)(void *, uint64_t, uint32_t, unsigned);
    int (*value_await)(void *, uint64_t, uint32_t, unsigned);
    int (*upload_async)(uint64_t, const void *, size_t, void *);
    int (*download_async)(void *, uint64_t, size_t, void *);
    int (*init)(unsigned);
    int (*error_string)(int, const char **);
    int (*version)(int *);
    int (*device_count)(int *);
    int (*device_get)(int *, int);
    int (*device_name)(char *, int, int);
    int (*device_attribute)(int *, int, int);
    int (*retain)(void **, int);
    int (*release)(int);
    int (*set_current)(void *);
    int (*load)(void **, const void *);
    int (*unload)(void *);
    int (*function)(void **, void *, const char *);
    int (*function_attribute)(void *, int, int);
    int (*alloc)(uint64_t *, size_t);
    int (*free)(uint64_t);
    int (*upload)(uint64_t, const void *, size_t);
    int (*download)(void *, uint64_t, size_t);
    int (*fill)(uint64_t, unsigned char, size_t, void *);
    int (*stream)(void **, unsigned);
    int (*stream_free)(void *);
    int (*synchronize)(void *);
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
    int (*tensor_map)(void *, int, unsigned, void *, const uint64_t *, const uint64_t *, const uint32_t *, const uint32_t *, int, int, int, int);
};

typedef struct { const char *name; size_t offset; } symbol;

// Opens a library and fills a zeroed structure of function pointers.
static int bind(const char *path, void *table, const symbol *symbols, char *error, size_t size) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(error, size, "%s", dlerror());
        return 0;
    }
    for (; symbols->name; symbols++) {
        void *f = dlsym(library, symbols->name);
        if (!f) {
            snprintf(error, size, "%s has no %s", path, symbols->name);
            dlclose(library);
            return 0;
        }
        memcpy((char *)table + symbols->offset, &f, sizeof f);
    }
    return 1;
}

#define NVRTC(field, name) {name, offsetof(trivium_nvrtc, field)}
#define CUDA(field, name) {name, offsetof(trivium_driver, field)}

trivium_nvrtc *trivium_nvrtc_open(const char *path, char *error, size_t size) {
    static const symbol symbols[] = {
        NVRTC(error, "nvrtcGetErrorString"), NVRTC(version, "nvrtcVersion"), NVRTC(create, "nvrtcCreateProgram"),
        NVRTC(destroy, "nvrtcDestroyProgram"), NVRTC(compile, "nvrtcCompileProgram"), NVRTC(log_size, "nvrtcGetProgramLogSize"),
        NVRTC(log, "nvrtcGetProgramLog"), NVRTC(cubin_size, "nvrtcGetCUBINSize"), NVRTC(cubin, "nvrtcGetCUBIN"), {NULL, 0}};
    trivium_nvrtc *n = calloc(1, sizeof *n);
    if (n && bind(path, n, symbols, error, size)) return n;
    free(n);
    return NULL;
}

trivium_driver *trivium_driver_open(const char *path, char *error, size_t size) {
    static const symbol symbols[] = {
        CUDA(device_uuid, "cuDeviceGetUuid"), CUDA(memory_open, "cuIpcOpenMemHandle_v2"), CUDA(memory_close, "cuIpcCloseMemHandle"),
        CUDA(value_write, "cuStreamWriteValue32_v2"), CUDA(value_await, "cuStreamWaitValue32_v2"), CUDA(upload_async, "cuMemcpyHtoDAsync_v2"), CUDA(download_async, "cuMemcpyDtoHAsync_v2"),
        CUDA(init, "cuInit"), CUDA(error_string, "cuGetErrorString"), CUDA(version, "cuDriverGetVersion"),
        CUDA(device_count, "cuDeviceGetCount"), CUDA(device_get, "cuDeviceGet"), CUDA(device_name, "cuDeviceGetName"),
        CUDA(device_attribute, "cuDeviceGetAttribute"), CUDA(retain, "cuDevicePrimaryCtxRetain"),
        CUDA(release, "cuDevicePrimaryCtxRelease_v2"), CUDA(set_current, "cuCtxSetCurrent"), CUDA(load, "cuModuleLoadData"),
        CUDA(unload, "cuModuleUnload"), CUDA(function, "cuModuleGetFunction"), CUDA(function_attribute, "cuFuncSetAttribute"),
        CUDA(alloc, "cuMemAlloc_v2"), CUDA(free, "cuMemFree_v2"), CUDA(upload, "cuMemcpyHtoD_v2"),
        CUDA(download, "cuMemcpyDtoH_v2"), CUDA(fill, "cuMemsetD8Async"), CUDA(stream, "cuStreamCreate"),
        CUDA(stream_free, "cuStreamDestroy_v2"), CUDA(synchronize, "cuStreamSynchronize"), CUDA(launch, "cuLaunchKernel"),
        CUDA(tensor_map, "cuTensorMapEncodeTiled"), {NULL, 0}};
    trivium_driver *d = calloc(1, sizeof *d);
    if (d && bind(path, d, symbols, error, size)) return d;
    free(d);
    return NULL;
}

int trivium_nvrtc_version(const trivium_nvrtc *n, int *major, int *minor) { return n->version(major, minor); }
const char *trivium_nvrtc_error(const trivium_nvrtc *n, int code) { return n->error(code); }

int trivium_nvrtc_compile(const trivium_nvrtc *n, const char *source, const char *name, int headers, const char *const *bodies,
                          const char *const *names, int options, const char *const *option, char **cubin, size_t *size, char **log) {
    void *program = NULL;
    size_t length = 0;
    *cubin = *log = NULL;
    *size = 0;
    int rc = n->create(&program, source, name, headers, bodies, names);
    if (rc) return rc;
    rc = n->compile(program, options, option);
    if (!n->log_size(program, &length) && (*log = malloc(length + 1))) {
        (*log)[length] = 0;
        n->log(program, *log);
    }
    if (!rc) rc = n->cubin_size(program, size);
    if (!rc && (*cubin = malloc(*size))) rc = n->cubin(program, *cubin);
    n->destroy(&program);
    return rc;
}

const char *trivium_cuda_error(const trivium_driver *d, int code) {
    const char *text = NULL;
    return d->error_string(code, &text) || !text ? "unknown error" : text;
}

int trivium_cuda_init(const trivium_driver *d, int *version, int *devices) {
    int rc = d->init(0);
    if (!rc) rc = d->version(version);
    if (!rc) rc = d->device_count(devices);
    return rc;
}

int trivium_cuda_device(const trivium_driver *d, int ordinal, char *name, int name_size, int *attributes, const int *which, int count) {
    int device, rc = d->device_get(&device, ordinal);
    if (!rc) rc = d->device_name(name, name_size, device);
    for (int i = 0; !rc && i < count; i++) rc = d->device_attribute(attributes + i, which[i], device);
    return rc;
}

int trivium_cuda_context(const trivium_driver *d, int ordinal, void **context) {
    int device, rc = d->device_get(&device, ordinal);
    return rc ? rc : d->retain(context, device);
}

int trivium_cuda_release(const trivium_driver *d, int ordinal) {
    int device, rc = d->device_get(&device, ordinal);
    return rc ? rc : d->release(device);
}

#define CURRENT(d, context) \
    do { \
        int rc_ = (d)->set_current(context); \
        if (rc_) return rc_; \
    } while (0)

int trivium_cuda_load(const trivium_driver *d, void *context, const void *cubin, void **module) {
    CURRENT(d, context);
    return d->load(module, cubin);
}

int trivium_cuda_unload(const trivium_driver *d, void *context, void *module) {
    CURRENT(d, context);
    return d->unload(module);
}

int trivium_cuda_function(const trivium_driver *d, void *context, void *module, const char *name, int shared, void **function) {
    enum { MAX_DYNAMIC_SHARED = 8, SHARED_CARVEOUT = 9 };
    CURRENT(d, context);
    int rc = d->function(function, module, name);
    if (!rc && shared) rc = d->function_attribute(*function, MAX_DYNAMIC_SHARED, shared);
    if (!rc && shared) rc = d->function_attribute(*function, SHARED_CARVEOUT, 100);
    return rc;
}

int trivium_cuda_alloc(const trivium_driver *d, void *context, uint64_t *address, size_t size) {
    CURRENT(d, context);
    return d->alloc(address, size);
}

int trivium_cuda_free(const trivium_driver *d, void *context, uint64_t address) {
    CURRENT(d, context);
    return d->free(address);
}

int trivium_cuda_upload(const trivium_driver *d, void *context, uint64_t to, const void *from, size_t size) {
    CURRENT(d, context);
    return d->upload(to, from, size);
}

int trivium_cuda_download(const trivium_driver *d, void *context, void *to, uint64_t from, size_t size) {
    CURRENT(d, context);
    return d->download(to, from, size);
}

int trivium_cuda_fill(const trivium_driver *d, void *context, uint64_t to, unsigned char value, size_t size, void *stream) {
    CURRENT(d, context);
    return d->fill(to, value, size, stream);
}

int trivium_cuda_stream(const trivium_driver *d, void *context, void **stream) {
    enum { NON_BLOCKING = 1 };
    CURRENT(d, context);
    return d->stream(stream, NON_BLOCKING);
}

int trivium_cuda_stream_free(const trivium_driver *d, void *context, void *stream) {
    CURRENT(d, context);
    return d->stream_free(stream);
}

int trivium_cuda_synchronize(const trivium_driver *d, void *context, void *stream) {
    CURRENT(d, context);
    return d->synchronize(stream);
}

int trivium_cuda_uuid(const trivium_driver *d, int ordinal, char *uuid) {
    int device, rc = d->device_get(&device, ordinal);
    return rc ? rc : d->device_uuid(uuid, device);
}

int trivium_cuda_memory_open(const trivium_driver *d, void *context, const void *handle, uint64_t *address) {
    enum { LAZY_PEER_ACCESS = 1 };
    ipc_handle h;
    memcpy(&h, handle, sizeof h);
    CURRENT(d, context);
    return d->memory_open(address, h, LAZY_PEER_ACCESS);
}

int trivium_cuda_memory_close(const trivium_driver *d, void *context, uint64_t address) {
    CURRENT(d, context);
    return d->memory_close(address);
}

int trivium_cuda_value_write(const trivium_driver *d, void *context, uint64_t at, uint32_t value, void *stream) {
    enum { BEHIND_ALL_WRITES = 0 };
    CURRENT(d, context);
    return d->value_write(stream, at, value, BEHIND_ALL_WRITES);
}

int trivium_cuda_value_await(const trivium_driver *d, void *context, uint64_t at, uint32_t value, void *stream) {
    enum { AT_LEAST = 0 };
    CURRENT(d, context);
    return d->value_await(stream, at, value, AT_LEAST);
}

int trivium_cuda_upload_async(const trivium_driver *d, void *context, uint64_t to, const void *from, size_t size, void *stream) {
    CURRENT(d, context);
    return d->upload_async(to, from, size, stream);
}

int trivium_cuda_download_async(const trivium_driver *d, void *context, void *to, uint64_t from, size_t size, void *stream) {
    CURRENT(d, context);
    return d->download_async(to, from, size, stream);
}

int trivium_cuda_tensor_map(const trivium_driver *d, void *context, void *map, int dtype, uint64_t address, const uint64_t dims[4],
                            const uint64_t strides[3], const uint32_t box[4]) {
    enum { NO_INTERLEAVE = 0, SWIZZLE_128B = 3, PROMOTE_128B = 2, FILL_ZERO = 0 };
    const uint32_t ones[4] = {1, 1, 1, 1};
    _Alignas(64) unsigned char aligned[128];
    CURRENT(d, context);
    int rc = d->tensor_map(aligned, dtype, 4, (void *)(uintptr_t)address, dims, strides, box, ones, NO_INTERLEAVE, SWIZZLE_128B,
                           PROMOTE_128B, FILL_ZERO);
    memcpy(map, aligned, sizeof aligned);
    return rc;
}

int trivium_cuda_launch(const trivium_driver *d, void *context, void *function, const unsigned grid[3], unsigned threads,
                        unsigned shared, void *stream, int maps, const void *map, void *args) {
    _Alignas(64) unsigned char aligned[5][128];
    void *parameters[6];
    CURRENT(d, context);
    for (int i = 0; i < maps; i++) {
        memcpy(aligned[i], (const char *)map + 128 * i, 128);
        parameters[i] = aligned[i];
    }
    parameters[maps] = args;
    return d->launch(function, grid[0], grid[1], grid[2], threads, 1, 1, shared, stream, parameters, NULL);
}
