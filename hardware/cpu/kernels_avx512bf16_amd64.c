// AVX512-BF16 (Zen 4 and later, Cooper Lake and later): attention in tiles of
// bfloat16 with float32 sums, for problems that are all bfloat16; any other
// runs the AVX-512 kernels. A product of pairs (vdpbf16ps) does the work of two
// fused multiply-adds; it flushes subnormals to zero.
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "avx512.h"

#define NAME(x) x##_avx512bf16
#define ROW_STEP 6
#define PANEL_STEP 4

#include "elements.h"

enum { KEY_STEP = PANEL, PASS_ROWS = TILE };
#define BEGIN_PRODUCTS()
#define END_PRODUCTS()
#include "bf16.h"

// --- products ---

// c[R, 16N] = (add ? c : 0) + a[R, pairs] . b[N panels][pairs, 16].
INLINE void product(const int R, const int N, const uint16_t *a, long lda, const uint16_t *b, long panel, long pairs, float *c, long ldc, int add) {
    vf sum[ROW_STEP][PANEL_STEP]; // of fixed size, so that it becomes registers
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int j = 0; j < N; j++) sum[r][j] = add ? vf_load(c + r * ldc + j * LANES) : vf_set1(0);
    for (long k = 0; k < pairs; k++) {
        __m512bh row[PANEL_STEP];
#pragma GCC unroll 16
        for (int j = 0; j < N; j++) row[j] = (__m512bh)_mm512_loadu_si512(b + j * panel + k * 2 * PANEL);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            int pair;
            memcpy(&pair, a + r * lda + 2 * k, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 16
            for (int j = 0; j < N; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], row[j], x);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int j = 0; j < N; j++) vf_store(c + r * ldc + j * LANES, sum[r][j]);
}

typedef void product_fn(const uint16_t *a, long lda, const uint16_t *b, long panel, long pairs, float *c, long ldc, int add);
#define PRODUCT(R, N)                                                                                                                  \
    static void product_##R##_##N(const uint16_t *a, long lda, const uint16_t *b, long panel, long pairs, float *c, long ldc, int add) { \
        product(R, N, a, lda, b, panel, pairs, c, ldc, add);                                                                           \
    }
#define PRODUCT_ROWS(N) PRODUCT(1, N) PRODUCT(2, N) PRODUCT(3, N) PRODUCT(4, N) PRODUCT(5, N) PRODUCT(6, N)
#define PRODUCT_LIST(N) {product_1_##N, product_2_##N, product_3_##N, product_4_##N, product_5_##N, product_6_##N}
PRODUCT_ROWS(1) PRODUCT_ROWS(2) PRODUCT_ROWS(3) PRODUCT_ROWS(4)
static product_fn *const products[PANEL_STEP][ROW_STEP] = {PRODUCT_LIST(1), PRODUCT_LIST(2), PRODUCT_LIST(3), PRODUCT_LIST(4)};

static void multiply_scores(const uint16_t *query, int stride, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k,
                            int variant, int64_t k0, int keys, float *score, int add) {
    const uint16_t *packed = key_panel(p, k, variant, k0);
    long panel = padded_dim(p) * PANEL;
    for (int j = 0; j < keys; j += PANEL_STEP * PANEL) {
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP) {
            if (limit[s] <= j) continue;
            int panels = (limit[s] - j) / PANEL < PANEL_STEP ? (limit[s] - j) / PANEL : PANEL_STEP;
            int some = rows - r < ROW_STEP ? rows - r : ROW_STEP;
            products[panels - 1][some - 1](query + (long)r * stride, stride, packed + (long)j * padded_dim(p), panel, (p->key_dim + 1) / 2,
                                           score + r * TILE + j, TILE, add);
        }
    }
}

static void multiply_values(const uint16_t *weight, int rows, const int *limit, const trivium_problem *p, const trivium_keys *k, int64_t k0,
                            float *out, int out_stride) {
    const uint16_t *values = value_row(p, k, k0);
    for (int j = 0; j < value_panels(p); j += PANEL_STEP) {
        int panels = value_panels(p) - j < PANEL_STEP ? value_panels(p) - j : PANEL_STEP;
        for (int s = 0, r = 0; r < rows; s++, r += ROW_STEP) {
            int some = rows - r < ROW_STEP ? rows - r : ROW_STEP;
            if (limit[s])
                products[panels - 1][some - 1](weight + r * TILE, TILE, values + (long)j * TILE * PANEL, TILE * PANEL, limit[s] / 2,
                                               out + (long)r * out_stride + j * PANEL, out_stride, 1);
        }
    }
}

#define prefetch_tile(p, k, k0, keys, part, parts) ((void)0)
#define prefetch_keys(p, k, k0, keys, part, parts) ((void)0)

#include "tiles.h"

extern const trivium_kernels trivium_kernels_avx512;
static const trivium_kernels *other_table(const trivium_problem *p) { return (void)p, &trivium_kernels_avx512; }
static const trivium_kernels *attending_table(const trivium_head *h) { return other_table(h->problem); }
static size_t other_scratch_bytes(const trivium_problem *p, int64_t keys) { return other_table(p)->scratch_bytes(p, keys); }
#define IN_HALVES NULL
#include "bf16_table.h"

static int supported_avx512bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

BF16_TABLE(avx512bf16, 25);
