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
INLINE void store_2_2(float *c, long stride) {
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16, stride);
    _tile_stored(2, c + 4 * stride, stride);
    _tile_stored(3, c + 4 * stride + 16, stride);
}

// What a step of products of 32 columns reads, c[32, 32] += a . b: high halves, or all of it where there
// are no others, of 32 rows of a and two panels of b, that lie `panel` elements apart; the low halves lie a_low
// and b_low elements on. a_stride in bytes.
typedef struct {
    const uint16_t *a, *b;
    long a_stride, panel, a_low, b_low;
} operands;

// Tiles 4 - 7, first of a step. Keys and values must not drive the rest from the first-level cache.
#define LOAD_A(tile, o, rows, low) _tile_loadd(tile, (o)->a + (rows) * ((o)->a_stride / 2) + (low) * (o)->a_low, (o)->a_stride)
#define LOAD_B(tile, o, panels, low) _tile_stream_loadd(tile, (o)->b + (panels) * (o)->panel + (low) * (o)->b_low, 64)

// The vector units' work in pipeline.h, some of which is done after each product; NULL: none.
struct vector_work;
INLINE void meanwhile(struct vector_work *w);

// Loads what the first four products of a step read: those with the low halves of a, if there are any.
INLINE void load_operands(const operands *o) {
    LOAD_B(6, o, 0, 0);
    LOAD_A(4, o, 0, HALVES - 1);
    LOAD_B(7, o, 1, 0);
    LOAD_A(5, o, 16, HALVES - 1);
}
// Four products, and what is loaded once the tiles are free.
#define PRODUCTS_2_2(load_4, load_6, load_5, load_7) \
    _tile_dpbf16ps(0, 4, 6);                         \
    meanwhile(w);                                    \
    _tile_dpbf16ps(1, 4, 7);                         \
    load_4;                                          \
    meanwhile(w);                                    \
    _tile_dpbf16ps(2, 5, 6);                         \
    load_6;                                          \
    meanwhile(w);                                    \
    _tile_dpbf16ps(3, 5, 7);                         \
    load_5;                                          \
    load_7;                                          \
    meanwhile(w)

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
