// libcuda and libnvrtc, opened at run time: building needs no CUDA file.
#ifndef TRIVIUM_CUDA_SHIM_H
#define TRIVIUM_CUDA_SHIM_H

#include <stddef.h>
#include <stdint.h>

typedef struct trivium_nvrtc trivium_nvrtc;
typedef struct trivium_driver trivium_driver;

// Both return NULL with the reason in error. What they return lives until the process ends.
trivium_nvrtc *trivium_nvrtc_open(const char *path, char *error, size_t size);
trivium_driver *trivium_driver_open(const char *path, char *error, size_t size);

int trivium_nvrtc_version(const trivium_nvrtc *n, int *major, int *minor);
// Compiles to a cubin. *cubin and *log are malloc'ed and the caller's, set also on failure when there is one.
int trivium_nvrtc_compile(const trivium_nvrtc *n, const char *source, const char *name, int headers, const char *const *bodies,
                          const char *const *names, int options, const char *const *option, char **cubin, size_t *size, char **log);
const char *trivium_nvrtc_error(const trivium_nvrtc *n, int code);

// Every function below returns a CUresult. Those with a context make it current on the calling thread first.
const char *trivium_cuda_error(const trivium_driver *d, int code);
int trivium_cuda_init(const trivium_driver *d, int *version, int *devices);
int trivium_cuda_device(const trivium_driver *d, int ordinal, char *name, int name_size, int *attributes, const int *which, int count);
int trivium_cuda_context(const trivium_driver *d, int ordinal, void **context);
int trivium_cuda_release(const trivium_driver *d, int ordinal);
int trivium_cuda_load(const trivium_driver *d, void *context, const void *cubin, void **module);
int trivium_cuda_unload(const trivium_driver *d, void *context, void *module);
int trivium_cuda_function(const trivium_driver *d, void *context, void *module, const char *name, int shared, void **function);
int trivium_cuda_alloc(const trivium_driver *d, void *context, uint64_t *address, size_t size);
int trivium_cuda_free(const trivium_driver *d, void *context, uint64_t address);
int trivium_cuda_upload(const trivium_driver *d, void *context, uint64_t to, const void *from, size_t size);
int trivium_cuda_download(const trivium_driver *d, void *context, void *to, uint64_t from, size_t size);
int trivium_cuda_fill(const trivium_driver *d, void *context, uint64_t to, unsigned char value, size_t size, void *stream);
int trivium_cuda_stream(const trivium_driver *d, void *context, void **stream);
int trivium_cuda_stream_free(const trivium_driver *d, void *context, void *stream);
int trivium_cuda_synchronize(const trivium_driver *d, void *context, void *stream);

// Memory of another process; handle: 64 bytes, uuid: 16.
int trivium_cuda_uuid(const trivium_driver *d, int ordinal, char *uuid);
int trivium_cuda_memory_open(const trivium_driver *d, void *context, const void *handle, uint64_t *address);
int trivium_cuda_memory_close(const trivium_driver *d, void *context, uint64_t address);
// A uint32 in device memory: write it behind the work of the stream, or let the stream wait until it is at least value.
int trivium_cuda_value_write(const trivium_driver *d, void *context, uint64_t at, uint32_t value, void *stream);
int trivium_cuda_value_await(const trivium_driver *d, void *context, uint64_t at, uint32_t value, void *stream);
// In the order of the stream; pageable host memory may be reused when upload returns.
int trivium_cuda_upload_async(const trivium_driver *d, void *context, uint64_t to, const void *from, size_t size, void *stream);
int trivium_cuda_download_async(const trivium_driver *d, void *context, void *to, uint64_t from, size_t size, void *stream);

// A 4-d map over [batch, heads, rows, head_dim]; strides in bytes for rows, heads, batch; map: 128 bytes.
int trivium_cuda_tensor_map(const trivium_driver *d, void *context, void *map, int dtype, uint64_t address, const uint64_t dims[4],
                            const uint64_t strides[3], const uint32_t box[4]);
// Up to four maps, then the arguments: the parameters of all our kernels.
int trivium_cuda_launch(const trivium_driver *d, void *context, void *function, const unsigned grid[3], unsigned threads,
                        unsigned shared, void *stream, int maps, const void *map, void *args);

#endif
