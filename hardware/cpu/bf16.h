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
enum { WEIGHTS_IN_PLACE = 0, SCALED_QUERY = 0, DEPTH = 32 /* bfloat16 that key_dim is padded to */ };

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

static size_t numbers_bytes(const trivium_problem *p, int64_t rows) {
    int64_t n = round_up(rows, TILE);
    return sizeof(uint16_t) * (size_t)((n * p->key_variants + PANEL) * padded_dim(p) + n * PANEL * value_panels(p));
}

#include "flags.h"
static inline float weight_value(uint16_t weight) {
    uint32_t bits = (uint32_t)weight << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void store_query(uint16_t *to, const float *x, int n, float scale) {
    for (int i = 0; i < n; i += LANES) vf_store_bf16(to + i, vf_mul(vf_load(x + i), vf_set1(scale)));
}

static int copy_query(uint16_t *to, const trivium_matrix *m, int64_t row, int n) {
    memset(to + m->cols, 0, sizeof(uint16_t) * (n - m->cols));
    memcpy(to, (const uint16_t *)m->data + row * m->stride, sizeof(uint16_t) * m->cols);
    return 1;
}

static void load_key(uint16_t *to, const trivium_problem *p, const trivium_keys *k, int variant, int64_t row) {
    if (!k->rotation[variant].table) {
        memcpy(to, (const uint16_t *)k->key.data + row * k->key.stride, sizeof(uint16_t) * p->key_dim);
        return;
    }
    _Alignas(64) float x[256] = {0};
    load_floats(x, &k->key, row);
    rotate_floats(x, p, &k->rotation[variant], row);
    store_query(to, x, (int)padded_dim(p), 1);
}

static void pack_chunk(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    _Alignas(64) uint16_t panel[PANEL * 256];
    for (int64_t at = 0; at < TILE; at += PANEL) {
        int64_t have = max_i64(0, min_i64(PANEL, rows - at));
        for (int v = 0; v < p->key_variants; v++) {
            uint16_t *to = key_panel(p, k, v, first + at);
            memset(panel, 0, sizeof panel);
            for (int64_t r = 0; r < have; r++) load_key(panel + r * 256, p, k, v, first + at + r);
            for (int64_t i = 0; i < padded_dim(p); i += DEPTH) { // pairs are turned as if they were float32
                vf block[LANES];
                for (int r = 0; r < PANEL; r++) block[r] = vf_load((const float *)(panel + r * 256 + i));
                vf_transpose(block);
                for (int r = 0; r < PANEL; r++) vf_store((float *)(to + i * PANEL + r * 2 * PANEL), block[r]);
            }
        }
    }
    uint16_t *values = value_row(p, k, first);
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __mmask32 not_finite = 0;
    for (int64_t r = 0; r < TILE; r += 2) {
        memset(panel, 0, sizeof(uint16_t) * 512);
        for (int64_t i = r; i < r + 2 && i < rows; i++)
            memcpy(panel + (i - r) * 256, (const uint16_t *)k->value.data + (first + i) * k->value.stride, sizeof(uint16_t) * p->value_dim);
        for (int j = 0; j < value_panels(p); j++) {
            __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(panel + j * PANEL)));
            __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(panel + 256 + j * PANEL)));
            __m512i pairs = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
            not_finite |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(pairs, exponent), exponent);
            _mm512_storeu_si512(values + (j * TILE + r) * PANEL, pairs);
        }
    }
    *chunk_flag(p, k, first) = not_finite != 0;
}

// --- exponentials ---

// exp2 to 2.6e-6, since the result is rounded to bfloat16.
INLINE vf exp2_short(vf x) {
    vf r = vf_fraction(x);
    vf y = vf_fma(vf_set1(0x1.bb7cd4p-7f), r, vf_set1(0x1.aa13f2p-5f));
    y = vf_fma(y, r, vf_set1(0x1.ee798ap-3f));
    y = vf_fma(y, r, vf_set1(0x1.62d166p-1f));
    y = vf_fma(y, r, vf_set1(0x1.00002cp+0f));
    return vf_scale(y, x);
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
        _mm512_storeu_si512(weight + j, (__m512i)_mm512_cvtne2ps_pbh(high, low));
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
INLINE vf keep_weights(uint16_t *to, const float *score, int keys, float top, float unit) {
    vf reference = vf_set1(reference_of(top, unit)), factor = vf_set1(unit), sum = vf_set1(0);
    for (int j = 0; j < keys; j += LANES) {
        vf e = exp2_short(vf_fma(vf_load(score + j), factor, reference));
        sum = vf_add(sum, e);
        vf_store_f16(to + j, e);
    }
    return sum;
}
#define kept_weights(weight) vf_load_f16(weight)
