// float32 and float16 on AMX, in halves of bfloat16: the part of the AMX table for
// problems that are scored, are float16, or are float32 whose products may be off by
// what halves make of them. halves.h tells how.
//
// A step of 32 columns is twelve products of eight tiles, which are loaded once each:
// low.high first, then high.high and high.low with two tiles exchanged each time.
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "avx512.h"

#define NAME(x) x##_amxhalves
#define ROW_STEP 32
#define PIPELINED 1

#include "elements.h"

enum { KEY_STEP = 32, PASS_ROWS = 32 };
#include "halves.h"
#include "amx.h"

// c[32, 32] (+)= a[32, 32 steps] . b; c_stride in bytes.
static __attribute__((noinline)) void product_2_2(const uint16_t *a, long a_stride, long a_low, const uint16_t *b, long panel, long b_low,
                                                  long steps, float *c, long c_stride, int add) {
    operands o = {.a = a, .b = b, .a_stride = a_stride, .panel = panel, .a_low = a_low, .b_low = b_low};
    MEMORY_BARRIER();
    if (add) load_2_2(c, c_stride);
    else zero_2_2();
    struct vector_work *w = NULL;
    for (; steps; steps--, o.a += DEPTH, o.b += 16 * DEPTH) {
        load_operands(&o);
        PRODUCTS_2_2(LOAD_A(4, &o, 0, 0), (void)0, LOAD_A(5, &o, 16, 0), (void)0);
        PRODUCTS_2_2((void)0, LOAD_B(6, &o, 0, 1), (void)0, LOAD_B(7, &o, 1, 1));
        PRODUCTS_2_2((void)0, (void)0, (void)0, (void)0);
    }
    store_2_2(c, c_stride);
    MEMORY_BARRIER();
}

// The same for one tile of rows, one panel or both.
static __attribute__((noinline)) void product_1(int panels, const uint16_t *a, long a_stride, long a_low, const uint16_t *b, long panel, long b_low,
                                                long steps, float *c, long c_stride, int add) {
    MEMORY_BARRIER();
    for (int j = 0; j < panels; j++) {
        if (add) _tile_loadd(0, c + 16 * j, c_stride);
        else _tile_zero(0);
        for (long k = 0; k < steps; k++) {
            const uint16_t *x = a + k * DEPTH, *y = b + j * panel + k * 16 * DEPTH;
            _tile_loadd(4, x + a_low, a_stride);
            _tile_loadd(6, y, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, x, a_stride);
            _tile_dpbf16ps(0, 5, 6);
            _tile_loadd(7, y + b_low, 64);
            _tile_dpbf16ps(0, 5, 7);
        }
        _tile_stored(0, c + 16 * j, c_stride);
    }
    MEMORY_BARRIER();
}

static void product(int rows, int panels, const uint16_t *a, long a_stride, long a_low, const uint16_t *b, long panel, long b_low, long steps,
                    float *c, long c_stride, int add) {
    if (rows > 16 && panels == 2) {
        product_2_2(a, a_stride, a_low, b, panel, b_low, steps, c, c_stride, add);
        return;
    }
    product_1(panels, a, a_stride, a_low, b, panel, b_low, steps, c, c_stride, add);
    if (rows > 16)
        product_1(panels, a + 16 * (a_stride / 2), a_stride, a_low, b, panel, b_low, steps, c + 16 * (c_stride / 4), c_stride, add);
}

static void multiply_scores(const query_t *query, int stride, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k,
                            int variant, int64_t k0, int keys, float *score, int add) {
    long depth = padded_dim(p), half = depth * PANEL;
    const uint16_t *packed = key_panel(p, k, variant, k0);
    for (int j = 0; j < keys; j += 2 * PANEL)
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP)
            if (limit[s] > j)
                product(rows - r, 2, (const uint16_t *)(query + (long)r * stride), stride * 4L, stride, packed + HALVES * j * depth, HALVES * half,
                        half, depth / DEPTH, score + r * TILE + j, TILE * 4L, add);
}

// A last half step must not look at keys behind the tile's, whose weights are
// zero but whose values may be infinite: those of the last step are copied.
static void multiply_values(const weight_t *weight, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k, int64_t k0,
                            float *out, int out_stride) {
    const long half = TILE * PANEL, panel = HALVES * half;
    const uint16_t *values = value_row(p, k, k0);
    int inside = TILE - (int)(k0 % TILE);
    for (int j = 0; j < value_panels(p); j += 2) {
        int panels = value_panels(p) - j < 2 ? 1 : 2;
        const uint16_t *b = values + j * panel;
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP) {
            int steps = (limit[s] < inside ? limit[s] : inside) / DEPTH;
            float *c = out + (long)r * out_stride + j * PANEL;
            const uint16_t *a = (const uint16_t *)(weight + r * TILE);
            if (steps) product(rows - r, panels, a, TILE * 4L, TILE, b, panel, half, steps, c, out_stride * 4L, 1);
            if (limit[s] <= steps * DEPTH) continue;
            _Alignas(64) uint16_t last[2][HALVES][DEPTH * PANEL] = {{{0}}};
            for (int i = 0; i < panels; i++)
                for (int which = 0; which < HALVES; which++)
                    memcpy(last[i][which], b + i * panel + which * half + steps * DEPTH * PANEL, sizeof(uint16_t) * DEPTH / 2 * PANEL);
            product(rows - r, panels, a + steps * DEPTH, TILE * 4L, TILE, last[0][0], HALVES * DEPTH * PANEL, DEPTH * PANEL, 1, c, out_stride * 4L, 1);
        }
    }
}

// For pipeline.h: a step, whose first tiles are loaded, while those of the next one are.
enum { STEP_PRODUCTS = 12 };
INLINE void step_2_2(const operands *o, const operands *next, struct vector_work *w) {
    PRODUCTS_2_2(LOAD_A(4, o, 0, 0), (void)0, LOAD_A(5, o, 16, 0), (void)0);
    PRODUCTS_2_2((void)0, LOAD_B(6, o, 0, 1), (void)0, LOAD_B(7, o, 1, 1));
    PRODUCTS_2_2(LOAD_A(4, next, 0, 1), LOAD_B(6, next, 0, 0), LOAD_A(5, next, 16, 1), LOAD_B(7, next, 1, 0));
}

#include "tiles.h"

const trivium_kernels trivium_kernels_amxhalves = {
    .name = "amxhalves",
    .pack_bytes = pack_bytes_amxhalves,
    .pack = pack_amxhalves,
    .scratch_bytes = scratch_bytes_amxhalves,
    .attend = attend_amxhalves,
    .representative = representative_amxhalves,
    .row_mass = row_mass_amxhalves,
    .square_mass = square_mass_amxhalves,
    .column_score = column_score_amxhalves,
    .rest = rest_amxhalves,
};
