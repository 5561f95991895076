// AMX-BF16 with AVX-512: attention in tiles of bfloat16 with float32 sums, for
// problems that are all bfloat16; any other runs the AVX-512 kernels.
//
// A strip is two tiles of 16 rows against two panels of 16 columns, so that
// four loads feed four products. bf16.h tells how keys are packed and what the
// error is.
//
// Most problems go through pipeline.h; the others a strip at a time, whose scores,
// 16 KiB, stay in the first-level cache, while the next tile's keys and values are
// asked for as this one's exponentials are taken. docs/decisions/cpu-kernels.md has
// the times, and what was tried.
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
#include "avx512.h"

#define NAME(x) x##_amx
#define ROW_STEP 32
#define PIPELINED 1

#include "elements.h"

enum { KEY_STEP = 32, PASS_ROWS = 32 };
#include "bf16.h"

// --- products ---

#include "amx.h"

// c[32, 32] (+)= a[32, 32 steps] . b, two panels that lie `panel` elements apart;
// a_stride and c_stride in bytes.
static __attribute__((noinline)) void product_2_2(const uint16_t *a, long a_stride, const uint16_t *b, long panel, long steps, float *c,
                                                  long c_stride, int add) {
    MEMORY_BARRIER();
    if (add) load_2_2(c, c_stride);
    else zero_2_2();
    for (long k = 0; k < steps; k++, a += DEPTH, b += 16 * DEPTH) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, a_stride);
        _tile_loadd(7, b + panel, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + 16 * (a_stride / 2), a_stride);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    store_2_2(c, c_stride);
    MEMORY_BARRIER();
}

// The same for one tile of rows, one panel or both.
static __attribute__((noinline)) void product_1(int panels, const uint16_t *a, long a_stride, const uint16_t *b, long panel, long steps,
                                                float *c, long c_stride, int add) {
    for (int j = 0; j < panels; j++) {
        MEMORY_BARRIER();
        if (add) _tile_loadd(0, c + 16 * j, c_stride);
        else _tile_zero(0);
        for (long k = 0; k < steps; k++) {
            _tile_loadd(4, a + k * DEPTH, a_stride);
            _tile_loadd(6, b + j * panel + k * 16 * DEPTH, 64);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, c + 16 * j, c_stride);
        MEMORY_BARRIER();
    }
}

static void product(int rows, int panels, const uint16_t *a, long a_stride, const uint16_t *b, long panel, long steps, float *c,
                    long c_stride, int add) {
    if (rows > 16 && panels == 2) {
        product_2_2(a, a_stride, b, panel, steps, c, c_stride, add);
        return;
    }
    product_1(panels, a, a_stride, b, panel, steps, c, c_stride, add);
    if (rows > 16) product_1(panels, a + 16 * (a_stride / 2), a_stride, b, panel, steps, c + 16 * (c_stride / 4), c_stride, add);
}

static void multiply_scores(const uint16_t *query, int stride, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k,
                            int variant, int64_t k0, int keys, float *score, int add) {
    long panel = padded_dim(p) * PANEL;
    const uint16_t *packed = key_panel(p, k, variant, k0);
    for (int j = 0; j < keys; j += 2 * PANEL)
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP)
            if (limit[s] > j)
                product(rows - r, 2, query + (long)r * stride, stride * 2L, packed + (long)j * padded_dim(p), panel, padded_dim(p) / DEPTH,
                        score + r * TILE + j, TILE * 4L, add);
}

// A last half step must not look at keys behind the tile's, whose weights are
// zero but whose values may be infinite: those of the last step are copied.
static void multiply_values(const uint16_t *weight, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k, int64_t k0,
                            float *out, int out_stride) {
    const uint16_t *values = value_row(p, k, k0);
    int inside = TILE - (int)(k0 % TILE);
    for (int j = 0; j < value_panels(p); j += 2) {
        int panels = value_panels(p) - j < 2 ? 1 : 2;
        const uint16_t *b = values + (long)j * TILE * PANEL;
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP) {
            int steps = (limit[s] < inside ? limit[s] : inside) / DEPTH;
            float *c = out + (long)r * out_stride + j * PANEL;
            const uint16_t *a = weight + r * TILE;
            if (steps) product(rows - r, panels, a, TILE * 2L, b, TILE * PANEL, steps, c, out_stride * 4L, 1);
            if (limit[s] <= steps * DEPTH) continue;
            _Alignas(64) uint16_t last[2][DEPTH * PANEL] = {{0}};
            for (int i = 0; i < panels; i++)
                memcpy(last[i], b + (long)i * TILE * PANEL + steps * DEPTH * PANEL, sizeof(uint16_t) * DEPTH / 2 * PANEL);
            product(rows - r, panels, a + steps * DEPTH, TILE * 2L, last[0], DEPTH * PANEL, 1, c, out_stride * 4L, 1);
        }
    }
}

// For pipeline.h: the products of a step, whose tiles are loaded, each replaced by one of
// the next step once it is not needed.
enum { STEP_PRODUCTS = 4 };
INLINE void step_2_2(const operands *o, const operands *next, struct vector_work *w) {
    (void)o; // has no low halves
    PRODUCTS_2_2(LOAD_A(4, next, 0, 0), LOAD_B(6, next, 0, 0), LOAD_A(5, next, 16, 0), LOAD_B(7, next, 1, 0));
}

#include "tiles.h"

// Problems that are not bfloat16: halves of it are several times as fast as float32,
// and what they lose matters neither to scores (problems without values) nor beside
// the rounding of float16.
extern const trivium_kernels trivium_kernels_amxhalves, trivium_kernels_avx512;
static int halves_amx(const trivium_problem *p) {
    return p->dtype != TRIVIUM_BFLOAT16 && (p->high || p->dtype == TRIVIUM_FLOAT16 || !p->value_dim);
}
static const trivium_kernels *other_table(const trivium_problem *p) { return halves_amx(p) ? &trivium_kernels_amxhalves : &trivium_kernels_avx512; }
// Few rows read each key once: splitting it takes longer than its products in float32.
static const trivium_kernels *attending_table(const trivium_head *h) { return h->keys->packed ? other_table(h->problem) : &trivium_kernels_avx512; }
static size_t other_scratch_bytes(const trivium_problem *p, int64_t keys) {
    size_t halves = trivium_kernels_amxhalves.scratch_bytes(p, keys), whole = trivium_kernels_avx512.scratch_bytes(p, keys);
    return halves > whole ? halves : whole;
}
#define IN_HALVES halves_amx
#include "bf16_table.h"

// The system gives a process the tiles' registers when it asks for them.
static int supported_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d;
    if (!has_avx512() || !__builtin_cpu_supports("avx512bf16")) return 0;
#ifdef TRIVIUM_EMULATED_TILES
    return 1;
#endif
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    int amx_bf16 = d >> 22 & 1, amx_tile = d >> 24 & 1;
    return amx_bf16 && amx_tile && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

BF16_TABLE(amx, 30);
