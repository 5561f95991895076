// Scores of float32 and float16 on AMX, in halves of bfloat16: the part of the AMX
// table for problems without values. halves.h tells how.
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "avx512.h"

#define NAME(x) x##_amxhalves
#define ROW_STEP 32
#define SCORES_ONLY 1

#include "elements.h"

enum { KEY_STEP = 32, PASS_ROWS = 32 };
#include "halves.h"
#include "amx.h"

// c[32, 32] (+)= a[32, 32 steps] . b, small products first; a and b are high halves,
// whose low ones lie a_low and b_low elements on, b two panels that lie `panel`
// elements apart; strides in bytes.
static __attribute__((noinline)) void product_2_2(const uint16_t *a, long a_stride, long a_low, const uint16_t *b, long panel, long b_low,
                                                  long steps, float *c, long c_stride, int add) {
    MEMORY_BARRIER();
    if (add) load_2_2(c, c_stride);
    else zero_2_2();
    for (int part = 0; part < 3; part++) {
        const uint16_t *x = a + (part == 0 ? a_low : 0), *y = b + (part == 1 ? b_low : 0);
        for (long k = 0; k < steps; k++, x += DEPTH, y += 16 * DEPTH) multiply_2_2(x, a_stride, y, panel);
    }
    store_2_2(c, c_stride);
    MEMORY_BARRIER();
}

// The same for one tile of rows.
static __attribute__((noinline)) void product_1_2(const uint16_t *a, long a_stride, long a_low, const uint16_t *b, long panel, long b_low,
                                                  long steps, float *c, long c_stride, int add) {
    MEMORY_BARRIER();
    for (int j = 0; j < 2; j++) {
        if (add) _tile_loadd(0, c + 16 * j, c_stride);
        else _tile_zero(0);
        for (int part = 0; part < 3; part++) {
            const uint16_t *x = a + (part == 0 ? a_low : 0), *y = b + j * panel + (part == 1 ? b_low : 0);
            for (long k = 0; k < steps; k++) {
                _tile_loadd(4, x + k * DEPTH, a_stride);
                _tile_loadd(6, y + k * 16 * DEPTH, 64);
                _tile_dpbf16ps(0, 4, 6);
            }
        }
        _tile_stored(0, c + 16 * j, c_stride);
    }
    MEMORY_BARRIER();
}

static void multiply_scores(const query_t *query, int stride, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k,
                            int variant, int64_t k0, int keys, float *score, int add) {
    long depth = padded_dim(p), panel = depth * PANEL, low = to_low(p, k);
    const uint16_t *packed = key_panel(p, k, variant, k0);
    for (int j = 0; j < keys; j += 2 * PANEL)
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP)
            if (limit[s] > j)
                (rows - r > 16 ? product_2_2 : product_1_2)((const uint16_t *)(query + (long)r * stride), stride * 4L, stride, packed + j * depth, panel,
                                                            low, depth / DEPTH, score + r * TILE + j, TILE * 4L, add);
}

// Asks for a share of a tile's keys in their first variant.
static inline void prefetch_keys(const trivium_problem *p, const trivium_keys *k, int64_t k0, int keys, int part, int parts) {
    const char *high = (const char *)key_panel(p, k, 0, k0), *low = high + 2 * to_low(p, k);
    long lines = keys * padded_dim(p) / 32;
    for (long i = lines * part / parts; i < lines * (part + 1) / parts; i++) {
        __builtin_prefetch(high + 64 * i, 0, 2);
        __builtin_prefetch(low + 64 * i, 0, 2);
    }
}

#include "tiles.h"

const trivium_kernels trivium_kernels_amxhalves = {
    .name = "amxhalves",
    .pack_bytes = pack_bytes_amxhalves,
    .pack = pack_amxhalves,
    .scratch_bytes = scratch_bytes_amxhalves,
    .representative = representative_amxhalves,
    .row_mass = row_mass_amxhalves,
    .square_mass = square_mass_amxhalves,
    .column_score = column_score_amxhalves,
};
