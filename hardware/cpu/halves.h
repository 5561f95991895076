// Packing and weights in halves, for numbers that are not bfloat16 on hardware that
// multiplies those: included between elements.h and tiles.h by a file that defines
// the products.
//
// A number is the sum of two bfloat16, its high and its low half, to 2^-17 of it, and
// a float16 is just that; a product is high.high + high.low + low.high, to 2^-15 of
// its size at most and to some 2^-18 on average, with sums in float32. Weights are in halves
// too, and exponentials good to 2e-7. Halves below 2^-126 count as zero.
//
// Keys are packed [variant, keys/16, half, key_dim/2 pairs of columns, 16 keys, 2],
// values [keys/128, value_dim/16, half, 64 pairs of keys, 16 columns, 2]. A row of
// queries or of weights is its high halves and then its low ones.
//
// What is infinite or NaN is its own low half, behind a high half of zero: then it
// meets only high halves, whose sign is that of the number, and no infinity an
// opposite one or the low half of a number that has none.
typedef uint32_t query_t, weight_t; // of two halves
enum { WEIGHTS_IN_PLACE = 0, SCALED_QUERY = 0, DEPTH = 32 /* columns that key_dim is padded to */, HALVES = 2 };

static inline int value_panels(const trivium_problem *p) { return (p->value_dim + PANEL - 1) / PANEL; }
static inline int64_t padded_dim(const trivium_problem *p) { return round_up(p->key_dim, DEPTH); }
// The panel of high halves of key n, a multiple of 16; that of the low ones is behind it.
static inline uint16_t *key_panel(const trivium_problem *p, const trivium_keys *k, int variant, int64_t n) {
    return (uint16_t *)k->packed + HALVES * (variant * round_up(k->key.rows, TILE) + n) * padded_dim(p);
}
// One panel more than there are keys, since keys are looked at by the two.
static inline uint16_t *value_row(const trivium_problem *p, const trivium_keys *k, int64_t n) {
    return key_panel(p, k, p->key_variants, PANEL) + HALVES * (n / TILE * TILE * PANEL * value_panels(p)) + n % TILE * PANEL;
}

static size_t NAME(pack_bytes)(const trivium_problem *p, int64_t rows) {
    int64_t n = round_up(rows, TILE);
    return HALVES * sizeof(uint16_t) * (size_t)((n * p->key_variants + PANEL) * padded_dim(p) + n * PANEL * value_panels(p));
}
#include "pairs.h"

// Numbers from here on would round to an infinite half; NaN is none of those below it.
#define HUGE_NUMBER 0x1.ffp127f

// What the high halves of x are of, where some of it is huge or not finite.
static __attribute__((noinline)) vf tamed(vf x) {
    vf most = vf_copysign(vf_set1(0x1.fep127f), x), size = vf_abs(x);
    __mmask16 huge = _mm512_cmp_ps_mask(size, vf_set1(HUGE_NUMBER), _CMP_NLT_UQ);
    __mmask16 finite = _mm512_cmp_ps_mask(size, vf_set1(FLT_MAX), _CMP_LE_OQ);
    return _mm512_mask_blend_ps(huge, x, _mm512_maskz_mov_ps(finite, most));
}

// The halves of 32 numbers.
INLINE void split_halves(vf a, vf b, __m512i *high, __m512i *low) {
    vf x = a, y = b, most = vf_set1(HUGE_NUMBER);
    if (__builtin_expect(_mm512_cmp_ps_mask(vf_abs(a), most, _CMP_NLT_UQ) | _mm512_cmp_ps_mask(vf_abs(b), most, _CMP_NLT_UQ), 0)) {
        x = tamed(a);
        y = tamed(b);
    }
    *high = (__m512i)_mm512_cvtne2ps_pbh(y, x);
    vf ahead = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(*high)), 16));
    vf behind = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(*high, 1)), 16));
    *low = (__m512i)_mm512_cvtne2ps_pbh(vf_sub(b, behind), vf_sub(a, ahead));
}

static void store_query(query_t *to, const float *x, int n, float scale) {
    uint16_t *high = (uint16_t *)to, *low = high + n;
    for (int i = 0; i < n; i += 2 * LANES) {
        __m512i h, l;
        split_halves(vf_mul(vf_load(x + i), vf_set1(scale)), vf_mul(vf_load(x + i + LANES), vf_set1(scale)), &h, &l);
        _mm512_storeu_si512(high + i, h);
        _mm512_storeu_si512(low + i, l);
    }
}

// A bfloat16 is its own high half.
static inline int copy_query(query_t *to, const trivium_matrix *m, int64_t row, int n) {
    if (m->dtype != TRIVIUM_BFLOAT16) return 0;
    uint16_t *high = memset(to, 0, sizeof(query_t) * n);
    memcpy(high, (const uint16_t *)m->data + row * m->stride, sizeof(uint16_t) * m->cols);
    return 1;
}

// rows: [16, stride], of which `depth` columns are packed.
static void pack_panel(uint16_t *to, const float *rows, int64_t stride, int depth) {
    for (int i = 0; i < depth; i += DEPTH) {
        vf half[HALVES][LANES];
        for (int r = 0; r < PANEL; r++) {
            __m512i h, l;
            split_halves(vf_load(rows + r * stride + i), vf_load(rows + r * stride + i + LANES), &h, &l);
            half[0][r] = _mm512_castsi512_ps(h);
            half[1][r] = _mm512_castsi512_ps(l);
        }
        for (int which = 0; which < HALVES; which++) {
            vf_transpose(half[which]);
            for (int r = 0; r < PANEL; r++) vf_store((float *)(to + (which * depth + i) * PANEL + r * 2 * PANEL), half[which][r]);
        }
    }
}

static void pack_key_panel(const trivium_problem *p, const trivium_keys *k, int variant, int64_t first, int64_t have) {
    _Alignas(64) float panel[PANEL * 256];
    int depth = (int)padded_dim(p);
    uint16_t *to = key_panel(p, k, variant, first);
    if (have == PANEL && p->key_dim == depth && k->key.dtype == TRIVIUM_FLOAT32 && !k->rotation[variant].table) {
        pack_panel(to, (const float *)k->key.data + first * k->key.stride, k->key.stride, depth);
        return;
    }
    memset(panel, 0, sizeof panel);
    for (int64_t r = 0; r < have; r++) {
        load_floats(panel + r * 256, &k->key, first + r);
        rotate_floats(panel + r * 256, p, &k->rotation[variant], first + r);
    }
    pack_panel(to, panel, 256, depth);
}

// Row n of the values, in whole steps of 32 columns: room is zero behind the columns that there are.
static const float *value_floats(float *room, const trivium_keys *k, int64_t n) {
    if (k->value.dtype == TRIVIUM_FLOAT32 && k->value.cols % (2 * PANEL) == 0) return (const float *)k->value.data + n * k->value.stride;
    load_floats(room, &k->value, n);
    return room;
}

// Packs the values of a chunk, of which there are `rows`, and says whether one of them is not finite.
static int pack_values(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    _Alignas(64) float room[2][256] = {{0}};
    _Alignas(64) static const float zeros[256];
    const long panel = HALVES * TILE * PANEL;
    uint16_t *to = value_row(p, k, first);
    vf greatest = vf_set1(0);
    for (int64_t r = 0; r < TILE; r += 2) {
        const float *even = r < rows ? value_floats(room[0], k, first + r) : zeros, *odd = r + 1 < rows ? value_floats(room[1], k, first + r + 1) : zeros;
        for (int j = 0; j < value_panels(p); j += 2) {
            vf x[4] = {vf_load(even + j * PANEL), vf_load(even + (j + 1) * PANEL), vf_load(odd + j * PANEL), vf_load(odd + (j + 1) * PANEL)};
            __m512i high[2], low[2];
            split_halves(x[0], x[1], &high[0], &low[0]);
            split_halves(x[2], x[3], &high[1], &low[1]);
            // As integers, magnitudes are in order, and NaN is above all.
            for (int i = 0; i < 4; i++) greatest = (vf)_mm512_max_epu32((__m512i)greatest, (__m512i)vf_abs(x[i]));
            uint16_t *pairs = to + j * panel + r * PANEL;
            int both = j + 1 < value_panels(p);
            store_pairs(pairs, panel, high[0], high[1], both);
            store_pairs(pairs + TILE * PANEL, panel, low[0], low[1], both);
        }
    }
    return _mm512_cmp_ps_mask(greatest, vf_set1(FLT_MAX), _CMP_NLE_UQ) != 0;
}

// Packs the keys of a chunk, of which there are `rows`.
static void pack_keys(const trivium_problem *p, const trivium_keys *k, int64_t first, int64_t rows) {
    for (int64_t at = 0; at < TILE; at += PANEL)
        for (int v = 0; v < p->key_variants; v++) pack_key_panel(p, k, v, first + at, max_i64(0, min_i64(PANEL, rows - at)));
}

// --- exponentials ---

#define exp2_score exp2_below_one

// The same where the processor flushes results below 2^-126 to zero; x may be above zero.
INLINE vf exp2_flushed(vf x) { return _mm512_scalef_ps(exp2_of_fraction(x), x); }

static inline float weight_at(const weight_t *row, int j) {
    const uint16_t *high = (const uint16_t *)row;
    uint32_t bits[HALVES] = {(uint32_t)high[j] << 16, (uint32_t)high[TILE + j] << 16};
    float x[HALVES];
    memcpy(x, bits, sizeof x);
    return x[0] + x[1];
}

// The weights of 32 keys, none of which is negative.
INLINE void store_weights(weight_t *row, int j, vf x, vf y) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
    vf ahead = (vf)_mm512_and_si512(_mm512_add_epi32((__m512i)x, half), upper), behind = (vf)_mm512_and_si512(_mm512_add_epi32((__m512i)y, half), upper);
    uint16_t *high = (uint16_t *)row + j;
    _mm512_storeu_si512(high, (__m512i)_mm512_cvtne2ps_pbh(behind, ahead));
    _mm512_storeu_si512(high + TILE, (__m512i)_mm512_cvtne2ps_pbh(vf_sub(y, behind), vf_sub(x, ahead)));
}

static inline void scale_weights(weight_t *row, int keys, float by) {
    const uint16_t *high = (const uint16_t *)row;
    for (int j = 0; j < keys; j += 2 * LANES) {
        vf x = vf_add(vf_load_bf16(high + j), vf_load_bf16(high + TILE + j));
        vf y = vf_add(vf_load_bf16(high + j + LANES), vf_load_bf16(high + TILE + j + LANES));
        store_weights(row, j, vf_mul(x, vf_set1(by)), vf_mul(y, vf_set1(by)));
    }
}

static inline float reference_of(float top, float unit);

// The exponentials of a row, a multiple of 32, and their sum.
INLINE vf weights(weight_t *weight, const float *score, int keys, float top, float unit) {
    vf reference = vf_set1(reference_of(top, unit)), factor = vf_set1(unit), sum = vf_set1(0), more = vf_set1(0);
    for (int j = 0; j < keys; j += 2 * LANES) {
        vf low = exp2_below_one(vf_fma(vf_load(score + j), factor, reference));
        vf high = exp2_below_one(vf_fma(vf_load(score + j + LANES), factor, reference));
        sum = vf_add(sum, low);
        more = vf_add(more, high);
        store_weights(weight, j, low, high);
    }
    return vf_add(sum, more);
}

// Exponentials that are to be summed over rows stay float32.
#define keep_weights(weight, score, keys, top, unit) exponentials_to((float *)(weight), score, keys, top, unit)
#define keep_weight(to, x) vf_store((float *)(to), x)
#define kept_weights(weight) vf_load((const float *)(weight))
