// Tiles of AMX, for the files of kernels that multiply with them.
#ifdef TRIVIUM_EMULATED_TILES
#include "emulated_tiles.h"
#endif

static const struct __attribute__((packed)) {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} all_tiles = {.palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

#define BEGIN_PRODUCTS() _tile_loadconfig(&all_tiles)
#define END_PRODUCTS() _tile_release()

// The compiler does not know that tile instructions read and write memory.
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

// Tiles 0 - 3 are the sums of c[32, 32]; stride in bytes.
INLINE void zero_2_2(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
INLINE void load_2_2(const float *c, long stride) {
    _tile_loadd(0, c, stride);
    _tile_loadd(1, c + 16, stride);
    _tile_loadd(2, c + 4 * stride, stride);
    _tile_loadd(3, c + 4 * stride + 16, stride);
}
// Adds the product of 32 rows of a and two panels of b, over 32 columns: tiles 4 and 5 are rows of a, 6 and 7 of b.
INLINE void multiply_2_2(const uint16_t *a, long a_stride, const uint16_t *b, long panel) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, a_stride);
    _tile_loadd(7, b + panel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + 16 * (a_stride / 2), a_stride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}
INLINE void store_2_2(float *c, long stride) {
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16, stride);
    _tile_stored(2, c + 4 * stride, stride);
    _tile_stored(3, c + 4 * stride + 16, stride);
}

// Asks for a share of so many lines.
static inline void prefetch_lines(const void *from, long lines, int part, int parts) {
    for (long i = lines * part / parts; i < lines * (part + 1) / parts; i++) __builtin_prefetch((const char *)from + 64 * i, 0, 2);
}

// Asks for a share of a tile's keys in their first variant.
static inline void prefetch_keys(const trivium_problem *p, const trivium_keys *k, int64_t k0, int keys, int part, int parts) {
    prefetch_lines(key_panel(p, k, 0, k0), HALVES * keys * padded_dim(p) / 32, part, parts);
}

// The same with its values: products are fast enough to wait for them otherwise.
static inline void prefetch_tile(const trivium_problem *p, const trivium_keys *k, int64_t k0, int keys, int part, int parts) {
    prefetch_keys(p, k, k0, keys, part, parts);
    prefetch_lines(value_row(p, k, k0 / TILE * TILE), (long)HALVES * TILE * value_panels(p) / 2, part, parts);
}
