// Packing and exponentials in bfloat16, for the instruction sets that multiply
// it: included between elements.h and tiles.h by files that define KEY_STEP,
// PASS_ROWS and the products.
//
// Keys are packed [variant, keys/16, key_dim/2 pairs of columns, 16 keys, 2],
// key_dim padded to 32, values [keys/128, value_dim/16, 64 pairs of keys, 16
// columns, 2]; queries stay as they are and the scale is applied with the
// exponential.
//
// Error: exp2 2.6e-6; weights are rounded to bfloat16 (2^-9 relative, as are
// rotated queries and keys when bands turn them), their sum is not; the rest as
// float32.
typedef uint16_t query_t, weight_t;
enum { WEIGHTS_IN_PLACE = 0, SCALED_QUERY = 0, DEPTH = 32 /* bfloat16 that key_dim is padded to */, HALVES = 1 };

// --- packing ---

static inline int value_panels(const trivium_problem *p) { return (p->value_dim + PANEL - 1) / PANEL; }
static inline int64_t padded_dim(const trivium_problem *p) { return round_up(p->key_dim, DEPTH); }
static inline uint16_t *key_panel(const trivium_problem *p, const trivium_keys *k, int variant, int64_t n) {
    return (uint16_t *)k->packed + (variant * round_up(k->key.rows, TILE) + n) * padded_dim(p);
}
// One panel more than there are keys, since keys are looked at by the two.
static inline uint16_t *value_row(const trivium_problem *p, const trivium_keys *k, int64_t n) {
    return key_panel(p, k, p->key_variants, PANEL) + n / TILE * TILE * PANEL * value_panels(p) + n % TILE * PANEL;
}

static size_t NAME(pack_bytes)(const trivium_problem *p, int64_t rows) {
    int64_t n = round_up(rows, TILE);
    return sizeof(uint16_t) * (size_t)((n * p->key_variants + PANEL) * padded_dim(p) + n * PANEL * value_panels(p));
}

#include "pairs.h"

// Up to 32 bfloat16 of a row that has so many left, then zeros.
static inline __m512i first_columns(const uint16_t *from, int left) {
    if (left >= 2 * LANES) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi16(left > 0 ? (1u << left) - 1 : 0, from);
}

static void store_query(uint16_t *to, const float *x, int n, float scale) {
    for (int i = 0; i < n; i += LANES) vf_store_bf16(to + i, vf_mul(vf_load(x + i), vf_set1(scale)));
}

static int copy_query(uint16_t *to, const trivium_matrix *m, int64_t row, int n) {
    const uint16_t *from = (const uint16_t *)m->data + row * m->stride;
    for (int i = 0; i < n; i += 2 * LANES) _mm512_storeu_si512(to + i, first_columns(from + i, m->cols - i));
    return 1;
}

// Packs the keys of a panel, of which there are `have`: pairs of columns are turned as
// if they were float32. Keys that bands turn are rotated first.
static void pack_panel(uint16_t *to, const trivium_problem *p, const trivium_keys *k, int variant, int64_t first, int64_t have) {
    int depth = (int)padded_dim(p), turned = k->rotation[variant].table != NULL, cols = turned ? depth : p->key_dim;
    _Alignas(64) uint16_t panel[PANEL * 256];
    _Alignas(64) float x[256] = {0};
    for (int64_t r = 0; r < have && turned; r++) {
        load_floats(x, &k->key, first + r);
        rotate_floats(x, p, &k->rotation[variant], first + r);
        store_query(panel + r * 256, x, depth, 1);
    }
    const uint16_t *from = turned ? panel : (const uint16_t *)k->key.data + first * k->key.stride;
    int64_t stride = turned ? 256 : k->key.stride;
    for (int i = 0; i < depth; i += DEPTH) {
        vf block[LANES];
        if (have == PANEL && cols - i >= DEPTH) {
            for (int r = 0; r < PANEL; r++) block[r] = vf_load((const float *)(from + r * stride + i));
        } else {
            for (int r = 0; r < PANEL; r++)
                block[r] = r < have ? _mm512_castsi512_ps(first_columns(from + r * stride + i, cols - i)) : vf_set1(0);
        }
        vf_transpose(block);
        for (int r = 0; r < PANEL; r++) vf_store((float *)(to + i * PANEL + r * 2 * PANEL), block[r]);
    }
}

// Packs the values of a chunk, of which there are `rows`, and says whether one of them is not finite.
static int pack_values(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    const uint16_t *from = (const uint16_t *)k->value.data + first * k->value.stride;
    uint16_t *to = value_row(p, k, first);
    __mmask32 not_finite = 0;
    for (int64_t r = 0; r < TILE; r += 2, from += 2 * k->value.stride) {
        for (int j = 0; j < value_panels(p); j += 2) {
            int left = p->value_dim - j * PANEL;
            __m512i even = r < rows ? first_columns(from + j * PANEL, left) : _mm512_setzero_si512();
            __m512i odd = r + 1 < rows ? first_columns(from + k->value.stride + j * PANEL, left) : _mm512_setzero_si512();
            not_finite |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(even, exponent), exponent);
            not_finite |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(odd, exponent), exponent);
            store_pairs(to + (j * TILE + r) * PANEL, TILE * PANEL, even, odd, left > PANEL);
        }
    }
    return not_finite != 0;
}

// Packs the keys of a chunk, of which there are `rows`.
static void pack_keys(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    for (int64_t at = 0; at < TILE; at += PANEL)
        for (int v = 0; v < p->key_variants; v++)
            pack_panel(key_panel(p, k, v, first + at), p, k, v, first + at, max_i64(0, min_i64(PANEL, rows - at)));
}

// --- exponentials ---

// 2^(x - floor(x)) to 2.6e-6, since the result is rounded to bfloat16.
INLINE vf short_exp2_of_fraction(vf x) {
    vf r = vf_fraction(x);
    vf y = vf_fma(vf_set1(0x1.bb7cd4p-7f), r, vf_set1(0x1.aa13f2p-5f));
    y = vf_fma(y, r, vf_set1(0x1.ee798ap-3f));
    y = vf_fma(y, r, vf_set1(0x1.62d166p-1f));
    return vf_fma(y, r, vf_set1(0x1.00002cp+0f));
}
INLINE vf exp2_short(vf x) { return vf_scale(short_exp2_of_fraction(x), x); }
// The same where the processor flushes results below 2^-126 to zero.
INLINE vf exp2_flushed(vf x) { return _mm512_scalef_ps(short_exp2_of_fraction(x), x); }

#define exp2_score exp2_short

static inline float weight_at(const uint16_t *row, int j) {
    uint32_t bits = (uint32_t)row[j] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
INLINE void store_weights(uint16_t *row, int j, vf x, vf y) { _mm512_storeu_si512(row + j, (__m512i)_mm512_cvtne2ps_pbh(y, x)); }
static inline void scale_weights(uint16_t *row, int keys, float by) {
    for (int j = 0; j < keys; j += LANES) vf_store_bf16(row + j, vf_mul(vf_load_bf16(row + j), vf_set1(by)));
}

static inline float reference_of(float top, float unit);

// The exponentials of a row as bfloat16, and their sum before that rounding.
INLINE vf weights(uint16_t *weight, const float *score, int keys, float top, float unit) {
    vf reference = vf_set1(reference_of(top, unit)), factor = vf_set1(unit), sum = vf_set1(0), more = vf_set1(0);
    int j = 0;
    for (; j + 2 * LANES <= keys; j += 2 * LANES) {
        vf low = exp2_short(vf_fma(vf_load(score + j), factor, reference));
        vf high = exp2_short(vf_fma(vf_load(score + j + LANES), factor, reference));
        sum = vf_add(sum, low);
        more = vf_add(more, high);
        store_weights(weight, j, low, high);
    }
    if (j < keys) {
        vf low = exp2_short(vf_fma(vf_load(score + j), factor, reference));
        sum = vf_add(sum, low);
        _mm256_storeu_si256((__m256i *)(weight + j), (__m256i)_mm512_cvtneps_pbh(low));
    }
    return vf_add(sum, more);
}

// Exponentials that are to be summed over rows are kept as float16: eight times
// as near as bfloat16, and none is above 1.
#define keep_weight(to, x) vf_store_f16(to, x)
INLINE vf keep_weights(uint16_t *to, const float *score, int keys, float top, float unit) {
    vf reference = vf_set1(reference_of(top, unit)), factor = vf_set1(unit), sum = vf_set1(0);
    for (int j = 0; j < keys; j += LANES) {
        vf e = exp2_short(vf_fma(vf_load(score + j), factor, reference));
        sum = vf_add(sum, e);
        keep_weight(to + j, e);
    }
    return sum;
}
#define kept_weights(weight) vf_load_f16(weight)
