// Elements and exponentials in vectors, for every instruction set that defines
// vf, LANES and the operations on them: see the files of kernels.
#include <float.h>
#include <math.h>
#include "numbers.h"
#include "visible.h"

enum { TILE = 128, PANEL = 16, PER_PANEL = PANEL / LANES };

#define INLINE static inline __attribute__((always_inline))
#define LOG2_E 1.4426950408889634f
#define LOG_2 0.6931471805599453

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// 2^(x - floor(x)), to 7.5e-8.
INLINE vf exp2_of_fraction(vf x) {
    vf r = vf_fraction(x); // in [0, 1)
    vf y = vf_set1(0x1.ec320ap-10f);
    y = vf_fma(y, r, vf_set1(0x1.26900ep-7f));
    y = vf_fma(y, r, vf_set1(0x1.c95446p-5f));
    y = vf_fma(y, r, vf_set1(0x1.ebd5a8p-3f));
    y = vf_fma(y, r, vf_set1(0x1.62e4f6p-1f));
    return vf_fma(y, r, vf_set1(0x1.fffffep-1f));
}

// exp2 of x <= 0; 0 below 2^-126, NaN for NaN.
INLINE vf exp2_below_one(vf x) { return vf_scale(exp2_of_fraction(x), x); }

INLINE vf tanh_of(vf x) {
    vf size = vf_abs(x), square = vf_mul(x, x);
    vf near = vf_set1(-0.005852180765534772f);
    near = vf_fma(near, square, vf_set1(0.020753641317178398f));
    near = vf_fma(near, square, vf_set1(-0.053768709339743745f));
    near = vf_fma(near, square, vf_set1(0.1333168903576175f));
    near = vf_fma(near, square, vf_set1(-0.3333328326240598f));
    near = vf_fma(vf_mul(near, square), x, x);
    // 1 - 2/(e^2x + 1) with e^-2x, which cannot overflow.
    vf e = exp2_below_one(vf_mul(size, vf_set1(-2.885390081777927f)));
    vf far = vf_div(vf_sub(vf_set1(1), e), vf_add(vf_set1(1), e));
    return vf_select_below(size, vf_set1(0.6f), near, vf_copysign(far, x));
}

// --- elements to float32 and back ---

static void load_floats(float *to, const trivium_matrix *m, int64_t row) {
    int n = m->cols, i = 0;
    if (m->dtype == TRIVIUM_FLOAT32) {
        memcpy(to, (const float *)m->data + row * m->stride, sizeof(float) * n);
        return;
    }
    const uint16_t *from = (const uint16_t *)m->data + row * m->stride;
    if (m->dtype == TRIVIUM_BFLOAT16)
        for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_load_bf16(from + i));
    else
        for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_load_f16(from + i));
    for (; i < n; i++) to[i] = (float)load_number(from, m->dtype, i);
}

// Stores a row times scale.
static void store_floats(const trivium_matrix *m, int64_t row, const float *from, float scale) {
    int n = m->cols, i = 0;
    vf factor = vf_set1(scale);
    if (m->dtype == TRIVIUM_FLOAT32) {
        float *to = (float *)m->data + row * m->stride;
        for (; i + LANES <= n; i += LANES) vf_store(to + i, vf_mul(vf_load(from + i), factor));
        for (; i < n; i++) to[i] = from[i] * scale;
        return;
    }
    uint16_t *to = (uint16_t *)m->data + row * m->stride;
    if (m->dtype == TRIVIUM_BFLOAT16)
        for (; i + LANES <= n; i += LANES) vf_store_bf16(to + i, vf_mul(vf_load(from + i), factor));
    else
        for (; i + LANES <= n; i += LANES) vf_store_f16(to + i, vf_mul(vf_load(from + i), factor));
    for (; i < n; i++) store_number(to, m->dtype, i, from[i] * scale);
}

static void rotate_floats(float *x, const trivium_problem *p, const trivium_rotation *r, int64_t row) {
    if (!r->table) return;
    const float *t = r->table + row * r->step;
    int next = p->interleaved ? 2 : 1, far = p->interleaved ? 1 : p->half;
    for (int i = 0; i < p->half; i++) {
        float c = t[2 * i], s = t[2 * i + 1], u = x[next * i], v = x[next * i + far];
        x[next * i] = u * c - v * s;
        x[next * i + far] = u * s + v * c;
    }
}
